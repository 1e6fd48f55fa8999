"""A compiled model knows its multipliers and how they came about, and can be asked for more."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from torch import Tensor, fx, nn

from flerm_fx.align.aligning import Match
from flerm_fx.align.doubts import Doubt, doubts_of
from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.way import Settling
from flerm_fx.boundary.compat import pytree
from flerm_fx.boundary.options import choice, flag
from flerm_fx.boundary.progress import Progress
from flerm_fx.dump import Format, Level, dump
from flerm_fx.dump.table import headline, to_notebook
from flerm_fx.emit.checking import Check, checked_start
from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.graph import GraphEmitter, annotate
from flerm_fx.emit.groups import parameter_groups
from flerm_fx.emit.merging import merged
from flerm_fx.emit.overrides import GROUPED, Overrides, overrides
from flerm_fx.emit.scaled import Held, ScaledModel
from flerm_fx.errors import InputError
from flerm_fx.model.inputs import Inputs, call_arguments, device_of, to_device
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.multiplier import node_multiplier
from flerm_fx.start.procedure import StartProcedure

if TYPE_CHECKING:
    import networkx as nx


class CompiledModel(ScaledModel):
    """A ``CompiledModel`` is a model with its multipliers, made by :func:`flerm_fx.compile`.

    Call it, train it and save it like the model it was made from. With ``emit="graph"``, train its
    parameters, the stored weights w = θ / s, in one optimizer group at the base's learning rate.

    Attributes:
        multipliers: learning-rate multiplier m_l of each trainable parameter.
        matches: the base parameters that each answers to, with shares.
        settling: the multipliers of each step on the way to the start; empty without a way.
        assignments: all that is known of each parameter, in execution order.
        scales: factor s_l = m_l^(1/(1+p)) of each scale node, p the optimizer's degree.
        warned: the text of each warning that :func:`flerm_fx.compile` gave, in order.

    Example::

        compiled = flerm_fx.compile(large, profile)
    """

    matches: dict[str, Match]
    assignments: tuple[Assignment, ...]
    procedure: StartProcedure
    _probe_inputs: Inputs
    settling: Settling
    warned: tuple[str, ...]
    _base_profile: BaseProfile | None
    _parameter_graph: nx.DiGraph | None
    _checks: dict[str, bool] | None
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
        warned: Iterable[str] = (),
    ) -> None:
        super().__init__(skeleton, scales, emitter)
        # Not by setattr, which would refuse the name of a member of the model.
        self.__dict__.update(
            matches=dict(matches),
            assignments=assignments,
            procedure=procedure,
            _probe_inputs=probe_inputs,
            settling=settling or {},
            warned=tuple(warned),
            _base_profile=base_profile,
            _parameter_graph=parameter_graph,
            _checks=None,
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
        """The graph for the probe's shape of input in the present mode; None if nothing exports.

        Scale nodes carry ``meta["parameter"]``, ``"shape"``, ``"multiplier"``, ``"base"``,
        ``"base_fslr"``, ``"fslr"`` and ``"after"``.
        """
        return self.graph_for(*call_arguments(to_device(self._probe_inputs, device_of(self))))

    def annotate(self, graph_module: fx.GraphModule, multipliers: Mapping[str, float]) -> None:
        """Write each parameter's assignment to its scale node."""
        annotate(graph_module, self.assignments, multipliers)

    @property
    def merged_multipliers(self) -> dict[str, float]:
        """Multipliers of ``param_groups(lr, merge=True)``, by parameter."""
        return merged(self.assignments, self.procedure.optimizers.index)

    def param_groups(
        self,
        lr: float,
        weight_decay: float | None = None,
        *,
        optimizer: int = 0,
        merge: bool = False,
    ) -> list[dict[str, Any]]:
        """Return groups that train the *original* model as the scale nodes train this one.

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
            merge: whether multipliers that agree within their errors share a group, at their mean
                (:func:`flerm_fx.emit.merging.merged`): :attr:`merged_multipliers`.

        Raises:
            InputError: the original model is gone (donated or deleted), a learning rate that is
                not above 0, or an optimizer that the base did not have.

        Example::

            >>> import flerm_fx, torch
            >>> _ = torch.manual_seed(0)
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
            >>> adam = torch.optim.AdamW(small.parameters(), lr=1e-3)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, batches).profile)
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
        multipliers = self.merged_multipliers if flag("merge", merge) else self.multipliers
        return self._groups(model, multipliers, lr, weight_decay, optimizer)

    def base_groups(
        self, lr: float, weight_decay: float | None = None, *, optimizer: int = 0
    ) -> list[dict[str, Any]]:
        """Return groups that train *this* model, with its scale nodes, as the base was trained.

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
            >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
            >>> groups = [{"params": [small.weight]}, {"params": [small.bias], "weight_decay": 0.0}]
            >>> adam = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, batches).profile)
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
        trained = {n: p for n, p in model.named_parameters() if n in self.multipliers}
        run = self.procedure.optimizers
        return parameter_groups(run, trained, multipliers, lr, weight_decay, optimizer)

    def overrides(self, format: Overrides = "json") -> str:
        """Return the multipliers as text, for a stack that does not import flerm_fx.

        Each parameter's name is matched by one entry, and the entry gives its multiplier.

        Args:
            format: ``"json"``, from name to multiplier; ``"regex"``, JSON from regular expressions
                that match whole names; ``"megatron"``, code of Megatron-LM's ``config_overrides``,
                for rates alone; with decay and eps as in :meth:`param_groups`, ``"torchtitan"``,
                code that makes torchtitan's groups, and ``"param_groups"``, those of a model.

        Raises:
            InputError: another format, unprintable names, or groups of several optimizers.

        Example::

            >>> import flerm_fx, json, torch
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
            >>> adam = torch.optim.AdamW(small.parameters(), lr=1e-3)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, batches).profile)
            >>> json.loads(compiled.overrides()) == compiled.multipliers
            True
        """
        choice("format", format, get_args(Overrides))
        groups: list[dict[str, Any]] = []
        if format in GROUPED:
            if self.procedure.optimizers.count > 1:
                raise InputError(
                    "the base was trained by several optimizers, whose groups one function does "
                    "not hold; use param_groups(lr, optimizer=...) or overrides('json')"
                )
            names = {id(parameter): name for name, parameter in self.named_parameters()}
            for group in self._groups(self, self.multipliers, 1.0, None, 0):
                groups.append({**group, "params": [names[id(p)] for p in group["params"]]})
        return overrides(self.multipliers, groups, format)

    def __repr__(self) -> str:
        text = f"CompiledModel({type(self.skeleton).__name__}, {headline(self.assignments, 2)}"
        return f"{text}; {self._base_profile.settled})" if self._base_profile else f"{text})"

    def _repr_html_(self) -> str:
        return to_notebook(repr(self), self.assignments)

    def fold(self) -> nn.Module:
        """Return a plain model of the original class, with the scales in its weights."""
        return self.plain()

    def dump(
        self,
        format: Format = "table",
        path: str | Path | None = None,
        *,
        level: Level = "parameter",
        focus: str | None = None,
        trajectory: Trajectory | None = None,
    ) -> str:
        """Show what was decided for each parameter, in execution order.

        Args:
            format: ``"table"``, ``"json"``, ``"html"`` (a report to explore in a browser, with the
                base and its trajectory beside the target), ``"code"`` (the graph's code,
                annotated), a picture of the graph: ``"dot"`` (text), ``"svg"`` or ``"png"`` (drawn
                by Graphviz), or ``"model-explorer"`` (a folder, which ``flerm-fx explore`` opens).
            path: also write it there; a ``"png"`` and a folder go nowhere else.
            level: what a picture shows, each ``"parameter"`` or each ``"op"``.
            focus: a module path, such as ``"blocks.0"``, that a picture or code is confined to.
            trajectory: of this model's run, as a :class:`flerm_fx.Matcher` or the profile of a
                :class:`flerm_fx.Recorder` has it, which ``"html"`` draws beside the base's.

        Returns:
            The text; with ``path``, the path.
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
            name=type(self.skeleton).__name__,
            checks=self._checks,
            trajectory=trajectory,
            warned=self.warned,
        )

    def check(self, *, progress: bool = True) -> tuple[Check, ...]:
        r"""Return a check of each parameter: its FSLR, measured again, beside the base's.

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

        Args:
            progress: as for :func:`flerm_fx.compile`.

        Raises:
            InputError: a law predicted the multipliers, and nothing was measured to compare with.
        """
        if any(row.status == "predicted" for row in self.assignments):
            raise InputError(
                "the multipliers are predicted by a law, so nothing was measured that could be "
                "measured again; law.check() says where the law holds, and compile(model, profile) "
                "measures this model"
            )
        with Progress("check", progress)("measuring the model again"):
            checks = checked_start(
                self, self._trainable, self.procedure, self.assignments, self.settling
            )
        self.__dict__["_checks"] = {check.parameter: check.passed for check in checks}
        return checks

    def _trainable(self) -> nn.Module:
        """Return a plain copy, of which those parameters train that have a multiplier."""
        twin = self.plain()
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(name in self.multipliers)
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.__dict__["_probe_inputs"] = pytree.tree_map_only(Tensor, fn, self._probe_inputs)
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference neither copies nor pickles; a copy has no original model.
        return {**super().__getstate__(), "_model": _gone}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__getstate__(), memo)
        return twin


def _gone() -> None:
    """Return what a dead weak reference returns."""
