"""One measured function-space learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    r"""An FSLR, with how it was found and how far it may be off.

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


def rows(estimates: Mapping[str, Estimate]) -> dict[str, tuple[Any, ...]]:
    """Estimates as plain tuples, which any checkpoint can hold; see :func:`estimates`.

    >>> estimates(rows({"weight": Estimate(2.0, 0.1, "sampled", 4)}))["weight"].samples
    4
    """
    return {name: astuple(estimate) for name, estimate in estimates.items()}


def estimates(rows: Mapping[str, Sequence[Any]]) -> dict[str, Estimate]:
    """What :func:`rows` was given."""
    return {name: Estimate(*row) for name, row in rows.items()}
