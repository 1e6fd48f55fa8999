"""An estimate is one measured function-space learning rate, and has arithmetic with errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from flerm_fx.boundary.options import described, instance, integer, number
from flerm_fx.errors import InputError


@dataclass(frozen=True)
class Estimate:
    r"""An ``Estimate`` is an FSLR that knows how it was measured and how far it may be off.

    .. math:: \mathrm{FSLR}_l = \sqrt{\tfrac{1}{NK} \sum_n \lVert J_{n,l} u_l \rVert^2}

    for the unit update :math:`u_l = \Delta\theta_l / \mathrm{lr}` (Milsom et al. 2025, section 3).

    Attributes:
        value: the FSLR, in units of the output per unit of learning rate.
        stderr: standard error of ``value`` over the estimator's random draws, for the given
            inputs; 0 for an exact method. As a part of ``value`` it is that of the logarithm.
        method: ``"exact"``, ``"sampled"``, ``"live"``, ``"full_cov"``, ``"iid"`` or
            ``"kronecker"``.
        samples: random draws per example (``"sampled"``, ``"live"``) or passes (the paper's three);
            0 if exact.
        note: what the method had to work around, for example batch-coupled examples; else empty.

    >>> Estimate(value=2.0, stderr=0.1, method="sampled", samples=4).relative_error
    0.05
    """

    value: float
    stderr: float
    method: str
    samples: int
    note: str = ""

    def __float__(self) -> float:
        """Return the FSLR without its error.

        >>> float(Estimate(value=2.0, stderr=0.1, method="sampled", samples=4))
        2.0
        """
        return self.value

    @property
    def relative_error(self) -> float:
        """The standard error over the value, σ / F; it is 0 for a value of 0."""
        return self.stderr / self.value if self.value else 0.0

    @property
    def middle(self) -> float:
        r"""The value that is right in the geometric mean over draws.

        .. math:: F \exp \frac{\epsilon^2}{1 + \epsilon^2}

        It is made with the relative error :math:`\epsilon`. Of :math:`\nu` squared normal numbers,
        the logarithm of the root of the mean is :math:`\tfrac12 (\log \tfrac\nu2 -
        \psi(\tfrac\nu2))` too low on average, and :math:`\epsilon^2 = \tfrac14
        \psi_1(\tfrac\nu2)` (:func:`flerm_fx.probe.sampled.relative_errors`); the two agree
        within 0.01 for two numbers or more, and within 0.1 for one.

        >>> round(Estimate(value=2.0, stderr=0.5, method="sampled", samples=1).middle, 4)
        2.1212
        """
        squared = self.relative_error**2
        return self.value * math.exp(squared / (1 + squared))

    def __mul__(self, factor: float) -> "Estimate":
        """Return the FSLR of an update that is ``factor`` times as large, its error with it.

        >>> Estimate(value=2.0, stderr=0.5, method="sampled", samples=4) * 3.0
        Estimate(value=6.0, stderr=1.5, method='sampled', samples=4, note='')
        """
        size = abs(factor)
        return replace(self, value=self.value * size, stderr=self.stderr * size)

    def scaled(self, ratio: float, error: float) -> "Estimate":
        r"""Return the FSLR times a ratio that has a relative error of its own, independent of this
        one's.

        .. math:: F' = r F, \qquad \sigma' = F' \sqrt{(\sigma / F)^2 + \epsilon_r^2}

        Args:
            ratio: r, at least 0.
            error: its relative error :math:`\epsilon_r`.

        >>> Estimate(2.0, 0.6, "sampled", 4).scaled(5.0, 0.4).stderr
        5.0
        """
        value = self.value * ratio
        return replace(self, value=value, stderr=value * math.hypot(self.relative_error, error))

    def over(self, other: "Estimate") -> tuple[float, float]:
        r"""Return the ratio to an independent estimate, and the ratio's relative error.

        .. math:: r = F_1 / F_2, \qquad
                  \sigma_r / r = \sqrt{(\sigma_1 / F_1)^2 + (\sigma_2 / F_2)^2}

        Args:
            other: what to divide by.

        Raises:
            ZeroDivisionError: the other one is 0.

        >>> Estimate(4.0, 1.2, "sampled", 4).over(Estimate(2.0, 0.8, "sampled", 4))
        (2.0, 0.5)
        """
        return self.value / other.value, math.hypot(self.relative_error, other.relative_error)

    def over_same_draws(self, other: "Estimate") -> tuple[float, float]:
        r"""Return the ratio to an estimate from the same random draws, and the ratio's relative
        error.

        .. math:: r = F_1 / F_2, \qquad \sigma_r / r = |\log r|\, \sigma_1 / F_1

        The nearer the two updates, the more their errors are one; a ratio of 1 has none. It is
        infinite for a ratio of 0.

        Args:
            other: what to divide by.

        Raises:
            ZeroDivisionError: the other one is 0.

        >>> one = Estimate(2.0, 0.5, "sampled", 4)
        >>> one.over_same_draws(one), (one * 0.0).over_same_draws(one)
        ((1.0, 0.0), (0.0, inf))
        """
        ratio = self.value / other.value
        return ratio, abs(math.log(ratio)) * self.stderr / self.value if ratio else math.inf

    def joint_error(self, other: "Estimate") -> float:
        """Return the standard error of the difference of two independent estimates, √(σ₁² + σ₂²).

        Args:
            other: the other one.

        >>> Estimate(4.0, 3.0, "sampled", 4).joint_error(Estimate(2.0, 4.0, "sampled", 4))
        5.0
        """
        return math.hypot(self.stderr, other.stderr)

    def agrees_with(self, other: "Estimate", errors: float, rtol: float) -> bool:
        r"""Tell whether two independent estimates may be of one FSLR.

        .. math:: |F_1 - F_2| \le k \sqrt{\sigma_1^2 + \sigma_2^2} + \epsilon \max(F_1, F_2)

        Args:
            other: the other estimate.
            errors: the number k of standard errors that they may be apart.
            rtol: the relative difference :math:`\epsilon` that is allowed on top, for rounding.

        >>> one, other = Estimate(4.0, 0.3, "sampled", 4), Estimate(5.0, 0.4, "sampled", 4)
        >>> one.agrees_with(other, errors=3, rtol=0.0), one.agrees_with(other, errors=1, rtol=0.0)
        (True, False)
        """
        allowed = errors * self.joint_error(other) + rtol * max(self.value, other.value)
        return abs(self.value - other.value) <= allowed

    def is_above(self, errors: float, least: float) -> bool:
        """Tell whether the FSLR is above so many of its standard errors, and above ``least``.

        Args:
            errors: how many standard errors.
            least: in units of the output per unit of learning rate.

        >>> Estimate(2.0, 0.5, "sampled", 4).is_above(errors=3, least=0.0)
        True
        """
        return self.value > max(errors * self.stderr, least)

    def noted(self, note: str) -> "Estimate":
        """Return the same estimate with one more note.

        Args:
            note: the note; an empty one adds nothing.

        >>> Estimate(1.0, 0.0, "exact", 0, "one").noted("other").note
        'one; other'
        """
        return replace(self, note="; ".join(filter(None, (self.note, note))))

    def unresolved(self) -> "Estimate":
        """Return the same value with an error of at least its own size, so that nothing rests on
        it.

        >>> Estimate(2.0, 0.1, "sampled", 4).unresolved().relative_error
        1.0
        """
        return replace(self, stderr=max(self.stderr, self.value))

    def towards(self, other: "Estimate", weight: float) -> "Estimate":
        r"""Return the estimate that lies between two, such as those of two steps.

        .. math:: F = F_1^{1-w} F_2^w, \qquad \sigma = (1 - w)\, \sigma_1 + w\, \sigma_2

        Where one of the two is 0 and has no logarithm, the value is interpolated as the error is.

        Args:
            other: the estimate at the other end.
            weight: w, from 0 for this one to 1 for the other.

        >>> Estimate(1.0, 0.1, "sampled", 4).towards(Estimate(4.0, 0.3, "sampled", 4), 0.5)
        Estimate(value=2.0, stderr=0.2, method='sampled', samples=4, note='')
        """

        def between(a: float, b: float) -> float:
            return (1 - weight) * a + weight * b

        if self.value > 0 and other.value > 0:
            value = math.exp(between(math.log(self.value), math.log(other.value)))
        else:
            value = between(self.value, other.value)
        return replace(self, value=value, stderr=between(self.stderr, other.stderr))

    @staticmethod
    def total(estimates: "Iterable[Estimate]") -> "Estimate":
        r"""Return the sum of estimates, with errors added as if one draw had made all of them.

        .. math:: F = \sum_i F_i, \qquad \sigma = \sum_i \sigma_i

        It is 0 without an error for none at all. Method and note are the first one's.

        Args:
            estimates: the terms.

        >>> Estimate.total([Estimate(2.0, 0.1, "sampled", 4), Estimate(3.0, 0.2, "sampled", 4)])
        Estimate(value=5.0, stderr=0.30000000000000004, method='sampled', samples=8, note='')
        """
        each = list(estimates)
        return replace(
            each[0] if each else NOT_MEASURED,
            value=sum(e.value for e in each),
            stderr=sum(e.stderr for e in each),
            samples=sum(e.samples for e in each),
        )

    @staticmethod
    def mean(estimates: "Sequence[Estimate]") -> "Estimate":
        r"""Return the mean of estimates whose errors are independent, such as those of several
        steps.

        .. math:: F = \frac1n \sum_i F_i, \qquad \sigma = \frac1n \sqrt{\sum_i \sigma_i^2}

        Method and note are the last one's. One estimate comes back as it is.

        Args:
            estimates: at least one.

        >>> Estimate.mean([Estimate(2.0, 0.3, "sampled", 4), Estimate(4.0, 0.4, "sampled", 4)])
        Estimate(value=3.0, stderr=0.25, method='sampled', samples=8, note='')
        """
        if len(estimates) == 1:
            return estimates[0]
        return replace(
            estimates[-1],
            value=sum(e.value for e in estimates) / len(estimates),
            stderr=math.sqrt(sum(e.stderr**2 for e in estimates)) / len(estimates),
            samples=sum(e.samples for e in estimates),
        )

    @staticmethod
    def geometric_mean(estimates: "Sequence[Estimate]") -> "Estimate":
        r"""Return the geometric mean of at least two estimates of one quantity, such as those of
        seeds.

        .. math:: F = \exp \frac1n \sum_i \log F_i, \qquad
                  \frac{\sigma}{F} = \max\Big(\frac{s^2}{n},\
                  \frac{1}{n^2} \sum_i \frac{\sigma_i^2}{F_i^2}\Big)^{1/2}

        with :math:`s^2` the variance of the n logarithms. The spread contains each one's own error,
        and by chance may be below it. Where an estimate is 0 and has no logarithm, the mean is the
        arithmetic one, with the errors and the spread of the values themselves. Methods and notes
        are those that occur.

        Args:
            estimates: at least two.

        >>> Estimate.geometric_mean([Estimate(v, 0.0, "exact", 0) for v in (1.0, 4.0)]).value
        2.0
        """
        n = len(estimates)
        geometric = all(estimate.value > 0 for estimate in estimates)
        if geometric:
            values = [math.log(estimate.value) for estimate in estimates]
            errors = [estimate.relative_error for estimate in estimates]
        else:
            values = [estimate.value for estimate in estimates]
            errors = [estimate.stderr for estimate in estimates]
        center = sum(values) / n
        spread = sum((value - center) ** 2 for value in values) / (n - 1) / n
        own = sum(error**2 for error in errors) / n**2
        error = math.sqrt(max(spread, own))
        value = math.exp(center) if geometric else center
        return Estimate(
            value=value,
            stderr=value * error if geometric else error,
            method="+".join(dict.fromkeys(estimate.method for estimate in estimates)),
            samples=sum(estimate.samples for estimate in estimates),
            note="; ".join(dict.fromkeys(e.note for e in estimates if e.note)),
        )


NOT_MEASURED = Estimate(0.0, 0.0, "not measured", 0)
"""The estimate of a parameter that nothing was measured of."""


def rows(estimates: Mapping[str, Estimate]) -> dict[str, tuple[Any, ...]]:
    """Estimates as plain tuples, which any checkpoint can hold; see :func:`estimates`.

    >>> estimates(rows({"weight": Estimate(2.0, 0.1, "sampled", 4)}))["weight"].samples
    4
    """
    return {name: astuple(estimate) for name, estimate in estimates.items()}


def estimates(rows: Mapping[str, Sequence[Any]], where: str = "the rows") -> dict[str, Estimate]:
    """Return what :func:`rows` was given; ``where`` they are is for messages.

    Raises:
        InputError: a row is of another form, or has numbers that are none of an FSLR.
    """
    by_name = {}
    for name, row in rows.items():
        what = f"the FSLR of {name!r} in {where}"
        if not isinstance(row, list | tuple) or len(row) != len(fields(Estimate)):
            raise InputError(
                f"{what} must be (value, stderr, method, samples, note), got {described(row)}"
            )
        value, stderr, method, samples, note = row
        by_name[name] = Estimate(
            number(what, value, least=0),
            number(f"the standard error of {what}", stderr, least=0),
            instance(f"the method of {what}", method, str, "text"),
            integer(f"the number of samples of {what}", samples, 0),
            instance(f"the note on {what}", note, str, "text"),
        )
    return by_name
