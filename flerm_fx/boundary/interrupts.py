"""Interrupts may arrive between any two lines, and are held back here."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that are started in the meantime never hear of a SIGINT.

    Ctrl-C reaches every process of a terminal, also one that has not got as far as to ignore it. It
    is held back here for the thread that starts them, and arrives there at the end. Nothing where
    there are no masks of signals, as on Windows.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let a SIGINT in the meantime arrive at the end; nothing where Python does not handle it.

    >>> try:
    ...     with deferred_interrupt():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("unimpressed")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    unimpressed
    interrupted
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # only the main thread may set handlers, and is interrupted
        return
    arrived: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)
