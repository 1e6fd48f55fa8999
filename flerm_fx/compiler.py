"""The matching compiler: a large model and a base profile become multipliers, and a model."""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, fx, nn

from flerm_fx.align.aligning import Match, OnUnmatched
from flerm_fx.align.doubts import Doubt, doubts_of
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.align.patterns import Mapped
from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.matches import held_as_matched, matched
from flerm_fx.assign.multipliers import assigned
from flerm_fx.assign.predictor import Predictor
from flerm_fx.assign.way import Settling
from flerm_fx.boundary.options import checked, choice, flag, instance, integer
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture
from flerm_fx.compat import pytree
from flerm_fx.dump import Format, Level, dump
from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.emitters import EMITTERS, Emit
from flerm_fx.emit.first_steps import watch
from flerm_fx.emit.graph import GraphEmitter
from flerm_fx.emit.module import scales_of
from flerm_fx.emit.overrides import Overrides, overrides
from flerm_fx.emit.scaled import Held, ScaledModel
from flerm_fx.emit.undo import undone_on_failure
from flerm_fx.errors import CaptureWarning, InputError, OptimizerError
from flerm_fx.model.copying import copied, refuse_gradient_hooks
from flerm_fx.model.distributed import is_sharded, unwrapped, whole
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import (
    Inputs,
    OutputFn,
    call_arguments,
    device_of,
    difference,
    last_bit,
    output_of,
    to_device,
)
from flerm_fx.model.untouched import untouched
from flerm_fx.ops.scale import is_scale
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.profile.profile import LOAD, BaseProfile
from flerm_fx.recipe.loss import Loss, LossFunction, resolve
from flerm_fx.recipe.multiplier import group_settings, node_multiplier, node_scale
from flerm_fx.recipe.pool import Pool, probe_pool
from flerm_fx.recipe.reflection import OptimizerLike
from flerm_fx.start.precision import is_coarse, measurable, warn_of_rounding
from flerm_fx.start.procedure import MODEL_LOSS, StartProcedure, batch_loss
from flerm_fx.start.rounding import lost_in_rounding
from flerm_fx.start.start import Moment, measure_settling, measure_start, start_of

if TYPE_CHECKING:
    import networkx as nx

CHECK_ERRORS = 4.0
"""Standard errors that :meth:`CompiledModel.check` allows: with hundreds of parameters, 3 would
fail a right one now and then, 4 does once in 16,000."""

CHECK_SEED = 1_000_003
"""Of the random cotangents, others than those that the multipliers were found with."""

CHECK_RTOL = 1e-2
"""Relative difference that :meth:`CompiledModel.check` allows beyond the standard errors: Muon's
iteration in bfloat16 answers a scale with 0.4 %, an eps beside small gradients with 0.2 %."""


@dataclass(frozen=True)
class Check:
    """One parameter's FSLR, measured again on the compiled model.

    Attributes:
        parameter: its name.
        expected: the base FSLR that it was to meet.
        measured: the FSLR of its unit update in the compiled model.
        tolerance: the difference allowed for sampling errors and rounding.
        passed: whether they agree; True for parameters that were not matched.
    """

    parameter: str
    expected: float
    measured: Estimate
    tolerance: float
    passed: bool


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
    rtol: float = 0.05,
    donate: bool = False,
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
    a parameter whose FSLR is zero or rounding has the guess. The factor :math:`\rho` is how much
    further the target has to go, :meth:`BaseProfile.way_from`: 1 unless its outputs begin larger
    than training makes them. While it is above 2 the target settles for longer, at most five times
    as long.

    After ``settle=0``, :math:`\rho` is 1, and a parameter whose FSLR is zero or within its noise on
    either side, or whose gradient is rounding alone, keeps a multiplier of 1. Where gradients are
    of the size of the optimizer's ``eps``, FSLR_l is taken under the multipliers themselves, which
    are solved for by repeated measurements.

    Where an FSLR at the start is *exactly* zero on either side (LoRA's A while B is 0), both sides
    are compared ``resolve_after`` steps later, if the profile was recorded so. The target takes
    these steps under the multipliers found so far, so that B walks on it as on the base. On the
    base itself that is exact: its multipliers are 1, and its steps the same. Elsewhere the late
    parameters' own multipliers move these steps too, at second order in the learning rate, so the
    late start is measured again under them until none moves by more than 1 %, at most 8 times.

    A :class:`flerm_fx.ScalingLaw` in place of the profile predicts the multipliers from the
    target's shapes: nothing is measured, and the model may be on the device ``meta``.

    Args:
        model: the target, at its initial weights and in the mode in which it will train. It is
            left as it was, unless ``donate``.
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
        rtol: as for :func:`flerm_fx.measure`.
        donate: give the compiled model the parameters of ``model`` itself, and leave ``model``
            unusable; a copy is made only while measuring.

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
        LawError: parameters that a law does not reach; the message names each.
        InputError: unusable inputs or options.
        OptimizerError: a loss or optimizer that the profile cannot name.
        EstimateError, DivergenceError: as for :func:`flerm_fx.record`.

    Example::

        >>> import flerm_fx, torch
        >>> def mlp(width):
        ...     torch.manual_seed(0)
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> small, large = mlp(8), mlp(64)
        >>> x, y = torch.randn(16, 4), torch.randint(3, (16,))
        >>> optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> profile = flerm_fx.record(small, optimizer, x, y).profile
        >>> compiled = flerm_fx.compile(large, profile, method="exact")
        >>> bool(torch.allclose(compiled(x), large(x), atol=1e-6))
        True
        >>> all(check.passed for check in compiled.check())
        True
    """
    model = unwrapped(checked("model", model))
    law = base_profile if isinstance(base_profile, Predictor) else None
    base_profile = instance(
        "base_profile", law.profile if law else base_profile, BaseProfile, "a BaseProfile", LOAD
    )
    choice("emit", emit, get_args(Emit))
    choice("on_unmatched", on_unmatched, get_args(OnUnmatched))
    choice("method", method, METHODS)
    rtol, donate = checked("rtol", rtol), flag("donate", donate)
    strict = flag("strict", strict)
    for name, value in (("output_fn", output_fn), ("mapping", mapping)):
        checked(name, value)
    if isinstance(model, ScaledModel) or scales_of(model):
        raise InputError("the model has scale nodes already; compile it as it was, or fold() it")
    refuse_gradient_hooks(model)
    if donate and emit != "graph":
        raise InputError("donate=True goes with emit='graph', which takes the parameters over")
    if model.training != base_profile.training:
        mode, base_mode = (
            "training" if training else "evaluation"
            for training in (model.training, base_profile.training)
        )
        warnings.warn(
            f"the model is in {mode} mode, and the base was recorded in {base_mode} mode; dropout "
            "and BatchNorm make other functions of them: call .train() or .eval() before compiling",
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
        rtol,
    )
    probe_inputs = to_device(procedure.pool[0][0], device_of(model))
    if law:
        twin, measured_on, obstacle = copied(model, on_meta=True), procedure, ""
    else:
        twin, measured_on, obstacle = _measurable(lambda: copied(model), procedure)
    captured = capture(
        twin,
        to_device(measured_on.pool[0][0], device_of(model)),
        output_fn,
        original=model,
        on_meta=law is not None,
    )
    emitted = captured
    if is_coarse(model) and not obstacle and not law:  # what is emitted has the model's own types
        twin = copied(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptureWarning)  # as above
            emitted = capture(twin, probe_inputs, output_fn, original=model)
    matches = matched(base_profile, captured, mapping, on_unmatched, strict=strict)
    held = held_as_matched(base_profile, captured, matches)
    procedure, measured_on = procedure.held_as(held), measured_on.held_as(held)
    if obstacle:
        warn_of_rounding(captured, measured_on, obstacle, stacklevel=2)
    settling: Settling = {}
    if law:
        assignments = law.predicted(captured, matches)
    else:
        assignments, settling = assigned(captured, base_profile, matches, measured_on)
    emitter, scales = EMITTERS[emit], {}
    if emitter.has_nodes:
        run = procedure.optimizers
        scales = {a.parameter: node_scale(run.rule(a.parameter), a.multiplier) for a in assignments}
    changes = donate or emitter.in_place
    before = _output(emitted, model, probe_inputs) if emitter.in_place else None
    with undone_on_failure(model, _copies(model, twin, scales) if changes else {}):
        skeleton = emitter.skeleton_of(model, twin, donate)
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
        )
        if before is not None and not before.is_meta:
            after = _output(emitted, model, probe_inputs)
            _check_unchanged(before, after, last_bit(model, before))
        compiled.adopt(emitted, probe_inputs)
        if emitter.has_nodes:
            copy_of = model if skeleton is twin else None
            watch(compiled, procedure.optimizers, copy_of)
        return compiled


class CompiledModel(ScaledModel):
    """A model with its multipliers, and how they were found; made by :func:`compile`.

    Call it, train it and save it like the model it was made from. With ``emit="graph"`` its
    parameters are the stored weights w = θ / s of the scale nodes: train them with one optimizer
    group at the base's learning rate.

    Attributes:
        multipliers: learning-rate multiplier m_l of each trainable parameter.
        matches: the base parameters that each answers to, with shares.
        assignments: all that was found of each parameter, in execution order.
        scales: factor s_l = m_l^(1/(1+p)) of each scale node, p the optimizer's degree; empty for
            ``emit="param_groups"``.
    """

    matches: dict[str, Match]
    assignments: tuple[Assignment, ...]
    procedure: StartProcedure
    _probe_inputs: Inputs
    _settling: Settling
    _base_profile: BaseProfile | None
    _parameter_graph: nx.DiGraph | None
    _model: Callable[[], nn.Module | None]

    def __init__(
        self,
        model: nn.Module | None,
        skeleton: nn.Module,
        scales: Mapping[str, float],
        matches: Mapping[str, Match],
        assignments: tuple[Assignment, ...],
        procedure: StartProcedure,
        probe_inputs: Inputs,
        *,
        settling: Settling | None = None,
        emitter: type[Emitter] = GraphEmitter,
        base_profile: BaseProfile | None = None,
        parameter_graph: nx.DiGraph | None = None,
    ) -> None:
        super().__init__(skeleton, scales, emitter)
        # Not by setattr, which would refuse the name of a member of the model.
        self.__dict__.update(
            matches=dict(matches),
            assignments=assignments,
            procedure=procedure,
            _probe_inputs=probe_inputs,
            _settling=settling or {},
            _base_profile=base_profile,
            _parameter_graph=parameter_graph,
            _model=_gone if model is None else weakref.ref(model),
        )

    @property
    def base_profile(self) -> BaseProfile | None:
        """The profile of the base that the multipliers are relative to."""
        return self._base_profile

    @property
    def multipliers(self) -> dict[str, float]:
        """Learning-rate multiplier of each trainable parameter, in execution order."""
        return {a.parameter: a.multiplier for a in self.assignments}

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """The matches that something speaks against, and what else was possible."""
        return doubts_of(self.matches)

    def rescale(
        self, scales: Mapping[str, float], multipliers: Mapping[str, float] | None = None
    ) -> None:
        """Change the scales of the nodes, and the multipliers that they stand for."""
        rule = self.procedure.optimizers.rule
        meant = {name: node_multiplier(rule(name), s) for name, s in scales.items()}
        super().rescale(scales, {**meant, **(multipliers or {})})

    def hold(self, held: Held) -> None:
        """Go back to what :meth:`held` returned."""
        super().hold(held)
        self.__dict__["assignments"] = tuple(
            replace(row, multiplier=held.multipliers[row.parameter]) for row in self.assignments
        )

    @property
    def graph_module(self) -> fx.GraphModule | None:
        """The graph for the probe's shape of input in the present mode; None on the eager path.

        Scale nodes carry ``meta["parameter"]``, ``"shape"``, ``"multiplier"``, ``"base"``,
        ``"base_fslr"``, ``"fslr"`` and ``"after"``.
        """
        return self.graph_for(*call_arguments(to_device(self._probe_inputs, device_of(self))))

    def annotate(self, graph_module: fx.GraphModule, multipliers: Mapping[str, float]) -> None:
        """Write each parameter's assignment to its scale node."""
        rows = {a.parameter: a for a in self.assignments}
        for node in graph_module.graph.nodes:
            if is_scale(node):
                row = rows[node.meta["parameter"]]
                node.meta.update(
                    multiplier=multipliers[row.parameter],
                    base=row.base,
                    base_fslr=row.base_fslr,
                    fslr=row.target,
                    after=row.after,
                )

    def param_groups(
        self, lr: float, weight_decay: float | None = None, *, optimizer: int = 0
    ) -> list[dict[str, Any]]:
        """Parameter groups that train the *original* model as the scale nodes train this one.

        Parameters with equal multipliers share a group; each group has ``lr * m``, and weight
        decay and eps changed so that the training is the same (see
        :func:`flerm_fx.recipe.multiplier.group_settings`). Where the base's parameter groups had
        rates, decays or other settings of their own, each parameter has those of its counterpart,
        its rate in proportion to ``lr``. Nothing in the model changes.

        Args:
            lr: the base's learning rate, of its first parameter group.
            weight_decay: in place of the base's, in the groups that have one if some have none;
                None for the base's own.
            optimizer: which of the base's optimizers the groups are for, where it had several.

        Raises:
            InputError: the original model is gone (donated or deleted), a learning rate that is
                not above 0, or an optimizer that the base did not have.

        Example::

            >>> import flerm_fx, torch
            >>> _ = torch.manual_seed(0)
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> x, y = torch.randn(16, 4), torch.randint(3, (16,))
            >>> adam = torch.optim.AdamW(small.parameters(), lr=1e-3)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, x, y).profile)
            >>> optimizer = torch.optim.AdamW(compiled.param_groups(lr=1e-3), lr=1e-3)
            >>> sum(len(group["params"]) for group in optimizer.param_groups)
            2
        """
        model = self._model()
        if self.emitter.in_place:
            raise InputError(
                "the model that was compiled has scale nodes now: train it with base_groups(lr), "
                "or compile it with emit='param_groups'"
            )
        if model is None:
            raise InputError(
                "the model that was compiled is gone (donated or deleted), so it has no "
                "parameters to group; keep it, or train the compiled model itself"
            )
        return self._groups(model, self.multipliers, lr, weight_decay, optimizer)

    def base_groups(
        self, lr: float, weight_decay: float | None = None, *, optimizer: int = 0
    ) -> list[dict[str, Any]]:
        """Parameter groups that train *this* model, with its scale nodes, as the base was trained.

        They are the base's own groups: rates in proportion to ``lr``, decays, and whatever else
        the base's groups did not share. One group at ``lr`` does the same where the base had one.

        Args:
            lr: the base's learning rate, of its first parameter group.
            weight_decay: as for :meth:`param_groups`.
            optimizer: which of the base's optimizers the groups are for, where it had several.

        Raises:
            InputError: the model has no scale nodes, a learning rate that is not above 0, or an
                optimizer that the base did not have.

        Example::

            >>> import flerm_fx, torch
            >>> _ = torch.manual_seed(0)
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> x, y = torch.randn(16, 4), torch.randint(3, (16,))
            >>> groups = [{"params": [small.weight]}, {"params": [small.bias], "weight_decay": 0.0}]
            >>> adam = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, x, y).profile)
            >>> [group["weight_decay"] for group in compiled.base_groups(lr=1e-3)]
            [0.1, 0.0]
        """
        if not self.emitter.has_nodes:
            raise InputError(
                "the model was compiled without scale nodes (emit='param_groups'), so the base's "
                "groups would train it without multipliers: use param_groups(lr)"
            )
        return self._groups(self, {}, lr, weight_decay, optimizer)

    def _groups(
        self,
        model: nn.Module,
        multipliers: Mapping[str, float],
        lr: float,
        weight_decay: float | None,
        optimizer: int,
    ) -> list[dict[str, Any]]:
        lr, weight_decay = checked("lr", lr), checked("weight_decay", weight_decay)
        optimizer = integer("optimizer", optimizer, 0)
        run = self.procedure.optimizers
        if optimizer >= run.count:
            raise InputError(
                f"there is no optimizer {optimizer}: the base was trained by {run.count}, "
                "counted from 0"
            )
        kinds = run.groups(optimizer)
        rates = run.scaled_to(lr, kinds[0])
        held = [
            parameter
            for name, parameter in model.named_parameters()
            if name in self.multipliers and run.index(name) in kinds
        ]
        _check_moves(held, lr, run.learning_rates[kinds[0]])
        differing = run.differing(optimizer)
        some_decay = any(run.rules[kind].settings.get("weight_decay") for kind in kinds)
        groups: dict[tuple[int, float], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            kind, m = run.index(name), multipliers.get(name, 1.0)
            if name not in self.multipliers or kind not in kinds:
                continue
            if (kind, m) not in groups:
                rule = run.rules[kind]
                own = rule.settings.get("weight_decay")
                replaced = weight_decay if own or not some_decay else None
                groups[kind, m] = {
                    "params": [],
                    **{key: rule.settings[key] for key in differing & rule.settings.keys()},
                    **group_settings(rule, rates[kind], m, replaced),
                }
            groups[kind, m]["params"].append(parameter)
        return list(groups.values())

    def overrides(self, format: Overrides = "json") -> str:
        """The multipliers as text, for a stack that does not import flerm_fx.

        Each parameter's name is matched by one entry, and the entry gives its multiplier.

        Args:
            format: ``"json"``, from name to multiplier; ``"regex"``, JSON from regular expressions
                that match whole names; ``"megatron"``, code of the ``config_overrides`` of
                Megatron-LM, for rates alone, decay being its own affair; ``"param_groups"``, code
                of a function from a model and the base's learning rate to parameter groups, with
                decay and eps as in :meth:`param_groups`.

        Raises:
            InputError: another format, names that are not printable, or ``"param_groups"`` of a run
                with several optimizers.

        Example::

            >>> import flerm_fx, json, torch
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> x, y = torch.randn(16, 4), torch.randint(3, (16,))
            >>> adam = torch.optim.AdamW(small.parameters(), lr=1e-3)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, x, y).profile)
            >>> json.loads(compiled.overrides()) == compiled.multipliers
            True
        """
        choice("format", format, get_args(Overrides))
        groups: list[dict[str, Any]] = []
        if format == "param_groups":
            if self.procedure.optimizers.count > 1:
                raise InputError(
                    "the base was trained by several optimizers, whose groups one function does "
                    "not hold; use param_groups(lr, optimizer=...) or overrides('json')"
                )
            names = {id(parameter): name for name, parameter in self.named_parameters()}
            for group in self._groups(self, self.multipliers, 1.0, None, 0):
                groups.append({**group, "params": [names[id(p)] for p in group["params"]]})
        return overrides(self.multipliers, groups, format)

    def fold(self) -> nn.Module:
        """A plain model of the original class with the scales multiplied into its weights."""
        return self.plain()

    def dump(
        self,
        format: Format = "table",
        path: str | Path | None = None,
        *,
        level: Level = "parameter",
        focus: str | None = None,
    ) -> str:
        """What was decided for each parameter, in execution order, as text.

        Args:
            format: ``"table"``, ``"json"``, ``"html"`` (a report to explore in a browser, with the
                base and its trajectory beside the target), ``"code"`` (the graph's code,
                annotated), a picture of the graph: ``"dot"`` (text), ``"svg"`` or ``"png"`` (drawn
                by Graphviz), or ``"model-explorer"`` (a folder, which ``flerm-fx explore`` opens).
            path: also write it there; a ``"png"`` and a folder go nowhere else.
            level: what a picture shows, each ``"parameter"`` or each ``"op"``.
            focus: a module path, such as ``"blocks.0"``, that a picture or code is confined to.
        """
        return dump(
            self.assignments,
            self.graph_module,
            format,
            path,
            level=level,
            focus=focus,
            inputs=to_device(self._probe_inputs, device_of(self)),
            profile=self._base_profile,
            graph=self._parameter_graph,
            doubts=self.doubts,
        )

    def check(self) -> tuple[Check, ...]:
        r"""Measure the FSLRs again on the compiled model and compare them with the base's.

        The start is repeated on a copy of what was emitted, with one optimizer group for a graph
        and with the parameter groups otherwise, and with other random cotangents. It belongs
        before training: afterwards the start is another. After a profile recorded with
        ``settle``, the steps to the start are repeated with the multipliers of the way there. A
        parameter that was resolved later is measured as late here, after steps with all its
        multipliers. A parameter passes if

        .. math:: |\mathrm{FSLR}_l - \mathrm{FSLR}_{base}| \le
                  4 \sqrt{\sigma_l^2 + (m_l \sigma_{l,compile})^2}
                  + (10^{-2} + 2 \epsilon)\,\mathrm{FSLR}_{base},

        with the machine epsilon of the coarsest weights, which is :math:`2^{-7}` in bfloat16.

        Raises:
            InputError: a law predicted the multipliers, and nothing was measured to compare with.
        """
        if any(row.status == "predicted" for row in self.assignments):
            raise InputError(
                "the multipliers are predicted by a law, so nothing was measured that could be "
                "measured again; law.check() says where the law holds, and compile(model, profile) "
                "measures this model"
            )
        twin, procedure, _ = _measurable(self._trainable, self.procedure)
        inputs = to_device(procedure.pool[0][0], device_of(twin))
        adopted = None if is_coarse(self) and not is_coarse(twin) else self.adopted(twin)
        captured = adopted or capture(twin, inputs, procedure.output_fn, original=self.skeleton)
        multipliers: dict[str, float] | None = self.multipliers
        if self.emitter.has_nodes and captured.graph_module is not None:
            captured, multipliers = self.trained(captured), None
        measured = {
            after: measure_start(
                captured, procedure.after(after), multipliers, draw_seed=CHECK_SEED
            )
            for after in {row.after for row in self.assignments if row.after or not self._settling}
        }
        if self._settling:
            # Through scale nodes, what is on top of the last multipliers.
            held = self.multipliers if multipliers is None else dict.fromkeys(multipliers, 1.0)

            def follow(step: int, _: Moment) -> Mapping[str, float] | None:
                taken = self._settling.get(step)
                return taken and {name: m / held[name] for name, m in taken.items()}

            found = measure_settling(captured, procedure, follow, draw_seed=CHECK_SEED, sized=False)
            measured[0] = start_of(found, procedure)
        # Through scale nodes the unit update of w already moves θ by m; in groups it does not.
        factors = multipliers or dict.fromkeys(self.multipliers, 1.0)
        # Stored weights, and effective ones made of them, are rounded once more each.
        rounding = 2 * max(torch.finfo(p.dtype).eps for p in self.parameters())
        return tuple(
            _check(row, measured[row.after][row.parameter], factors[row.parameter], rounding)
            for row in self.assignments
        )

    def _trainable(self) -> nn.Module:
        """A plain copy, of which those parameters train that have a multiplier."""
        twin = self.plain()
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(name in self.multipliers)
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = pytree.tree_map_only(Tensor, fn, self._probe_inputs)
        self.__dict__["_probe_inputs"] = moved
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference neither copies nor pickles; a copy has no original model.
        return {**super().__getstate__(), "_model": _gone}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__getstate__(), memo)
        return twin


def _check(row: Assignment, unit: Estimate, factor: float, rounding: float) -> Check:
    measured = replace(unit, value=unit.value * factor, stderr=unit.stderr * factor)
    errors = math.hypot(measured.stderr, row.multiplier * row.target.stderr)
    tolerance = CHECK_ERRORS * errors + (CHECK_RTOL + rounding) * row.base_fslr
    passed = row.status != "matched" or abs(measured.value - row.base_fslr) <= tolerance
    return Check(row.parameter, row.base_fslr, measured, tolerance, passed)


def _check_moves(parameters: Sequence[nn.Parameter], lr: float, recorded: float) -> None:
    """Whether steps at a learning rate move anything, where those at the recorded one do.

    At that rate no step is larger than the largest weight, and steps are in proportion to rates.
    """
    last = min((torch.finfo(p.dtype).eps for p in parameters), default=0.0) / 4
    if lr >= recorded * last:
        return
    weights = [whole(parameter.detach()) for parameter in parameters]
    largest = max(float(weight.abs().max()) for weight in weights if weight.numel())
    if all(lost_in_rounding(weight, largest / recorded, lr) for weight in weights):
        raise InputError(
            f"lr is {lr:g}, at which each step is lost in the rounding of the weights; the base "
            f"was recorded at {recorded:g}: pass a rate near it"
        )


def _gone() -> None:
    """What a dead weak reference returns."""


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
    )


def _output(captured: Capture, model: nn.Module, inputs: Inputs) -> Tensor:
    """What the model returns, with the random draws that follow."""
    with torch.no_grad(), only(model, captured.hooks), untouched(model):
        return output_of(model, inputs, captured.output_fn)


def _measurable(
    copy: Callable[[], nn.Module], procedure: StartProcedure
) -> tuple[nn.Module, StartProcedure, str]:
    """A copy to measure on, the procedure for it, and why it is not in float32 if it should be."""
    twin, pool, obstacle = measurable(
        copy,
        procedure.pool,
        lambda model, batch: batch_loss(model, batch, procedure.loss, procedure.output_fn),
    )
    return twin, replace(procedure, pool=pool), obstacle


def _check_unchanged(before: Tensor, after: Tensor, eps: float) -> None:
    """Whether a model with scales is still the same function.

    It is not where a module keeps references to its weights, which parametrizations do not reach.
    """
    change = difference(after, before)
    if not change <= eps**0.5:
        raise InputError(
            f"the model's output changes by {change:.1e} of its largest with scale nodes as "
            "parametrizations: some module does not read its weights as attributes. The model is "
            "as it was; use emit='graph' or emit='param_groups'"
        )


def _copies(model: nn.Module, twin: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """What a model's parameters hold: the copy that was measured, which has its weights again."""
    held = dict((model if is_sharded(model) else twin).named_parameters())
    own = is_sharded(model)
    return {n: held[n].detach().clone() if own else held[n].detach() for n in names}
