"""What a call warns of is heard, for a report of it to say so later."""

import warnings
from contextvars import ContextVar

_HEARD: ContextVar[list[str] | None] = ContextVar("flerm_fx.warned", default=None)


def warn(message: str, category: type[Warning] = UserWarning, *, stacklevel: int = 1) -> None:
    """Warn as ``warnings.warn`` does, and let whoever has called :func:`listen` hear of it."""
    heard = _HEARD.get()
    if heard is not None and message not in heard:
        heard.append(message)
    warnings.warn(message, category, stacklevel=stacklevel + 1)


def listen() -> list[str]:
    """Return a list of what is warned of from here on, until the next call, once each.

    Filters that hide a warning do not keep it out.

    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     heard = listen()
    ...     warn("it is late")
    ...     warn("it is late")
    >>> heard
    ['it is late']
    """
    heard: list[str] = []
    _HEARD.set(heard)
    return heard
