"""A dump is written as a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from flerm_fx.boundary.files import check, path_of, reason, write_whole
from flerm_fx.errors import InputError


def write(content: str | bytes, path: str | PathLike[str]) -> None:
    """Write bytes, or a text and a line's end in UTF-8, whole or not at all.

    Raises:
        InputError: the path cannot be written; see :func:`flerm_fx.boundary.files.write_whole`.
    """
    data = content if isinstance(content, bytes) else f"{content}\n".encode()
    file = path_of(path)
    with writing(path):
        write_whole(file, data)


def check_writable(path: str | PathLike[str]) -> None:
    """Find out before long work whether a file can be written, and leave what is there as it is.

    Raises:
        InputError: the path cannot be written.
    """
    file = path_of(path)
    with writing(path):
        check(file)


@contextmanager
def writing(path: str | PathLike[str]) -> Iterator[None]:
    """Turn the system's error about a path into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"dump: cannot write to {str(path)!r} ({reason(error)}); nothing that was "
            "there has changed; name a path in an existing folder that can be written"
        ) from error
