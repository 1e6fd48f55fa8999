"""A dump as a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from flerm_fx.errors import InputError


def write(content: str | bytes, path: str | PathLike[str]) -> None:
    """Write bytes, or a text and a line's end in UTF-8; an existing file is replaced.

    Raises:
        InputError: the path cannot be written.
    """
    data = content if isinstance(content, bytes) else f"{content}\n".encode()
    with writing(path):
        Path(path).write_bytes(data)


def check_writable(path: str | PathLike[str]) -> None:
    """Find out before long work; what is there stays as it is.

    Raises:
        InputError: the path cannot be written.
    """
    file = Path(path)
    with writing(path):
        if file.exists():
            with file.open("ab"):
                pass
        else:
            file.touch()
            file.unlink()


@contextmanager
def writing(path: str | PathLike[str]) -> Iterator[None]:
    """Turn the system's error about a path into one that says what to do."""
    try:
        yield
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        raise InputError(
            f"dump: cannot write to {str(path)!r} ({getattr(error, 'strerror', None) or error}); "
            "name a path in an existing folder that can be written"
        ) from error
