"""An assignment says what the compiler decided for one parameter."""

from dataclasses import dataclass
from typing import Literal

from flerm_fx.probe.estimate import Estimate

Status = Literal["matched", "unresolved", "unmatched", "unused", "predicted"]

RESOLVED: tuple[Status, ...] = ("matched", "predicted")
"""The statuses of a multiplier that was found, by measurement or by a law."""


@dataclass(frozen=True)
class Assignment:
    r"""An ``Assignment`` is one parameter's multiplier and where it comes from: a row of the dump.

    .. math:: m_l = \rho \frac{\sum_b \mathrm{share}_{b \to l}\, \mathrm{FSLR}_b}{\mathrm{FSLR}_l}

    Attributes:
        parameter: name of the target's parameter.
        node: name of its ``get_attr`` node in the captured graph; empty without a graph.
        op: the operation it enters first, such as ``"aten.linear"``.
        shape: its shape.
        base: the base parameters it answers to, each with the share of mass taken from it.
        base_fslr: the FSLR to be met, ``sum(share * FSLR)`` over ``base``; for a start after
            ``settle`` steps times the geometric mean of :meth:`flerm_fx.BaseProfile.way_from` over
            the measured ones, and pooled over the parameters of its role.
        target: FSLR measured on the target for a unit update.
        multiplier: the learning-rate multiplier m_l; of a settled start, pooled over its role
            (:func:`flerm_fx.assign.pooling.pooled`).
        status: ``"matched"``; ``"unresolved"`` where an FSLR is zero or within its noise, and the
            multiplier is 1, or of a settled start the first guess; ``"unmatched"`` where the base
            has no counterpart, with a multiplier of 1; ``"unused"`` where the output does not
            depend on the parameter; ``"predicted"`` where a :class:`flerm_fx.ScalingLaw` gave the
            multiplier, and ``target`` is what it makes of the base's FSLR.
        after: steps after the start at which both FSLRs were measured; 0 for the start itself, and
            the profile's ``resolve_after`` where an FSLR at the start is exactly 0 on either side.
        error: relative standard error of ``base_fslr / target``: that of the estimates and, where
            several bases were recorded, of the mean over them.
        interval: of a predicted multiplier, at 90 %; None of a measured one.

    Example::

        >>> import flerm_fx, torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> small, large, x, y = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(8, 4), torch.ones(8)
        >>> adam = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> profile = flerm_fx.record(small, adam, x, y.long(), settle=0).profile
        >>> row = flerm_fx.compile(large, profile).assignments[0]
        >>> row.parameter, row.base, row.status
        ('weight', (('weight', 1.0),), 'matched')
    """

    parameter: str
    node: str
    op: str
    shape: tuple[int, ...]
    base: tuple[tuple[str, float], ...]
    base_fslr: float
    target: Estimate
    multiplier: float
    status: Status
    after: int = 0
    error: float = 0.0
    interval: tuple[float, float] | None = None
