"""What may come of a matching that is held to names, and how often a right one is warned of."""

from collections.abc import Mapping
from typing import Literal

Verdict = Literal["right", "in doubt", "refused", "wrong", "wrong, in doubt"]
"""``"in doubt"`` is as names tell, with a doubt."""


def listed(counts: Mapping[Verdict, int]) -> str:
    """Return how many there are of each verdict, the most frequent first.

    >>> listed({"in doubt": 1, "right": 2})
    'right: 2, in doubt: 1'
    """
    most = sorted(counts.items(), key=lambda item: item[1], reverse=True)
    return ", ".join(f"{verdict}: {number}" for verdict, number in most)


def alarms(counts: Mapping[Verdict, int]) -> str:
    """Return how many of the matchings that are as names tell are in doubt.

    >>> alarms({"right": 98, "in doubt": 2, "wrong": 1})
    'false alarms: 2 of 100 that are as names tell (2.0 %)'
    """
    doubtful = counts.get("in doubt", 0)
    right = doubtful + counts.get("right", 0)
    part = 100 * doubtful / max(right, 1)
    return f"false alarms: {doubtful} of {right} that are as names tell ({part:.1f} %)"
