"""How far estimates are off."""

import math
from collections.abc import Mapping, Sequence

from flerm_fx.probe.estimate import Estimate

NEGLIGIBLE = 1e-4
"""Parameters whose FSLR is below this part of the largest do not count: an attention key's bias,
which softmax does not see, is rounding."""

Estimates = Mapping[str, Estimate]


def counted(exact: Estimates) -> list[str]:
    """The parameters whose FSLR is not negligible."""
    largest = max(estimate.value for estimate in exact.values())
    return [name for name, e in exact.items() if e.value > NEGLIGIBLE * largest]


def log_errors(found: Estimates, exact: Estimates) -> list[float]:
    """log(found / exact) of each parameter that counts."""
    tiny = 1e-30
    return [math.log(max(found[n].value, tiny) / exact[n].value) for n in counted(exact)]


def rms(values: Sequence[float]) -> float:
    """Root of the mean square.

    >>> rms([3.0, -3.0])
    3.0
    """
    return math.sqrt(sum(value * value for value in values) / len(values))


def rms_log_error(runs: Sequence[Estimates], exact: Estimates) -> float:
    """Over parameters and runs."""
    return rms([error for run in runs for error in log_errors(run, exact)])


def worst_stderr(found: Estimates, exact: Estimates) -> float:
    """The largest relative standard error that is reported of a parameter that counts."""
    return max(found[name].relative_error for name in counted(exact))
