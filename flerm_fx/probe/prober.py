"""Measure FSLRs of one captured model, again and again."""

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from flerm_fx.capture import Capture
from flerm_fx.errors import EstimateError, InputError
from flerm_fx.frontier import ProbeNodes
from flerm_fx.inputs import Inputs, check_finite
from flerm_fx.probe.coupling import coupling
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.exact import exact
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
from flerm_fx.probe.sampled import Samples, output_size, sampled


class Prober:
    """A captured model with what measuring it over and over can keep.

    Keeps the instrumented graph and whether examples are coupled. It holds no weights of its own:
    every measurement is at the parameter values it is given.

    Args:
        captured: the model, captured in the mode in which it is to be measured.
    """

    def __init__(self, captured: Capture) -> None:
        self.captured = captured
        self._coupling: str | None = None
        self._instrumented: dict[tuple[str, ...], fx.GraphModule] = {}

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
    ) -> dict[str, Estimate]:
        """FSLR of every parameter in ``updates``, at ``parameters``.

        Args:
            parameters: values of all trainable parameters, by canonical name.
            updates: unit updates, by canonical name.
            inputs: probe inputs, batch first.
            method: see :func:`flerm_fx.measure`.
            rtol: relative standard error to reach.
            samples: draws per example, or passes of the paper's methods; chosen from ``rtol``
                if None.
            generator: source of the cotangents; seeded with 0 if None.

        Raises:
            InputError: an unknown method, or a tolerance or number of samples out of range.
            EstimateError: a NaN or infinite update or FSLR; the message names the parameter.
        """
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
        if not 0 < rtol < 1:
            raise InputError(f"rtol must lie between 0 and 1, got {rtol}")
        if samples is not None and samples < 1:
            raise InputError(f"samples must be at least 1, got {samples}")
        if self.captured.model.training != self.captured.training:
            raise InputError("the model's mode changed since it was captured; capture it again")
        for name, update in updates.items():
            check_finite(name, update, "update")
        generator = generator or torch.Generator().manual_seed(0)
        names = [name for name in self.captured.parameters if name in updates]
        ordered = {name: updates[name].detach() for name in names}
        if not ordered:
            return {}
        if method in ("full_cov", "iid", "kronecker"):
            passes = samples or PASSES
            found = {
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
        elif method == "exact":
            found = self._exact(parameters, ordered, inputs)
        elif method == "sampled":
            found = self._sampled(parameters, ordered, inputs, rtol, samples, generator)
        else:
            found = self._auto(parameters, ordered, inputs, rtol, generator)
        for name, estimate in found.items():
            if not (torch.isfinite(torch.tensor([estimate.value, estimate.stderr])).all()):
                raise EstimateError(
                    f"the FSLR of parameter {name!r} is {estimate.value}; expected a finite "
                    "number: the model's outputs or their derivatives overflow on the probe inputs"
                )
        return found

    def _exact(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
    ) -> dict[str, Estimate]:
        values = exact(self.captured, parameters, updates, inputs)
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
    ) -> dict[str, Estimate]:
        examples, coordinates = output_size(self.captured, parameters, inputs)
        chosen = plan(
            rtol=rtol,
            parameters=len(updates),
            examples=examples,
            coordinates=coordinates,
            coupled=False,
        )
        if chosen.method == "sampled" and self._coupled(parameters, inputs):
            chosen = plan(
                rtol=rtol,
                parameters=len(updates),
                examples=examples,
                coordinates=coordinates,
                coupled=True,
            )
        if chosen.method == "exact":
            return self._exact(parameters, updates, inputs)
        taken = [self._draw(parameters, updates, inputs, chosen, generator)]
        found = self._estimates(taken, chosen)
        # Examples that change unequally need more draws than planned; exact may then be cheaper.
        worst = max(estimate.relative_error for estimate in found.values())
        while worst > rtol:
            more = max(1, round(_total(taken) * ((worst / rtol) ** 2 - 1)))
            if sampled_cost(more) > exact_cost(len(updates)):
                return self._exact(parameters, updates, inputs)
            more = min(more, taken[0].coordinates)
            extra = Plan("sampled", more)
            taken.append(self._draw(parameters, updates, inputs, extra, generator))
            found = self._estimates(taken, chosen)
            worst = max(estimate.relative_error for estimate in found.values())
        return found

    def _sampled(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        rtol: float,
        samples: int | None,
        generator: torch.Generator,
    ) -> dict[str, Estimate]:
        examples, coordinates = output_size(self.captured, parameters, inputs)
        if self._coupled(parameters, inputs):
            examples, coordinates = 1, examples * coordinates
        draws = samples or draws_needed(rtol, examples, coordinates)
        chosen = Plan("sampled", min(draws, coordinates))
        return self._estimates([self._draw(parameters, updates, inputs, chosen, generator)], chosen)

    def _draw(
        self,
        parameters: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        chosen: Plan,
        generator: torch.Generator,
    ) -> Samples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vmap's "no batching rule": slower, not wrong
            return sampled(
                self.captured,
                self._graph(tuple(updates)),
                parameters,
                updates,
                inputs,
                draws=chosen.draws,
                generator=generator,
                coupled=bool(self._coupling),
                all_coordinates=chosen.all_coordinates,
            )

    def _estimates(self, taken: list[Samples], chosen: Plan) -> dict[str, Estimate]:
        """Estimates from independent sets of draws, each weighted by its number of draws."""
        total = _total(taken)
        mean = sum((s.mean_square() * (s.draws / total) for s in taken), torch.zeros(()))
        variance = sum((s.variance() * (s.draws / total) ** 2 for s in taken), torch.zeros(()))
        values = mean.double().clamp_min(0).sqrt()
        # d sqrt(v) = dv / (2 sqrt(v))
        errors = torch.where(values > 0, variance.double().sqrt() / (2 * values), 0.0)
        note = "; ".join(filter(None, (self.captured.reason, self._coupling)))
        method = "exact" if chosen.all_coordinates else "sampled"
        return {
            name: Estimate(
                float(value),
                float(error),
                method,
                total * (not chosen.all_coordinates),
                note,
            )
            for name, value, error in zip(taken[0].names, values, errors, strict=True)
        }

    def _coupled(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> str:
        if self._coupling is None:
            self._coupling = coupling(self.captured, parameters, inputs)
        return self._coupling

    def _graph(self, names: tuple[str, ...]) -> fx.GraphModule | None:
        if self.captured.probe_module is None:
            return None
        if names not in self._instrumented:
            module = self.captured.probe_module
            root = fx.GraphModule(module, copy.deepcopy(module.graph), class_name="Instrumented")
            ProbeNodes(names)(root)
            self._instrumented[names] = root
        return self._instrumented[names]


def _total(taken: list[Samples]) -> int:
    return sum(s.draws for s in taken)
