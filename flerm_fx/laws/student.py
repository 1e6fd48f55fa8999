"""This module has quantiles of Student's t distribution."""

import functools
import math

import numpy as np

GRID = 20_001
"""Points of the integral: quantiles are right to five digits from 1 degree of freedom on."""


@functools.cache
def quantile(level: float, freedom: int) -> float:
    r"""Return the t that a share ``level`` of the distribution lies within, on both sides of 0.

    With :math:`t = \sqrt\nu \tan\theta` its density becomes one of :math:`\cos^{\nu - 1}\theta`,
    which is integrated by the trapezoidal rule.

    Args:
        level: of an interval, between 0 and 1.
        freedom: degrees of freedom :math:`\nu`; with none, nothing is known and t is infinite.

    >>> [round(quantile(0.9, freedom), 3) for freedom in (1, 2, 10)]
    [6.314, 2.92, 1.812]
    >>> quantile(0.9, 0)
    inf
    """
    if freedom < 1:
        return math.inf
    theta = np.linspace(0.0, math.pi / 2, GRID)
    density = np.cos(theta) ** (freedom - 1)
    steps = (density[1:] + density[:-1]) / 2
    below = np.concatenate([[0.0], np.cumsum(steps)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], theta)))
