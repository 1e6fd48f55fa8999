"""Measure a model while it trains, in whichever mode it is in."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from flerm_fx.capture.captured import modes
from flerm_fx.capture.tracing import capture
from flerm_fx.model.copying import copied
from flerm_fx.model.distributed import is_sharded, whole
from flerm_fx.model.inputs import Inputs, OutputFn
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.planner import Method
from flerm_fx.probe.prober import Prober
from flerm_fx.training.observer import Observed


class RunningProber:
    """FSLRs of a live model's steps; its buffers are the model's own, and nothing is changed.

    Args:
        live: the model in training, without wrappers around it.
        prober: of a plain copy of it, in its present mode.
        inputs: what to measure on.
        output_fn: picks the output tensor.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`.
        seed: of the random cotangents, with the step added.
        plain: makes a plain copy of a model that has parametrizations, or one in float32 of a
            model with weights in half precision; it is measured on such copies then, which take
            memory, as a sharded model is in any case.
    """

    def __init__(
        self,
        live: Callable[[], nn.Module],
        prober: Prober,
        inputs: Inputs,
        *,
        output_fn: OutputFn | None,
        method: Method,
        rtol: float,
        seed: int,
        plain: Callable[[], nn.Module] | None = None,
    ) -> None:
        model = live()
        if plain is None and is_sharded(model):
            plain = functools.partial(copied, model)
        self._live = live
        self._inputs = inputs
        self._output_fn = output_fn
        self._method = method
        self._rtol = rtol
        self._seed = seed
        self._ranks = prober.ranks
        self._plain = plain
        self._probers = {modes(model): prober if plain else prober.bound(model)}

    def estimate(self, observed: Observed) -> dict[str, Estimate]:
        """FSLR of each parameter that the step has trained.

        Raises:
            EstimateError: a NaN or infinite FSLR.
        """
        model = self._live()
        with untouched(model):
            prober = self._prober(model)
            kinds = {name: p.dtype for name, p in prober.captured.parameters.items()}
            before, updates = (
                {name: value.to(kinds.get(name, value.dtype)) for name, value in values.items()}
                for values in (observed.before, observed.updates)
            )
            return prober.estimate(
                before,
                updates,
                self._inputs,
                method=self._method,
                rtol=self._rtol,
                generator=torch.Generator().manual_seed((self._seed + observed.step) % 2**64),
            )

    def _prober(self, model: nn.Module) -> Prober:
        mode = modes(model)
        if mode not in self._probers:
            measured = model if self._plain is None else self._plain()
            captured = capture(
                measured,
                self._inputs,
                self._output_fn,
                original=None if measured is model else model,
            )
            self._probers[mode] = Prober(captured, self._ranks)
        prober = self._probers[mode]
        if self._plain is not None:
            buffers = dict(prober.captured.model.named_buffers())
            with torch.no_grad():
                for name, value in model.named_buffers():
                    buffers[name].copy_(whole(value))
        return prober
