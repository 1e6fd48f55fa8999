"""A prober measures FSLRs of one captured model, again and again."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from flerm_fx.boundary.compat import pytree
from flerm_fx.boundary.options import checked, choice
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import EstimateError, InputError
from flerm_fx.model.distributed import Ranks, check_finite_on_ranks, gathered, is_sharded
from flerm_fx.model.inputs import Inputs, batch_size
from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.coupling import EXAMPLES, PAIR, coupling, disagreement, few
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.exact import exact
from flerm_fx.probe.live_prober import LiveProber
from flerm_fx.probe.paper import PASSES, paper
from flerm_fx.probe.planner import (
    METHODS,
    Method,
    Plan,
    draws_needed,
    exact_cost,
    plan,
    sampled_cost,
)
from flerm_fx.probe.sampled import Samples, estimated, output_size, sampled
from flerm_fx.probe.streamed import device_of_inputs, streams
from flerm_fx.probe.taps import TapNodes, no_axis
from flerm_fx.probe.turns import Turn
from flerm_fx.probe.workload import Workload, workload


class CaptureProber:
    """A ``CaptureProber`` measures a captured model again and again, and keeps what it can between.

    Keeps the graph with taps and whether examples are coupled. It holds no weights of its own:
    every measurement is at the parameter values it is given.

    Args:
        captured: the model, captured in the mode in which it is to be measured.
        ranks: the processes that measure it together, all of which are to call :meth:`estimate`
            with the same arguments. Each measures its share of the examples, where examples do not
            influence each other, with the cotangents that one process would draw for them.
    """

    def __init__(self, captured: Capture, ranks: Ranks | None = None) -> None:
        self.captured = captured
        self.ranks = ranks or Ranks()
        self._coupling: str | None = None
        self._tapped: dict[tuple[str, ...], fx.GraphModule] = {}
        self._workloads: dict[tuple[str, ...], Workload] = {}
        self._sizes: dict[Any, tuple[int, int]] = {}
        self._names: dict[str, tuple[str, ...]] | None = None
        self._alive: LiveProber | None = None

    def bound(self, model: nn.Module) -> "CaptureProber":
        """Return the same for another copy of the model: what couples examples is known already."""
        prober = CaptureProber(self.captured.bound(model), self.ranks)
        prober._coupling = self._coupling
        return prober

    def estimate(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        *,
        method: Method = "auto",
        rtol: float = 0.05,
        samples: int | None = None,
        generator: torch.Generator | None = None,
        turn: Turn | None = None,
    ) -> dict[str, Estimate]:
        """FSLR of every parameter in ``updates``, at ``parameters``.

        Args:
            parameters: values of all trainable parameters, by canonical name. They may be sharded
                over ranks, or on another device than the inputs, and are gathered where they are
                read; so may updates be. ``"auto"`` and ``"sampled"`` never gather all of them, all
                other methods do. Values of weights that are not trained are needed then, too.
            updates: unit updates, by canonical name.
            inputs: probe inputs, batch first.
            method: see :func:`flerm_fx.measure`.
            rtol: relative standard error to reach.
            samples: draws per example, or passes of the paper's methods; chosen from ``rtol``
                if None.
            generator: source of the cotangents; seeded with 0 if None.
            turn: the examples that are measured, where none influences another and a graph holds
                for as few; all are, if None, and by the paper's methods. One of several turns has
                the draws that should reach ``rtol``, and none beyond: a mean follows.

        Raises:
            InputError: an unknown method, or a tolerance or number of samples out of range.
            EstimateError: a NaN or infinite update or FSLR; the message names the parameter.
        """
        choice("method", method, METHODS)
        rtol, samples = checked("rtol", rtol), checked("samples", samples)
        for name, update in updates.items():
            check_finite_on_ranks(name, update, "update")
        generator = generator or torch.Generator().manual_seed(0)
        names = [name for name in self.captured.parameters if name in updates]
        ordered = {name: updates[name].detach() for name in names}
        if not ordered:
            return {}
        parameters = {name: value.detach() for name, value in parameters.items()}
        again = turn is None or turn.turns == 1
        if self._runs_live(method, parameters, tuple(ordered), inputs, rtol):
            if turn is not None:
                inputs = self._taken(turn, parameters, ordered, inputs, live=True)
            estimates = self._live().estimate(
                parameters,
                ordered,
                inputs,
                rtol=rtol,
                samples=samples,
                generator=generator,
                again=again and samples is None,
            )
            return self._agreed(estimates)
        if method not in ("auto", "sampled"):
            device = device_of_inputs(pytree.tree_leaves(inputs))
            parameters, ordered = (
                {name: gathered(value, device) for name, value in values.items()}
                for values in (parameters, ordered)
            )
        read = self._read_by_graph(parameters)
        if turn is not None and method in ("auto", "exact", "sampled"):
            inputs = self._taken(turn, read, ordered, inputs)
        if method in ("full_cov", "iid", "kronecker"):
            passes = samples or PASSES
            estimates = {
                name: Estimate(value, error, method, passes)
                for name, (value, error) in paper(
                    self.captured,
                    parameters,
                    ordered,
                    inputs,
                    method=method,
                    passes=passes,
                    generator=generator,
                ).items()
            }
        elif method == "exact" or self.captured.probe_module is None:
            estimates = self._exact(read, ordered, inputs)
        elif method == "sampled":
            estimates = self._sampled(read, ordered, inputs, rtol, samples, generator)
        else:
            estimates = self._auto(read, ordered, inputs, rtol, generator, again=again)
        return self._agreed(estimates)

    def reads_graph_alone(self, method: Method) -> bool:
        """Tell whether an estimate runs no code of the model, as the search for coupling does."""
        is_known = self._coupling is not None and method in ("auto", "exact", "sampled")
        return is_known and self.captured.is_of_torch

    def _agreed(self, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """Return what the first rank has found, if all of it is finite."""
        for name, estimate in estimates.items():
            if not (math.isfinite(estimate.value) and math.isfinite(estimate.stderr)):
                raise EstimateError(
                    f"the FSLR of parameter {name!r} is {estimate.value}; expected a finite "
                    "number: the model's outputs or their derivatives overflow on the probe inputs"
                )
        return self.ranks.agreed(estimates)  # type: ignore[no-any-return]

    def _live(self) -> LiveProber:
        if self._alive is None:
            self._alive = LiveProber(self.captured, self.ranks)
        return self._alive

    def _runs_live(
        self,
        method: Method,
        parameters: Mapping[str, Tensor],
        names: tuple[str, ...],
        inputs: Inputs,
        rtol: float,
    ) -> bool:
        """Tell whether to measure by passes of the model itself, as without a graph."""
        if method == "live" or self.captured.probe_module is not None:
            return method == "live"
        if is_sharded(self.captured.model) and method not in ("auto", "sampled"):
            raise InputError(
                f"method={method!r} takes whole weights where there is no graph, and those of "
                f"{type(self.captured.model).__name__} are sharded over ranks; use method='live', "
                "or measure it before it is sharded"
            )
        if method != "auto" or self.captured.own_backward or is_sharded(self.captured.model):
            # A backward pass of the model's own is all there may be: exact would differentiate it.
            return method in ("auto", "sampled")
        plan = self._live().plan(parameters, inputs, rtol)
        return plan.cost < exact_cost(self._work(names))

    def _read_by_graph(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Values under the names that the graph has; of tied weights it may have any one's."""
        if self.captured.probe_module is None:
            return parameters
        if self._names is None:
            tied: dict[nn.Parameter, list[str]] = {}
            for name, p in self.captured.model.named_parameters(remove_duplicate=False):
                tied.setdefault(p, []).append(name)
            by_name = {name: names for names in tied.values() for name in names}
            held = self.captured.probe_module.named_parameters(remove_duplicate=False)
            self._names = {name: (name, *by_name.get(name, ())) for name, _ in held}
        return {
            name: parameters[given]
            for name, names in self._names.items()
            if (given := next((n for n in names if n in parameters), None)) is not None
        }

    def _exact(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
    ) -> dict[str, Estimate]:
        share = self._share(parameters, updates, inputs)
        values = exact(self.captured, parameters, updates, inputs if share is None else share)
        if share is not None:
            size = batch_size(inputs)
            rows = self.ranks.rows(size)
            squares = torch.tensor(list(values.values()), dtype=torch.float64).square()
            device = device_of_inputs(pytree.tree_leaves(inputs))
            total = self.ranks.summed((rows.stop - rows.start) / size * squares.to(device))
            values = dict(zip(values, total.sqrt().tolist(), strict=True))
        return {
            name: Estimate(value, 0.0, "exact", 0, self.captured.reason)
            for name, value in values.items()
        }

    def _auto(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        rtol: float,
        generator: torch.Generator,
        *,
        again: bool,
    ) -> dict[str, Estimate]:
        size = self._size(parameters, inputs)
        work = self._work(tuple(updates))
        if streams(self.captured.probe_module, parameters, updates):
            work = replace(work, passes=math.inf)  # tangents would keep all weights
        chosen = _plan(work, rtol, size)
        if chosen.cotangents is not None and self._coupled(parameters, updates, inputs):
            chosen = _plan(work, rtol, (1, math.prod(size)))
        if chosen.cotangents is None:
            return self._exact(parameters, updates, inputs)
        taken = [self._draw(parameters, updates, inputs, chosen.cotangents, generator)]
        # Examples that change unequally need more draws than planned; exact may then be cheaper.
        while again and (worst := _worst(self._estimates(taken))) > rtol:
            more = max(1, round(_draws(taken) * ((worst / rtol) ** 2 - 1)))
            examples, coordinates = chosen.cotangents.examples, chosen.cotangents.coordinates
            if sampled_cost(work, examples, coordinates, more) > exact_cost(work):
                return self._exact(parameters, updates, inputs)
            every = 2 * (_draws(taken) + more) >= coordinates
            extra = replace(chosen.cotangents, draws=coordinates if every else more)
            further = self._draw(parameters, updates, inputs, extra, generator)
            taken = [further] if every else [*taken, further]
        return self._estimates(taken)

    def _sampled(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        rtol: float,
        samples: int | None,
        generator: torch.Generator,
    ) -> dict[str, Estimate]:
        size = self._size(parameters, inputs)
        if self._coupled(parameters, updates, inputs):
            size = 1, math.prod(size)
        draws = min(samples or draws_needed(rtol, *size), size[1])
        cotangents = Cotangents(*size, draws)
        return self._estimates([self._draw(parameters, updates, inputs, cotangents, generator)])

    def _draw(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        cotangents: Cotangents,
        generator: torch.Generator,
    ) -> Samples:
        share, size = self._share(parameters, updates, inputs), cotangents.examples
        samples = sampled(
            self.captured,
            self._graph(tuple(updates)),
            parameters,
            updates,
            inputs if share is None else share,
            cotangents=cotangents,
            generator=generator,
            rows=slice(None) if share is None else self.ranks.rows_run(size),
        )
        if share is None:
            return samples
        rows = self.ranks.rows(size)
        mine = samples.squares[: rows.stop - rows.start]
        return replace(samples, squares=self.ranks.joined(mine, size))

    def _taken(
        self,
        turn: Turn,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        *,
        live: bool = False,
    ) -> Inputs:
        """Return the examples whose turn it is, or all of them, where they cannot be told apart."""
        part = turn.of(inputs)
        if part is inputs or not (live or self.captured.holds_for(part)):
            return inputs
        if live:
            return inputs if self._live().coupling(parameters, inputs) else part
        return inputs if self._coupled(parameters, updates, inputs) else part

    def _share(
        self, parameters: Mapping[str, Tensor], updates: Mapping[str, Tensor], inputs: Inputs
    ) -> Inputs | None:
        """Return the examples that this rank measures; None where each measures all of them."""
        share = self.ranks.share(inputs)
        if share is None or self._coupled(parameters, updates, inputs):
            return None
        return share if all(map(self.captured.holds_for, self.ranks.shares(inputs))) else None

    def _estimates(self, taken: list[Samples]) -> dict[str, Estimate]:
        return estimated(taken, "sampled", self._coupling or "")

    def _coupled(
        self, parameters: Mapping[str, Tensor], updates: Mapping[str, Tensor], inputs: Inputs
    ) -> str:
        if self.captured.probe_module is None:
            return self._live().coupling(parameters, inputs)
        if self._coupling is None:
            size = self._size(parameters, inputs)
            first, two = (few(self.captured, inputs, size, most) for most in (EXAMPLES, PAIR))
            reason = self.ranks.agreed(coupling(self.captured, parameters, first))
            if not reason:
                graph = self._graph(tuple(updates))
                reason = no_axis(graph.graph) or self.ranks.agreed(
                    disagreement(self.captured, graph, parameters, updates, two)
                )
            self._coupling = reason
        return self._coupling

    def _size(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> tuple[int, int]:
        """Examples and coordinates of the output, which the shapes of a graph's inputs decide."""
        leaves = pytree.tree_leaves(inputs)
        shapes = tuple(leaf.shape if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)
        if shapes not in self._sizes:
            self._sizes[shapes] = output_size(self.captured, parameters, inputs)
        return self._sizes[shapes]

    def _work(self, names: tuple[str, ...]) -> Workload:
        if names not in self._workloads:
            module = self.captured.probe_module
            self._workloads[names] = workload(None if module is None else module.graph, names)
        return self._workloads[names]

    def _graph(self, names: tuple[str, ...]) -> fx.GraphModule:
        if names not in self._tapped:
            module = self.captured.probe_module
            assert module is not None
            root = fx.GraphModule(module, copy.deepcopy(module.graph), class_name="Tapped")
            TapNodes(names)(root)
            self._tapped[names] = root
        return self._tapped[names]


def _plan(work: Workload, rtol: float, size: tuple[int, int]) -> Plan:
    return plan(work, rtol=rtol, examples=size[0], coordinates=size[1])


def _worst(estimates: Mapping[str, Estimate]) -> float:
    return max(estimate.relative_error for estimate in estimates.values())


def _draws(taken: list[Samples]) -> int:
    return sum(s.cotangents.draws for s in taken)
