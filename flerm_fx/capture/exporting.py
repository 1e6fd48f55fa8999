"""This module keeps torch's messages and interrupts out of ``torch.export``."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from flerm_fx.boundary.interrupts import deferred_interrupt


@contextmanager
def exporting() -> Iterator[None]:
    """Export without torch's own messages, and with interrupts at its end.

    An interrupt (SIGINT) amid ``torch.export`` ends in C++ frames that cannot pass an exception on,
    which aborts Python. Deprecations are kept from the user; failure logs in this thread alone.
    """
    with deferred_interrupt(), _without_logs(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_logs() -> Iterator[None]:
    """Hold back what torch's loggers say in this thread below critical."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL or threading.get_ident() != thread

    loggers = [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and (name == "torch" or name.startswith("torch."))
    ]
    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)


class TracedError(Exception):
    """The error carries what the model raised out of ``torch.export``.

    torch notes on an exception the part of the graph that it has, and prints that to stderr. This
    one takes no notes.

    >>> raised = TracedError(ValueError("no"))
    >>> raised.partial_fx_graph = "graph"
    >>> hasattr(raised, "partial_fx_graph")
    False
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error

    def __setattr__(self, name: str, value: object) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)
