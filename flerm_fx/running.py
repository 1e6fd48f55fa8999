"""Measure a model while it trains, in whichever mode it is in."""

from collections.abc import Callable

import torch
from torch import nn

from flerm_fx.capture import capture, modes, untouched
from flerm_fx.distributed import whole
from flerm_fx.inputs import Inputs, OutputFn
from flerm_fx.observer import Observed
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.planner import Method
from flerm_fx.probe.prober import Prober


class RunningProber:
    """FSLRs of a live model's steps; its buffers are the model's own, and nothing is changed.

    Args:
        live: the model in training, without wrappers around it.
        copy: makes a plain copy of it to measure on, which takes memory; None where the model
            itself will do, which it does unless it is sharded or has parametrizations.
        prober: of such a copy, in the model's present mode.
        inputs: what to measure on.
        output_fn: picks the output tensor.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`.
        seed: of the random cotangents, with the step added.
    """

    def __init__(
        self,
        live: Callable[[], nn.Module],
        copy: Callable[[], nn.Module] | None,
        prober: Prober,
        inputs: Inputs,
        *,
        output_fn: OutputFn | None,
        method: Method,
        rtol: float,
        seed: int,
    ) -> None:
        model = live()
        self._live = live
        self._inputs = inputs
        self._output_fn = output_fn
        self._method = method
        self._rtol = rtol
        self._seed = seed
        self._ranks = prober.ranks
        self._copy = copy
        self._probers = {modes(model): prober if copy else prober.bound(model)}

    def estimate(self, observed: Observed) -> dict[str, Estimate]:
        """FSLR of each parameter that the step has trained.

        Raises:
            EstimateError: a NaN or infinite FSLR.
        """
        model = self._live()
        with untouched(model):
            return self._prober(model).estimate(
                observed.before,
                observed.updates,
                self._inputs,
                method=self._method,
                rtol=self._rtol,
                generator=torch.Generator().manual_seed(self._seed + observed.step),
            )

    def _prober(self, model: nn.Module) -> Prober:
        mode = modes(model)
        if mode not in self._probers:
            measured = model if self._copy is None else self._copy()
            captured = capture(measured, self._inputs, self._output_fn)
            self._probers[mode] = Prober(captured, self._ranks)
        prober = self._probers[mode]
        if self._copy is not None:
            buffers = dict(prober.captured.model.named_buffers())
            with torch.no_grad():
                for name, value in model.named_buffers():
                    buffers[name].copy_(whole(value))
        return prober
