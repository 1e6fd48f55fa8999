"""Text that leaves the program is what a terminal, a browser or another program is given to read.

Names come from models and files, and may hold anything: a line's end that would begin a line of
code, an escape sequence that a terminal obeys, a mark that turns the direction of reading.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any


def unprintable(value: Any) -> Iterator[str]:
    r"""Return the strings, and keys, in nested lists and dicts that ``shown`` would change.

    >>> list(unprintable({"names": ["weight", "bias\n"], "rate": 0.1}))
    ['bias\n']
    """
    pending = [value]
    for one in pending:  # which grows
        if isinstance(one, str) and not one.isprintable():
            yield one
        elif isinstance(one, Mapping):
            pending += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            pending += one


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return JSON in ASCII, where a number that is not finite, which JSON cannot hold, is null.

    >>> json_text([0.5, float("nan")], indent=None)
    '[0.5, null]'
    """
    # The one control character that Python leaves as it is.
    return json.dumps(_finite(value), indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
