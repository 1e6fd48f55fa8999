"""Multipliers are assigned at which a captured model's FSLRs are those of the base."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import fx

from flerm_fx.align.aligning import Match
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.align.roles import roles
from flerm_fx.assign.assignment import Assignment, Status
from flerm_fx.assign.matches import wanted_estimate
from flerm_fx.assign.pooling import pooled, warn_of_implausible
from flerm_fx.assign.way import Settling, Way
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.ops.scale import parameter_nodes
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.estimate import NOT_MEASURED, Estimate
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.multiplier import degree
from flerm_fx.start.procedure import StartProcedure
from flerm_fx.start.start import answers_to, measure_settling, measure_start, start_of

NOISE = 2.0
"""An FSLR below this many standard errors is not told from zero."""

ROUNDING = 8.0
"""An FSLR below this many machine epsilons of the model's largest is rounding: an attention key's
bias, which softmax does not see, was measured at 0.02 to 0.4 epsilons in float32."""

MEASUREMENTS = 8
"""How often a start that multipliers move is measured at most. A parameter behind one zero takes 2
late measurements, up to 4 where a step is not small beside the weights; one behind two zeros takes
4 or 5, since the multiplier of what lies between them scales its late FSLR at first order."""

COARSE = 0.2
"""Relative error of the measurements that only tell how an FSLR answers to a multiplier."""

SETTLED = 1e-2
"""Relative change of a multiplier that ends the measurements of a late start."""

SETTLED_BESIDE_EPS = 1e-3
"""The same for a start with gradients of the size of the optimizer's ``eps``; at least the last bit
of the weights, in which updates are measured."""

_Assigned = tuple[Assignment, ...]


def assigned(
    captured: Capture,
    profile: BaseProfile,
    matches: Mapping[str, Match],
    procedure: StartProcedure,
) -> tuple[_Assigned, Settling]:
    r"""Find each parameter's multiplier.

    .. math:: m_l = \rho \frac{\sum_b \mathrm{share}_{b \to l}\, \mathrm{FSLR}_b}
                           {\mathrm{FSLR}_l(m)}

    After ``settle`` steps the target is measured where they have led it under the multipliers of
    :class:`flerm_fx.assign.way.Way`, and multipliers are pooled over the parameters of a role
    (:func:`flerm_fx.assign.pooling.pooled`). At the late start, and where gradients are of the size
    of the optimizer's ``eps``, which a scale node of s turns into ``eps / s``, the target's FSLR
    depends on the multipliers themselves, and is measured again until the two agree.

    The factor :math:`\rho` is how much further the target has to go than the base at the step that
    is measured, :meth:`flerm_fx.BaseProfile.way_from`; at the start, the geometric mean over all of
    these steps, since a run has one rate for the whole way. It is 1 unless outputs begin larger
    than training makes them. While it is above 2 on the last of them, the target goes on for as
    many steps again, and its start is the last such round.

    Args:
        captured: the target, a copy that the caller owns.
        profile: of the base.
        matches: the base parameters that each of the target's answers to.
        procedure: how to measure the target's start.

    Returns:
        The assignment of each parameter, and the multipliers of each measured step before the
        start.

    Warns:
        UserWarning: multipliers did not settle or are implausible, or outputs are much larger than
            the base's.
    """
    prober = CaptureProber(captured)
    measure = functools.partial(measure_start, captured, prober=prober)
    late = dict.fromkeys(captured.parameters, NOT_MEASURED)
    assign = functools.partial(_assign, captured, profile, matches)
    way: Way | None = None
    of_role: dict[str, object] = {}
    if procedure.settle:
        shapes = {name: tuple(p.shape) for name, p in captured.parameters.items()}
        run, own_roles = procedure.optimizers, roles(capture_graph(captured), shapes)
        of_role = {name: (role, run.index(name)) for name, role in own_roles.items()}
        way = Way(profile, matches, procedure, sum(map(math.prod, shapes.values())))
    moments = measure_settling(
        captured,
        procedure,
        way.follow if way else None,
        prober=prober,
        is_sized=way.looks_at if way else lambda _: False,
    ).moments
    start = start_of(moments, procedure)
    if way:
        way.warn(stacklevel=3)

    def rows_of(
        start: Mapping[str, Estimate], late: Mapping[str, Estimate]
    ) -> tuple[Assignment, ...]:
        rows = assign(profile.start, way.length if way else 1.0, start, late)
        return pooled(rows, of_role, way.expected) if way else rows

    rows = rows_of(start, late)
    if way:
        sized = all(degree(rule) == 0 for rule in procedure.optimizers.rules)
        warn_of_implausible(rows, way.expected, of_role, sized=sized, stacklevel=3)
    moving: frozenset[str] = frozenset()
    if not procedure.settle:
        matched = {row.parameter for row in rows if row.status == "matched"}
        moving = answers_to(captured, procedure, _multipliers(rows)) & matched
    if moving:
        again = _Again(captured, procedure, prober, {name: start[name] for name in moving})

        def at_start(multipliers: Mapping[str, float]) -> _Assigned:
            nonlocal start
            start = {**start, **again(multipliers)}
            return rows_of(start, late)

        last_bit = max(torch.finfo(captured.parameters[name].dtype).eps for name in moving)
        tolerance = max(SETTLED_BESIDE_EPS, last_bit)
        rows = _settled(rows, at_start, tolerance, "start", _BESIDE_EPS, secant=True)

    def at_late_start(multipliers: Mapping[str, float]) -> _Assigned:
        return rows_of(start, measure(procedure.after(profile.resolve_after), multipliers))

    if any(row.after for row in rows):
        rows = _settled(rows, at_late_start, SETTLED, "late start", _LATE)
    return rows, way.settling if way else {}


class _Again:
    r"""An ``_Again`` measures FSLRs of the first step under other multipliers, at the cost of few
    draws.

    .. math:: \mathrm{FSLR}(m) = \mathrm{FSLR}(a) \frac{\mathrm{coarse}(m)}{\mathrm{coarse}(a)}

    A coarse measurement takes the same random cotangents at m and at a. Where the two updates are
    nearly the same, so are its errors, and the ratio has next to none: about the logarithm of the
    ratio times the error of one. Where that is more than ``rtol``, m is measured in full, and is a
    from there on.

    Args:
        captured: the target.
        procedure: of the measurements in full.
        prober: of ``captured``.
        start: the parameters to measure, as measured in full at multipliers of 1.
    """

    def __init__(
        self,
        captured: Capture,
        procedure: StartProcedure,
        prober: CaptureProber,
        start: Mapping[str, Estimate],
    ) -> None:
        self._measure = functools.partial(
            measure_start, captured, prober=prober, names=frozenset(start)
        )
        self._full = procedure
        self._coarse = None
        if procedure.method in ("auto", "sampled") and procedure.rtol < COARSE:
            self._coarse = replace(procedure, method="sampled", rtol=COARSE)
        self._anchor = start, self._measure(self._coarse) if self._coarse else start

    def __call__(self, multipliers: Mapping[str, float]) -> Mapping[str, Estimate]:
        """Return the parameters' FSLRs under these multipliers."""
        if self._coarse is None:
            return self._measure(self._full, multipliers)
        coarse = self._measure(self._coarse, multipliers)
        full, before = self._anchor
        ratios = {n: e.over_same_draws(before[n]) for n, e in coarse.items() if before[n].value}
        if len(ratios) < len(full) or max(e for _, e in ratios.values()) > self._full.rtol:
            full = self._measure(self._full, multipliers)
            self._anchor = full, coarse
            return full
        return {name: full[name].scaled(*ratios[name]) for name in full}


_BESIDE_EPS = "gradients are of the size of the optimizer's eps, which the scales move"
_LATE = (
    "the steps that it takes change with them; record the base with a smaller resolve_after or "
    "learning rate"
)


def _settled(
    rows: _Assigned,
    measured: Callable[[Mapping[str, float]], _Assigned],
    tolerance: float,
    name: str,
    why: str,
    *,
    secant: bool = False,
) -> _Assigned:
    """Find the multipliers of a start that moves with them: those at which it gives them back."""
    before = dict.fromkeys(_multipliers(rows), 1.0)
    given = at = _multipliers(rows)
    moving: list[str] = []
    for _ in range(MEASUREMENTS):
        rows = measured(at)
        given_back = _multipliers(rows)
        moving = [n for n, m in given_back.items() if not math.isclose(m, at[n], rel_tol=tolerance)]
        if not moving:
            return rows
        following = given_back
        if secant:
            following = {
                n: _fixed_point(before[n], given[n], at[n], given_back[n]) for n in given_back
            }
        before, given, at = at, given_back, following
    warn(
        f"the {name} did not settle: after {MEASUREMENTS} measurements the multipliers of "
        f"{', '.join(map(repr, moving))} still move by more than {tolerance:.1%}, since {why}. "
        "check() says how far off they are",
        stacklevel=4,
    )
    return rows


def _fixed_point(x: float, y: float, other_x: float, other_y: float) -> float:
    """Return where a power law through two points, of a degree from -1 to 0, is the identity.

    A step is in proportion to a gradient far below ``eps``, and does not see the size of one far
    above it: the multiplier that follows falls with the one that it is measured at, or stays.

    >>> round(_fixed_point(1.0, 16.0, 16.0, 1.0), 6)
    4.0
    """
    moved = math.log(other_x / x)
    degree = min(0.0, max(-1.0, math.log(other_y / y) / moved)) if moved else 0.0
    return float(other_x * (other_y / other_x) ** (1 / (1 - degree)))


def _multipliers(rows: _Assigned) -> dict[str, float]:
    return {row.parameter: row.multiplier for row in rows}


def _assign(
    captured: Capture,
    profile: BaseProfile,
    matches: Mapping[str, Match],
    base_start: Mapping[str, Estimate],
    way: float,
    start: Mapping[str, Estimate],
    late: Mapping[str, Estimate],
) -> _Assigned:
    """Make multipliers of the two sides' FSLRs, which are late ones where one at the start is
    exactly 0.

    At the start the target's are to be ``way`` times the base's.
    """
    nodes = {
        node.meta["parameter"]: node
        for node in (captured.graph_module.graph.nodes if captured.graph_module else ())
        if "parameter" in node.meta
    }
    # Those that the measured output depends on: the graph may return others, too.
    measured = set(captured.modules)
    if captured.probe_module is not None:
        read = parameter_nodes(captured.probe_module.graph)
        measured = {
            name for name, own_nodes in read.items() if any(node.users for node in own_nodes)
        }
    sides = {0: (base_start, start)}
    if profile.late:
        sides[profile.resolve_after] = (profile.late, late)
    # Where a mean over bases is uncertain, pooling trusts it less in place of not at all.
    noise = 1.0 if profile.settle else NOISE
    rounding = floor(captured)
    above_noise = {
        after: (resolved(base, rounding, noise), resolved(target, rounding, noise))
        for after, (base, target) in sides.items()
    }
    rows = []
    run = profile.optimizers
    for name, parameter in captured.parameters.items():
        node = nodes.get(name)
        used = name in measured
        base = matches[name].base
        status: Status = "unmatched" if used and not base else "unresolved" if used else "unused"
        at_zero = not (start[name].value and all(base_start[b].value for b, _ in base))
        after = profile.resolve_after if profile.late and used and at_zero else 0
        base_fslrs, fslrs = sides[after]
        base_resolved, target_resolved = above_noise[after]
        to_meet = wanted_estimate(run, base, base_fslrs) * (1.0 if after else way)
        is_matched = name in target_resolved and any(b in base_resolved for b, _ in base)
        target = fslrs[name]
        ratio, error = to_meet.over(target) if target.value else (1.0, 0.0)
        rows.append(
            Assignment(
                parameter=name,
                node=node.name if node is not None else "",
                op=_first_op(node),
                shape=tuple(parameter.shape),
                base=base,
                base_fslr=to_meet.value,
                target=target,
                multiplier=ratio if is_matched else 1.0,
                status="matched" if is_matched else status,
                after=after,
                error=error,
            )
        )
    return tuple(rows)


def resolved(estimates: Mapping[str, Estimate], rounding: float, noise: float = NOISE) -> set[str]:
    """Return the parameters whose FSLR is above some standard errors and a part of the largest."""
    least = rounding * max(e.value for e in estimates.values())
    return {n for n, e in estimates.items() if e.is_above(noise, least)}


def floor(captured: Capture) -> float:
    """Return the part of the largest FSLR below which one is rounding, of the coarsest of its
    types.
    """
    return ROUNDING * max(torch.finfo(p.dtype).eps for p in captured.parameters.values())


def _first_op(node: fx.Node | None) -> str:
    if node is None or not node.users:
        return ""
    target = next(iter(node.users)).target
    packet = getattr(target, "overloadpacket", target)
    return str(packet) if hasattr(target, "overloadpacket") else getattr(packet, "__name__", "")
