"""Time by stage of a call into the library, which itself keeps no time."""

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import flerm_fx.assign.multipliers
import flerm_fx.emit.compiling
import flerm_fx.start.start
from flerm_fx.probe.capture_prober import CaptureProber

REST = "emit"
"""What is in no other stage: copies, multipliers, and the compiled model."""

_WRAPPED: tuple[tuple[Any, str, str], ...] = (
    (flerm_fx.emit.compiling, "capture", "capture"),
    (flerm_fx.emit.compiling, "find_matches", "match"),
    (flerm_fx.assign.multipliers, "measure_settling", "settle"),
    (flerm_fx.assign.multipliers, "measure_start", "settle"),
    (flerm_fx.assign.multipliers, "answers_to", "settle"),
    (flerm_fx.start.start, "output_rms", "size"),
    (flerm_fx.start.start, "update_sizes", "size"),
    (CaptureProber, "estimate", "probe"),
)
"""Where a function is looked up, its name there, and its stage. Simulated steps are what is left of
``measure_settling`` and ``measure_start`` without the estimates and sizes in them."""

STAGES = (*dict.fromkeys(stage for *_, stage in _WRAPPED), REST)


class Stopwatch:
    """Seconds in each stage; a stage inside another is no part of that one.

    Attributes:
        seconds, calls: by stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._running: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs in here is of that stage."""
        self._lap()
        self._running.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, timed as a stage."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


@contextlib.contextmanager
def stages() -> Iterator[Stopwatch]:
    """Time the stages of ``flerm_fx.compile`` while in here."""
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        for owner, attribute, name in _WRAPPED:
            timed = watch.wrap(getattr(owner, attribute), name)
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        with watch.stage(REST):
            yield watch
