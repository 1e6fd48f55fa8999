"""An interrupt at a chosen line, as a signal's handler would raise it."""

import gc
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch

from flerm_fx.errors import FlermError


class Interrupt(BaseException):
    """Not an Exception: what a user's Ctrl-C is like."""


def lines(run: Callable[[], Any], files: Iterable[str], at: int = -1) -> int:
    """How many lines of these files a run goes through; interrupted before line number ``at``.

    Args:
        run: what to run.
        files: ends of their paths.
        at: the line to interrupt, from 0; none if below.

    Raises:
        Interrupt: at that line.
    """
    ends = tuple(files)
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(ends):
            return None
        if event == "line":
            count += 1
            if count == at + 1:
                sys.settrace(None)
                raise Interrupt
        return trace

    before, gradients, collects = sys.gettrace(), torch.is_grad_enabled(), gc.isenabled()
    gc.disable()  # an interrupt in the clean-up of what another test has left would be lost
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
        # A trace function may raise between the end of a block and its __exit__; signals do not.
        torch.set_grad_enabled(gradients)
    if not count:
        raise FlermError(f"no line of {', '.join(ends)} was run")
    return count
