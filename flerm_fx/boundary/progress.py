"""How far a long call has got: a bar where somebody watches, and lines in the log in any case."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import distributed as dist

from flerm_fx.boundary.options import flag

_LOG = logging.getLogger("flerm_fx")

MEASUREMENT = 5
"""How many simulated steps an estimate of all FSLRs takes about as long as: nine of them took 37 to
49 steps."""

_LINE = "{desc} …"
_BAR = "{desc} {percentage:3.0f} % |{bar:24}| {elapsed}, about {remaining} left"
_BEGINNING = 2  # the step that gives the pace: the first one looks for rounding too

Count = Callable[[int], None]
"""Told how many steps' worth of work was done."""


class Progress:
    """Tells how far one call of the interface has got.

    Lines go to the logger ``flerm_fx`` at the level ``INFO``. A bar is drawn on standard error if
    that is a terminal or a notebook, by tqdm or, where that is not installed, as a line with the
    part that is done, and only by the first of several processes. It takes itself off the screen at
    the end. A call that is a step of another one, as of one that compiles models of many sizes, has
    no bar of its own, and the level ``DEBUG``.

    Args:
        call: the name of the function, such as ``"compile"``.
        shown: whether to draw bars.

    Raises:
        InputError: ``shown`` is neither True nor False.

    >>> progress = Progress("compile", False)
    >>> with progress("measuring the model"), counting("2 steps", 2) as count:
    ...     count(1)
    ...     count(1)
    """

    def __init__(self, call: str, shown: bool = True) -> None:
        self._call = f"flerm_fx.{call}"
        self._shown = flag("progress", shown)
        self._bar: Any = None
        self._level = logging.INFO

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """A part of the call, in which :func:`counting` counts; it ends however it is left."""
        text, began = f"{self._call}: {stage}", time.monotonic()
        self._level = logging.INFO if _STAGE.get() is None else logging.DEBUG
        _LOG.log(self._level, "%s", text)
        self._bar = _bar(text) if self._shown and _STAGE.get() is None else None
        outer = _STAGE.set(self)
        try:
            yield
        finally:
            _STAGE.reset(outer)
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        _LOG.log(self._level, "%s took %s", text, duration(time.monotonic() - began))

    @contextmanager
    def counted(self, what: str, number: int) -> Iterator[Count]:
        """So many steps' worth of work, of which the caller tells each part as it is done."""
        text = f"{self._call}: {what}"
        before, done, told = time.monotonic(), 0, 0

        def count(steps: int) -> None:
            nonlocal before, done, told
            done, told = done + steps, told + 1
            now = time.monotonic()
            if told == _BEGINNING and done < number:
                left = (now - before) / steps * (number - done)
                _LOG.log(self._level, "%s, about %s", text, duration(left))
            before = now
            if self._bar is not None:
                self._bar.total = max(number, done)  # a target may go on for longer
                self._bar.update(steps)

        if self._bar is not None:
            self._bar.desc, self._bar.bar_format = text, _BAR
            self._bar.reset(number)
        yield count


class _Line:
    """A ``_Line`` is what there is of a bar without tqdm: a line of text, and the part done."""

    def __init__(self, text: str) -> None:
        self.desc = text
        self.bar_format = ""  # tqdm's
        self.reset(0)

    def reset(self, total: int) -> None:
        self.total, self._done = total, 0
        self.update(0)

    def update(self, steps: int) -> None:
        self._done += steps
        part = f"{self._done / self.total:4.0%}" if self.total else "…"
        self._write(f"{self.desc} {part}")

    def close(self) -> None:
        self._write("")
        print("\r", end="", file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:<{width}}", end="", file=sys.stderr, flush=True)


def _bar(text: str) -> Any:
    """A line that may become a bar; None where nobody would see it."""
    is_first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    if not (is_first and is_watched(sys.stderr)):
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return _Line(text)
    return tqdm(
        total=1, desc=text, bar_format=_LINE, leave=False, file=sys.stderr, dynamic_ncols=True
    )


_STAGE: ContextVar[Progress | None] = ContextVar("flerm_fx_stage", default=None)


@contextmanager
def counting(what: str, number: int) -> Iterator[Count]:
    """Count steps of the stage that runs, from wherever the work is; without one, nobody is told.

    Args:
        what: is counted, such as ``"101 steps"``.
        number: how many steps' worth of work there is.
    """
    stage = _STAGE.get()
    if stage is None:
        yield lambda steps: None
    else:
        with stage.counted(what, number) as count:
            yield count


def is_watched(stream: Any) -> bool:
    """Whether somebody sees what is written to a stream: in a terminal, or in a notebook."""
    terminal = getattr(stream, "isatty", None)
    return bool(terminal and terminal()) or type(stream).__module__.startswith("ipykernel.")


def duration(seconds: float) -> str:
    """Seconds in words, as exactly as a reader needs them.

    >>> duration(0.04), duration(12.3), duration(200), duration(8000)
    ('0.04 s', '12 s', '3 min', '2.2 h')
    """
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
