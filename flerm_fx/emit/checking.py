"""The check measures the FSLRs of a compiled model again and compares them with what they were to
meet.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.way import Settling
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.model.distributed import is_sharded
from flerm_fx.model.inputs import device_of, to_device
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.moment import Moment
from flerm_fx.start.precision import is_coarse, measurable
from flerm_fx.start.procedure import StartProcedure, batch_loss
from flerm_fx.start.start import measure_settling, measure_start, start_of

CHECK_ERRORS = 4.0
"""Standard errors that :func:`checked_start` allows: with hundreds of parameters, 3 would
fail a right one now and then, 4 does once in 16,000."""

CHECK_SEED = 1_000_003
"""Of the random cotangents, others than those that the multipliers were measured with."""

CHECK_RTOL = 1e-2
"""Relative difference that :func:`checked_start` allows beyond the standard errors: Muon's
iteration in bfloat16 answers a scale with 0.4 %, an eps beside small gradients with 0.2 %."""


@dataclass(frozen=True)
class Check:
    """A ``Check`` holds one parameter's FSLR, measured again on the compiled model.

    Attributes:
        parameter: its name.
        expected: the base FSLR that it was to meet.
        measured: the FSLR of its unit update in the compiled model.
        tolerance: the difference allowed for sampling errors and rounding.
        passed: whether they agree; True for parameters that were not matched.

    Example::

        >>> import flerm_fx, torch
        >>> _ = torch.manual_seed(0)
        >>> small, large, x, y = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(8, 4), torch.ones(8)
        >>> adam = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> profile = flerm_fx.record(small, adam, x, y.long(), settle=0).profile
        >>> check = flerm_fx.compile(large, profile).check()[0]
        >>> abs(float(check.measured) - check.expected) <= check.tolerance, check.passed
        (True, True)
    """

    parameter: str
    expected: float
    measured: Estimate
    tolerance: float
    passed: bool


def checked_start(
    model: ScaledModel,
    procedure: StartProcedure,
    assignments: Sequence[Assignment],
    settling: Settling,
    *,
    copy: bool,
) -> tuple[Check, ...]:
    """Repeat the start on what was emitted, and compare each FSLR with the base's.

    Args:
        model: the compiled model.
        procedure: by which the start is measured.
        assignments: of each parameter, as compiled.
        settling: the multipliers of the way to the start.
        copy: whether to walk on a copy of the weights in any case. Without it there is one only of
            a model that is sharded or in half precision, or in another state than at compilation.

    Returns:
        A check for each assignment; see :meth:`flerm_fx.CompiledModel.check`.
    """
    multipliers: dict[str, float] | None = model.multipliers
    here = None if copy or is_coarse(model) or is_sharded(model) else model.trained_here()
    if here is not None:
        captured, multipliers = here, None if model.emitter.has_nodes else multipliers
    else:
        twin, procedure, _ = measurable_twin(lambda: _trainable(model), procedure)
        inputs = to_device(procedure.pool[0][0], device_of(twin))
        adopted = None if is_coarse(model) and not is_coarse(twin) else model.adopted(twin)
        captured = adopted or capture(twin, inputs, procedure.output_fn, original=model.skeleton)
        if model.emitter.has_nodes and captured.graph_module is not None:
            captured, multipliers = model.trained(captured), None
    measured = {
        after: measure_start(captured, procedure.after(after), multipliers, draw_seed=CHECK_SEED)
        for after in {row.after for row in assignments if row.after or not settling}
    }
    if settling:
        # Through scale nodes, what is on top of the last multipliers.
        held = model.multipliers if multipliers is None else dict.fromkeys(multipliers, 1.0)

        def follow(step: int, _: Moment) -> Mapping[str, float] | None:
            taken = settling.get(step)
            return taken and {name: m / held[name] for name, m in taken.items()}

        moments = measure_settling(
            captured, procedure, follow, draw_seed=CHECK_SEED, is_sized=lambda _: False
        ).moments
        measured[0] = start_of(moments, procedure)
    # Through scale nodes the unit update of w already moves θ by m; in groups it does not.
    factors = multipliers or dict.fromkeys(model.multipliers, 1.0)
    # Stored weights, and effective ones made of them, are rounded once more each.
    rounding = 2 * max(torch.finfo(p.dtype).eps for p in model.parameters())
    return tuple(
        _check(row, measured[row.after][row.parameter], factors[row.parameter], rounding)
        for row in assignments
    )


def _trainable(model: ScaledModel) -> nn.Module:
    """Return a plain copy, of which those parameters train that have a multiplier."""
    twin = model.plain()
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in model.multipliers)
    return twin


def measurable_twin(
    copy: Callable[[], nn.Module], procedure: StartProcedure
) -> tuple[nn.Module, StartProcedure, str]:
    """Return a copy to measure on, the procedure for it, and why it is not in float32 if it should
    be.
    """
    twin, pool, obstacle = measurable(
        copy,
        procedure.pool,
        lambda model, batch: batch_loss(model, batch, procedure.loss, procedure.output_fn),
    )
    return twin, replace(procedure, pool=pool), obstacle


def _check(row: Assignment, unit: Estimate, factor: float, rounding: float) -> Check:
    measured = unit * factor
    errors = measured.joint_error(row.target * row.multiplier)
    tolerance = CHECK_ERRORS * errors + (CHECK_RTOL + rounding) * row.base_fslr
    passed = row.status != "matched" or abs(measured.value - row.base_fslr) <= tolerance
    return Check(row.parameter, row.base_fslr, measured, tolerance, passed)
