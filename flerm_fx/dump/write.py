"""The text of a dump as a file."""

from os import PathLike
from pathlib import Path

from flerm_fx.errors import InputError


def write(text: str, path: str | PathLike[str]) -> None:
    """Write a text and a line's end, in UTF-8; an existing file is replaced.

    Raises:
        InputError: the path cannot be written.
    """
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"dump: cannot write to {str(path)!r} ({error.strerror or error}); "
            "name a file in an existing folder that can be written"
        ) from error
