"""The matching compiler makes of a large model and a base profile multipliers, and a model."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from flerm_fx.align.aligning import OnUnmatched
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.align.patterns import Mapped
from flerm_fx.assign.matches import find_matches, held_as_matched
from flerm_fx.assign.multipliers import assigned
from flerm_fx.assign.predictor import Predictor, profile_and_law
from flerm_fx.assign.way import Settling
from flerm_fx.boundary.options import checked, choice, flag
from flerm_fx.boundary.progress import Progress
from flerm_fx.boundary.warned import heard, warn
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.checking import measurable_twin
from flerm_fx.emit.compiled import CompiledModel
from flerm_fx.emit.emitters import EMITTERS, Emit
from flerm_fx.emit.first_steps import watch
from flerm_fx.emit.module import scales_of
from flerm_fx.emit.recomputed import check_backward
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.emit.undo import undone_on_failure
from flerm_fx.errors import CaptureWarning, InputError, OptimizerError
from flerm_fx.model.copying import copied, refuse_gradient_hooks
from flerm_fx.model.distributed import is_sharded, unwrapped
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import (
    Inputs,
    OutputFn,
    device_of,
    difference,
    last_bit,
    output_of,
    to_device,
)
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.parallel import check_parallel
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.loss import Loss, LossFunction, resolve
from flerm_fx.recipe.multiplier import node_scale
from flerm_fx.recipe.pool import Pool, probe_pool
from flerm_fx.recipe.reflection import OptimizerLike
from flerm_fx.start.precision import is_coarse, on_own_weights, warn_of_rounding
from flerm_fx.start.procedure import MODEL_LOSS, StartProcedure


def compile(
    model: nn.Module,
    base_profile: BaseProfile | Predictor,
    *,
    inputs: Pool | None = None,
    targets: Any = None,
    loss_fn: LossFunction | str | None = None,
    optimizer: OptimizerLike | Sequence[OptimizerLike] | None = None,
    output_fn: OutputFn | None = None,
    emit: Emit = "graph",
    mapping: Mapped | None = None,
    on_unmatched: OnUnmatched = "error",
    strict: bool = False,
    method: Method = "auto",
    rtol: float = 0.1,
    donate: bool = False,
    copy: bool = False,
    offload: bool = False,
    progress: bool = True,
) -> CompiledModel:
    r"""Give each parameter of a model the multiplier at which it learns as the base's does.

    .. math:: m_l = \rho \frac{\sum_b \mathrm{share}_{b \to l}\, \mathrm{FSLR}_b}{\mathrm{FSLR}_l}

    Both sides are FSLRs of unit updates at the start of training, measured by the same procedure
    (Milsom et al. 2025, section 4). Which base parameters b a parameter answers to follows from the
    structure of the two graphs, with the mass of repeated blocks conserved.

    After a profile that was recorded with ``settle`` steps, the target takes as many, at a first
    guess of its multipliers: those at which its first update is as large as the base's by its
    spectral norm. What is then measured is pooled over parameters at one place of blocks that
    repeat, and drawn to the guess where it is uncertain (:func:`flerm_fx.assign.pooling.pooled`);
    a parameter whose FSLR is zero or rounding has the guess. The factor :math:`\rho` says how many
    times further the target has to go than the base had to (:meth:`BaseProfile.way_from`). It is 1
    unless the target's outputs begin larger than training makes them. While it is above 2, the
    target settles for longer, at most five times as long.

    After ``settle=0``, :math:`\rho` is 1, and a parameter whose FSLR is zero or within its noise on
    either side, or whose gradient is rounding alone, keeps a multiplier of 1. Where gradients are
    of the size of the optimizer's ``eps``, FSLR_l is taken under the multipliers themselves, which
    are solved for by repeated measurements.

    Where an FSLR at the start is *exactly* zero on either side (LoRA's A while B is 0), both sides
    are compared ``resolve_after`` steps later, if the profile was recorded so. The target takes
    these steps under the multipliers so far, so that B walks on it as on the base. On the
    base itself that is exact: its multipliers are 1, and its steps the same. Elsewhere the late
    parameters' own multipliers move these steps too, at second order in the learning rate, so the
    late start is measured again under them until none moves by more than 1 %, at most 8 times.

    A :class:`flerm_fx.ScalingLaw` in place of the profile predicts the multipliers from the
    target's shapes: nothing is measured, and the model may be on the device ``meta``.

    Args:
        model: the target, at its initial weights and in the mode in which it will train. It is
            left as it was, unless ``donate``: simulated steps are taken on its own weights, which
            are put back bit for bit whatever happens, or on a copy.
        base_profile: recorded by :func:`flerm_fx.record` on the base model; or a law, which goes
            through such a base, and needs no ``targets``, ``loss_fn``, ``method`` or ``rtol``.
        inputs: probe pool for this model, as for :func:`flerm_fx.record`; the profile's own if
            None.
        targets: the targets that go with ``inputs``.
        loss_fn: needed if the profile's loss is not in ``torch.nn.functional``.
        optimizer: needed if the profile's is not in ``torch.optim``: an optimizer, its class, or a
            function from parameter groups to one. A list, if the run has several.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor).
        emit: ``"graph"`` for a copy of the model with scale nodes, trained by one optimizer group;
            ``"module"`` for scale nodes on ``model`` itself, as parametrizations that all its other
            methods see too (``generate``, trainers, ``fully_shard``); ``"param_groups"`` to change
            nothing and train ``model`` with :meth:`CompiledModel.param_groups`.
        mapping: base names for target names, where structure cannot decide: as a dict of names of
            parameters or modules, with patterns such as ``{"blocks.*.attn": "layers.*.attention"}``
            or ``{"blocks.{i}": "layers.{i * n // m}"}`` (see
            :func:`flerm_fx.align.patterns.mapped_shares`), or as a function.
        on_unmatched: what becomes of parameters that only one of the models has, such as biases or
            an added head: an ``"error"``, or ``"unit"`` to train the target's with a multiplier of
            1 and leave the base's out, with a warning that counts both.
        strict: refuse matches that something speaks against, in place of a warning.
        method: as for :func:`flerm_fx.measure`.
        rtol: relative standard error to reach of multipliers: what the base's FSLRs leave of it, in
            the middle of them, is that of the target's, and at least the equal share of both.
        donate: give the compiled model the parameters of ``model`` itself, and leave ``model``
            unusable.
        copy: as for :func:`flerm_fx.record`.
        offload: as for :func:`flerm_fx.record`.
        progress: whether to draw a bar in a terminal or a notebook; the logger
            ``flerm_fx`` tells the same at the level ``INFO``.

    Returns:
        A :class:`CompiledModel`, called and trained like ``model``.

    Warns:
        MatchWarning: something speaks against the matches of some parameters; it names each, and
            what else is possible.
        UserWarning: the model is in another mode than the base was recorded in, or has weights in
            half precision and does not run in float32, parameters were left without a counterpart,
            multipliers did not settle or are far from the first guess, or the model's outputs stay
            much larger than the base's.

    Raises:
        MatchError: parameters that structure cannot match, or with ``strict`` not for certain; the
            message names each.
        LawError: parameters that a law does not reach; the message names four at most.
        InputError: unusable inputs or options.
        OptimizerError: a loss or optimizer that the profile cannot name.
        EstimateError, DivergenceError: as for :func:`flerm_fx.record`.

    Example::

        >>> import flerm_fx, torch
        >>> def mlp(width):
        ...     torch.manual_seed(0)
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> small, large = mlp(8), mlp(64)
        >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
        >>> optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> profile = flerm_fx.record(small, optimizer, batches).profile
        >>> compiled = flerm_fx.compile(large, profile)
        >>> x, _ = batches[0]
        >>> bool(torch.allclose(compiled(x), large(x), atol=1e-6))
        True
        >>> all(check.passed for check in compiled.check())
        True
    """
    model = unwrapped(checked("model", model))
    base_profile, law = profile_and_law(base_profile)
    choice("emit", emit, get_args(Emit))
    choice("on_unmatched", on_unmatched, get_args(OnUnmatched))
    choice("method", method, METHODS)
    rtol, donate = checked("rtol", rtol), flag("donate", donate)
    copy, offload = flag("copy", copy), flag("offload", offload)
    strict, told = flag("strict", strict), Progress("compile", progress)
    for name, value in (("output_fn", output_fn), ("mapping", mapping)):
        checked(name, value)
    if isinstance(model, ScaledModel) or scales_of(model):
        raise InputError("the model has scale nodes already; compile it as it was, or fold() it")
    refuse_gradient_hooks(model)
    if donate and not EMITTERS[emit].takes_over:
        raise InputError("donate=True goes with emit='graph', which takes the parameters over")
    with heard() as warned:
        if model.training != base_profile.training:
            mode, base_mode = (
                "training" if training else "evaluation"
                for training in (model.training, base_profile.training)
            )
            warn(
                f"the model is in {mode} mode, and the base was recorded in {base_mode} mode; "
                "dropout and BatchNorm make other functions of them: call .train() or .eval() "
                "before compiling",
                stacklevel=2,
            )
        procedure = _procedure(
            model,
            replace(base_profile, loss=MODEL_LOSS) if law else base_profile,  # it takes no step
            inputs,
            targets,
            loss_fn,
            optimizer,
            output_fn,
            method,
            _share_of_target(base_profile, rtol),
            offload,
        )
        probe_inputs = to_device(procedure.pool[0][0], device_of(model))
        if emit == "module" and is_sharded(model):
            raise InputError(
                f"the weights of {type(model).__name__} are sharded over ranks, and emit='module' "
                "puts scale nodes on whole ones; compile it before fully_shard or "
                "parallelize_module, or use emit='param_groups'"
            )
        check_parallel(model, probe_inputs, output_fn)
        if law:
            twin, measured_on, obstacle = copied(model, on_meta=True), procedure, ""
        else:
            twin, measured_on, obstacle = measurable_twin(lambda: copied(model), procedure)
        with told("capturing the model"):
            captured = capture(
                twin,
                to_device(measured_on.pool[0][0], device_of(model)),
                output_fn,
                original=model,
                on_meta=law is not None,
            )
        emitted = None
        if is_coarse(model) and not obstacle and not law:  # the emitted has the model's own types
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CaptureWarning)  # as above
                emitted = capture(copied(model), probe_inputs, output_fn, original=model)
                emitted = emitted.bound(model)
        shown = emitted or captured
        if emit == "graph" and shown.graph_module is None and not is_sharded(model):
            check_backward(shown.bound(model), probe_inputs)
        if not law:
            captured = on_own_weights(captured, model, measured_on, copy=copy)
        emitted = emitted or captured
        matches = find_matches(base_profile, captured, mapping, on_unmatched, strict=strict)
        held = held_as_matched(base_profile, captured, matches)
        procedure, measured_on = procedure.held_as(held), measured_on.held_as(held)
        if obstacle:
            warn_of_rounding(captured, measured_on, obstacle, stacklevel=2)
        settling: Settling = {}
        if law:
            assignments = law.predicted(captured, matches)
        else:
            with told("measuring the model"):
                assignments, settling = assigned(captured, base_profile, matches, measured_on)
        emitter, scales = EMITTERS[emit], {}
        if emitter.has_nodes:
            run = procedure.optimizers
            scales = {
                a.parameter: node_scale(run.rule(a.parameter), a.multiplier) for a in assignments
            }
        changes = donate or emitter.in_place
        before = _output(emitted, model, probe_inputs) if emitter.in_place else None
        with undone_on_failure(model, _copies(model, scales) if changes else {}):
            skeleton = emitter.skeleton_of(model, donate)
            compiled = CompiledModel(
                None if donate else model,
                skeleton,
                scales,
                matches,
                assignments,
                procedure,
                probe_inputs,
                settling=settling,
                emitter=emitter,
                base_profile=base_profile,
                parameter_graph=capture_graph(captured),
                warned=warned,
                copy=captured.model is not model,
            )
            if before is not None and not before.is_meta:
                after = _output(emitted, model, probe_inputs)
                _check_unchanged(before, after, last_bit(model, before))
            compiled.adopt(emitted, probe_inputs)
            if emitter.has_nodes:
                copy_of = None if donate or skeleton is model else model
                watch(compiled, procedure.optimizers, copy_of)
            return compiled


def _procedure(
    model: nn.Module,
    profile: BaseProfile,
    inputs: Pool | None,
    targets: Any,
    loss_fn: LossFunction | str | None,
    optimizer: OptimizerLike | Sequence[OptimizerLike] | None,
    output_fn: OutputFn | None,
    method: Method,
    rtol: float,
    offload: bool,
) -> StartProcedure:
    if inputs is None and targets is not None:
        raise InputError("targets were given without inputs; pass both, or neither")
    pool = profile.pool if inputs is None else probe_pool(model, inputs, targets)
    loss: Loss | None
    if loss_fn is not None:
        loss = resolve(loss_fn, pool[0][1])
    elif profile.loss == MODEL_LOSS:
        loss = None
    else:
        loss = Loss.from_name(profile.loss)
    run = profile.optimizers
    if optimizer is not None:
        given: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        if len(given) != run.count:
            sources = (run.rules[run.groups(index)[0]].source for index in range(run.count))
            raise InputError(
                f"the base was trained by {run.count} optimizers "
                f"({', '.join(sources)}), and optimizer= has {len(given)}"
            )
        owned = zip(run.rules, run.belongs, strict=True)
        run = replace(run, rules=tuple(rule.built_by(given[owner]) for rule, owner in owned))
    for rule in run.rules:
        if rule.name is None and rule.factory is None:
            raise OptimizerError(
                f"the profile was recorded with {rule.source or 'an optimizer'}, which is not in "
                "torch.optim; pass optimizer=... to flerm_fx.compile"
            )
    return StartProcedure(
        optimizers=run,
        settle=profile.settle,
        warmup=profile.warmup,
        loss=loss,
        pool=pool,
        output_fn=output_fn,
        method=method,
        rtol=rtol,
        seed=profile.seed,
        offload=offload,
    )


def _share_of_target(profile: BaseProfile, rtol: float) -> float:
    """Return the error of a target's FSLRs at which multipliers have ``rtol``, beside the base's
    own.

    Multipliers are uncertain for other reasons by more than the default: initial weights of the
    base move them by a fifth to two fifths.
    """
    errors = [estimate.relative_error for estimate in profile.start.values() if estimate.value]
    of_base = statistics.median(errors) if errors else 0.0
    return math.sqrt(max(rtol**2 - of_base**2, rtol**2 / 2))


def _output(captured: Capture, model: nn.Module, inputs: Inputs) -> Tensor:
    """Return what the model returns, with the random draws that follow."""
    with torch.no_grad(), only(model, captured.hooks), untouched(model):
        return output_of(model, inputs, captured.output_fn)


def _check_unchanged(before: Tensor, after: Tensor, eps: float) -> None:
    """Tell whether a model with scales is still the same function.

    It is not where a module keeps references to its weights, which parametrizations do not reach.
    """
    change = difference(after, before)
    if not change <= eps**0.5:
        raise InputError(
            f"the model's output changes by {change:.1e} of its largest with scale nodes as "
            "parametrizations: some module does not read its weights as attributes. The model is "
            "as it was; use emit='graph' or emit='param_groups'"
        )


def _copies(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Return what a model's parameters hold."""
    held = dict(model.named_parameters())
    return {name: held[name].detach().clone() for name in names}
