"""One measured function-space learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from flerm_fx.boundary.options import described, instance, integer, number
from flerm_fx.errors import InputError


@dataclass(frozen=True)
class Estimate:
    r"""An FSLR, with how it was measured and how far it may be off.

    .. math:: \mathrm{FSLR}_l = \sqrt{\tfrac{1}{NK} \sum_n \lVert J_{n,l} u_l \rVert^2}

    for the unit update :math:`u_l = \Delta\theta_l / \mathrm{lr}` (Milsom et al. 2025, section 3).

    Attributes:
        value: the FSLR, in units of the output per unit of learning rate.
        stderr: standard error of ``value`` over the estimator's random draws, for the given
            inputs; 0 for an exact method.
        method: ``"exact"``, ``"sampled"``, ``"full_cov"``, ``"iid"`` or ``"kronecker"``.
        samples: random draws per example (``"sampled"``) or passes (the paper's three); 0 if exact.
        note: what the method had to work around, for example batch-coupled examples; else empty.

    >>> Estimate(value=2.0, stderr=0.1, method="sampled", samples=4).relative_error
    0.05
    """

    value: float
    stderr: float
    method: str
    samples: int
    note: str = ""

    @property
    def relative_error(self) -> float:
        """``stderr / value``, and 0 for a value of 0."""
        return self.stderr / self.value if self.value else 0.0

    def __mul__(self, factor: float) -> "Estimate":
        """The FSLR of an update that is ``factor`` times as large, its error with it.

        >>> Estimate(value=2.0, stderr=0.5, method="sampled", samples=4) * 3.0
        Estimate(value=6.0, stderr=1.5, method='sampled', samples=4, note='')
        """
        size = abs(factor)
        return replace(self, value=self.value * size, stderr=self.stderr * size)


def rows(estimates: Mapping[str, Estimate]) -> dict[str, tuple[Any, ...]]:
    """Estimates as plain tuples, which any checkpoint can hold; see :func:`estimates`.

    >>> estimates(rows({"weight": Estimate(2.0, 0.1, "sampled", 4)}))["weight"].samples
    4
    """
    return {name: astuple(estimate) for name, estimate in estimates.items()}


def estimates(rows: Mapping[str, Sequence[Any]], where: str = "the rows") -> dict[str, Estimate]:
    """What :func:`rows` was given; ``where`` they are is for messages.

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
