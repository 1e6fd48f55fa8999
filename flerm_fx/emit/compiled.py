"""A compiled model knows its multipliers and how they came about, and can be asked for more."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, fx, nn

from flerm_fx.align.aligning import Match
from flerm_fx.align.doubts import Doubt, doubts_of
from flerm_fx.assign.assignment import Assignment
from flerm_fx.assign.way import Settling
from flerm_fx.boundary.compat import pytree
from flerm_fx.boundary.progress import Progress
from flerm_fx.dump import Format, Level, dump
from flerm_fx.dump.table import headline, to_notebook
from flerm_fx.emit.checking import Check, checked_start
from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.graph import GraphEmitter, annotate
from flerm_fx.emit.grouped import GroupedModel
from flerm_fx.emit.scaled import Held
from flerm_fx.errors import InputError
from flerm_fx.model.inputs import Inputs, call_arguments, device_of, to_device
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.multiplier import node_multiplier
from flerm_fx.start.procedure import StartProcedure

if TYPE_CHECKING:
    import networkx as nx


class CompiledModel(GroupedModel):
    """A ``CompiledModel`` is a model with its multipliers, made by :func:`flerm_fx.compile`.

    Call it, train it and save it like the model it was made from. With ``emit="graph"`` its
    parameters are the stored weights w = θ / s of the scale nodes: train them with one optimizer
    group at the base's learning rate.

    Attributes:
        multipliers: learning-rate multiplier m_l of each trainable parameter.
        matches: the base parameters that each answers to, with shares.
        settling: the multipliers of each step before the start, by step, at which the model was
            measured; empty where its start is the first step.
        assignments: all that is known of each parameter, in execution order.
        scales: factor s_l = m_l^(1/(1+p)) of each scale node, p the optimizer's degree; empty for
            ``emit="param_groups"``.
        warned: the text of each warning that :func:`flerm_fx.compile` gave, in order.

    Example::

        >>> import flerm_fx, torch
        >>> def mlp(width):
        ...     torch.manual_seed(0)
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> small, x, y = mlp(8), torch.randn(16, 4), torch.randint(3, (16,))
        >>> adam = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> profile = flerm_fx.record(small, adam, x, y, settle=0).profile
        >>> compiled = flerm_fx.compile(mlp(64), profile)
        >>> list(compiled.multipliers)
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> compiled.fold()
        Sequential(
          (0): Linear(in_features=4, out_features=64, bias=True)
          (1): ReLU()
          (2): Linear(in_features=64, out_features=3, bias=True)
        )
    """

    matches: dict[str, Match]
    _probe_inputs: Inputs
    settling: Settling
    warned: tuple[str, ...]
    _base_profile: BaseProfile | None
    _parameter_graph: nx.DiGraph | None
    _checks: dict[str, bool] | None
    _copy: bool

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
        copy: bool = True,
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
            _copy=copy,
            _model=_gone if model is None else weakref.ref(model),
        )

    @property
    def base_profile(self) -> BaseProfile | None:
        """The profile of the base that the multipliers are relative to."""
        return self._base_profile

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """The matches that something speaks against, and what else was possible."""
        return doubts_of(self.matches)

    def rescale(
        self, scales: Mapping[str, float], multipliers: Mapping[str, float] | None = None
    ) -> None:
        """Change the scales of the nodes, and the multipliers that they stand for.

        Args:
            scales: of each node that changes.
            multipliers: of the same parameters; what the scales mean to the update rule if None.
        """
        rule = self.procedure.optimizers.rule
        meant = {name: node_multiplier(rule(name), s) for name, s in scales.items()}
        super().rescale(scales, {**meant, **(multipliers or {})})

    def hold(self, held: Held) -> None:
        """Go back to what was held.

        Args:
            held: what :meth:`held` returned.
        """
        super().hold(held)
        self.__dict__["assignments"] = tuple(
            replace(row, multiplier=held.multipliers[row.parameter]) for row in self.assignments
        )

    @property
    def graph_module(self) -> fx.GraphModule | None:
        """The graph for the probe's shape of input in the present mode; None where the
        model does not export.

        Scale nodes carry ``meta["parameter"]``, ``"shape"``, ``"multiplier"``, ``"base"``,
        ``"base_fslr"``, ``"fslr"`` and ``"after"``.
        """
        return self.graph_for(*call_arguments(to_device(self._probe_inputs, device_of(self))))

    def annotate(self, graph_module: fx.GraphModule, multipliers: Mapping[str, float]) -> None:
        """Write each parameter's assignment to its scale node.

        Args:
            graph_module: a graph with scale nodes.
            multipliers: the present ones.
        """
        annotate(graph_module, self.assignments, multipliers)

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
        r"""Measure the FSLRs again on the compiled model and compare them with the base's.

        The start is repeated on what was emitted, with one optimizer group for a graph and with the
        parameter groups otherwise, and with other random cotangents. Steps are taken on the model's
        own weights, which are put back bit for bit whatever happens, or on a copy where
        :func:`flerm_fx.compile` took one. It belongs before training: afterwards the start is
        another. After a profile recorded with
        ``settle``, the steps to the start are repeated with the multipliers of the way there. A
        parameter that was resolved later is measured as late here, after steps with all its
        multipliers. A parameter passes if

        .. math:: |\mathrm{FSLR}_l - \mathrm{FSLR}_{base}| \le
                  4 \sqrt{\sigma_l^2 + (m_l \sigma_{l,compile})^2}
                  + (10^{-2} + 2 \epsilon)\,\mathrm{FSLR}_{base},

        with the machine epsilon of the coarsest weights, which is :math:`2^{-7}` in bfloat16.

        Args:
            progress: as for :func:`flerm_fx.compile`.

        Returns:
            A :class:`flerm_fx.Check` for each of ``assignments``, in their order.

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
            rows, settling = self.assignments, self.settling
            checks = checked_start(self, self.procedure, rows, settling, copy=self._copy)
        self.__dict__["_checks"] = {check.parameter: check.passed for check in checks}
        return checks

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


def _gone() -> None:
    """Return what a dead weak reference returns."""
