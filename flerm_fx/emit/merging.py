"""Multipliers that agree within their errors are merged, so that fewer parameter groups remain."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.pooling import NORMAL_90

AGREE = 2.0
"""Standard errors that a parameter's multiplier may be off that of its merged group."""


def merged(
    rows: Iterable[Assignment], kind: Callable[[str], Hashable] = lambda name: None
) -> dict[str, float]:
    r"""Return multipliers of which more are equal, each within its own error of what it was.

    .. math:: \log m = \frac{\sum_l \log m_l / \sigma_l^2}{\sum_l 1 / \sigma_l^2}, \qquad
              |\log m - \log m_l| \le 2 \sigma_l

    for each member l of a merged group, with the relative standard errors :math:`\sigma_l` of the
    assignments. A predicted multiplier stays within its interval, which is that of a normal
    distribution at 90 %. One that is stated without an error stays as it is, and others may join
    it. In the order of multipliers, a group has as many as it can have from its first one on; how
    far it spreads is bounded by the errors of each of its members, however many lie between them.

    Args:
        rows: of the parameters.
        kind: of a parameter: those of another kind are never merged with it.

    >>> from flerm_fx.probe.estimate import NOT_MEASURED
    >>> def row(name, multiplier, error):
    ...     given = name, "", "", (), (), 1.0, NOT_MEASURED, multiplier, "matched"
    ...     return Assignment(*given, error=error)
    >>> merged([row("a", 1.0, 0.1), row("b", 1.21, 0.1), row("c", 2.0, 0.1)])
    {'a': 1.1, 'b': 1.1, 'c': 2.0}
    """
    rows = list(rows)
    equal: dict[Hashable, dict[float, list[Assignment]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        equal[kind(row.parameter)][row.multiplier].append(row)
    found: dict[str, float] = {}
    for by_multiplier in equal.values():
        run: list[_Equal] = []
        for m in sorted(by_multiplier):
            item = _Equal.of(by_multiplier[m])
            if _mean([*run, item]) is None:
                found.update(_given(run))
                run = []
            run.append(item)
        found.update(_given(run))
    return {row.parameter: found[row.parameter] for row in rows}


@dataclass(frozen=True)
class _Equal:
    r"""Parameters with one multiplier.

    Attributes:
        names: of the parameters.
        multiplier: of each.
        low, high: the multipliers that are within the error of each.
        weight: the sum of :math:`1 / \sigma^2`; infinite where one has no error.
    """

    names: tuple[str, ...]
    multiplier: float
    low: float
    high: float
    weight: float

    @classmethod
    def of(cls, rows: Sequence[Assignment]) -> "_Equal":
        m = rows[0].multiplier
        ranges = [_range(row) for row in rows]
        errors = [_error(row) for row in rows]
        return cls(
            tuple(row.parameter for row in rows),
            m,
            max(low for low, _ in ranges),
            min(high for _, high in ranges),
            math.inf if 0.0 in errors else math.fsum(e**-2 for e in errors),
        )


def _error(row: Assignment) -> float:
    """Return the standard error of a multiplier's logarithm, 0 where it has none."""
    if row.interval is None:
        return row.error if row.status == "matched" else 0.0
    low, high = row.interval
    known = 0 < low <= row.multiplier <= high < math.inf
    return math.log(high / low) / 2 / NORMAL_90 if known else 0.0


def _range(row: Assignment) -> tuple[float, float]:
    """Return the multipliers that are within the error of a row's own."""
    error = _error(row)
    if error and row.interval:
        return row.interval
    return row.multiplier * math.exp(-AGREE * error), row.multiplier * math.exp(AGREE * error)


def _mean(run: Sequence[_Equal]) -> float | None:
    """Return the multiplier of a merged group; None if it is not within the error of each."""
    fixed = [item for item in run if math.isinf(item.weight)]
    if len(fixed) > 1:
        return None
    if fixed or len(run) == 1:
        mean = (fixed or run)[0].multiplier
    else:
        whole = math.fsum(item.weight for item in run)
        logs = math.fsum(item.weight * math.log(item.multiplier) for item in run)
        mean = math.exp(logs / whole)
    return mean if all(item.low <= mean <= item.high for item in run) else None


def _given(run: Sequence[_Equal]) -> dict[str, float]:
    mean = _mean(run)
    return {name: mean for item in run for name in item.names if mean is not None}
