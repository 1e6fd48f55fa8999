"""Graphviz draws pictures."""

import shutil
import subprocess
from typing import Literal

from flerm_fx.errors import FlermError

_SECONDS = 120.0
# Dots per inch of a png: sharp on any screen, usual, and the least that letters of 10 points need.
_RESOLUTIONS = (144, 96, 72)
# Larger ones take Graphviz minutes, and few viewers open them; 32,767 is its own limit.
_LARGEST_AREA, _LARGEST_SIDE = 2**25, 2**15 - 1


def render(text: str, format: Literal["svg", "png"], seconds: float = _SECONDS) -> bytes:
    """Draw text in the DOT language with the program ``dot``.

    Args:
        text: a ``digraph``.
        format: of the picture.
        seconds: after which to give up; the time to lay it out grows faster than the picture.

    Raises:
        FlermError: ``dot`` is not installed, or the picture is too large for it.
    """
    program = shutil.which("dot")
    if program is None:
        raise FlermError(
            f"dump: format {format!r} is drawn by Graphviz, and its program 'dot' is not on the "
            "PATH; install it (apt install graphviz, brew install graphviz), or use format 'dot', "
            "a text that needs no program"
        )
    resolution = _resolution(_run([program, "-Tplain"], text, seconds)) if format == "png" else 72
    return _run([program, f"-T{format}", f"-Gdpi={resolution}"], text, seconds)


def _resolution(plain: bytes) -> int:
    """Return the finest at which a laid out picture is no larger than allowed."""
    width, height = map(float, plain.split()[2:4])  # in inches, behind "graph" and its scale
    for resolution in _RESOLUTIONS:
        sides = width * resolution, height * resolution
        if max(sides) <= _LARGEST_SIDE and sides[0] * sides[1] <= _LARGEST_AREA:
            return resolution
    raise FlermError(
        f"dump: the picture has {width:.0f} × {height:.0f} inches, too much for a png that can be "
        "read; use 'svg', or draw one module with focus"
    )


def _run(command: list[str], text: str, seconds: float) -> bytes:
    try:
        return subprocess.run(
            command, input=text.encode(), capture_output=True, timeout=seconds, check=True
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise FlermError(
            f"dump: Graphviz has not drawn the picture in {seconds:g} s; draw one module with "
            "focus, or use format 'dot' and lay the text out with another program of Graphviz, "
            "such as sfdp"
        ) from error
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip()
        raise FlermError(
            f"dump: Graphviz failed to draw the picture: {message or error}; use format 'dot' "
            "for the text it was given"
        ) from error
