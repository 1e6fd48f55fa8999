"""All that flerm_fx warns of goes through :func:`warn`, so that a call can keep what was said."""

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

_HEARD: ContextVar[list[str] | None] = ContextVar("flerm_fx.warned", default=None)


def warn(message: str, category: type[Warning] = UserWarning, *, stacklevel: int = 1) -> None:
    """Warn as ``warnings.warn`` does, and let a block of :func:`heard` hear of it."""
    texts = _HEARD.get()
    if texts is not None and message not in texts:
        texts.append(message)
    warnings.warn(message, category, stacklevel=stacklevel + 1)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Give a list of what is warned of in this block, once each.

    Filters that hide a warning do not keep it out. A block within another one keeps what is warned
    of there to itself.

    >>> with warnings.catch_warnings(), heard() as texts:
    ...     warnings.simplefilter("ignore")
    ...     warn("it is late")
    ...     warn("it is late")
    >>> warnings.simplefilter("ignore")
    >>> warn("it is later")
    >>> texts
    ['it is late']
    """
    texts: list[str] = []
    token = _HEARD.set(texts)
    try:
        yield texts
    finally:
        _HEARD.reset(token)
