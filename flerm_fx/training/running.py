"""A model is measured while it trains, in whichever mode it is in."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.progress import Progress
from flerm_fx.capture.captured import Capture, modes
from flerm_fx.capture.tracing import capture
from flerm_fx.capture.ungraphed import capture_ungraphed
from flerm_fx.model.distributed import whole
from flerm_fx.model.inputs import Inputs, OutputFn, own_loss, select_output
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.planner import Method
from flerm_fx.probe.turns import Turn
from flerm_fx.recipe.loss import Loss
from flerm_fx.training.observer import Observed

LossOfOutput = Callable[[Any], Tensor | None]
"""The loss of all that a model returns for the probe batch."""


def probe_loss(loss: Loss | None, targets: Any, output_fn: OutputFn | None) -> LossOfOutput:
    """Return a loss, or the model's own for None, as a function of what the model returns."""
    if loss is None:
        return own_loss
    return lambda output: loss(select_output(output, output_fn), targets)


class RunningProber:
    """A ``RunningProber`` measures the steps of a model in training, and changes nothing.

    Args:
        running: the model in training, without wrappers around it.
        prober: of a plain copy of it, in its present mode.
        inputs: what to measure on.
        output_fn: picks the output tensor.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`.
        seed: of the random cotangents, with the step added.
        progress: tells whoever waits of each measurement.
        loss: of what the model returns for the inputs; None where it is not known.
        captured: captures a copy of the model, as where it has parametrizations, or weights in
            half precision or on other ranks; it is measured on such copies then, with its own
            buffers. Their trainable weights are let go once they are captured.
        ungraphed: whether sharded weights stay where they are, and passes of the model itself
            measure it; ``prober`` is one of itself then.
    """

    def __init__(
        self,
        running: Callable[[], nn.Module],
        prober: CaptureProber,
        inputs: Inputs,
        *,
        output_fn: OutputFn | None,
        method: Method,
        rtol: float,
        seed: int,
        progress: Progress,
        loss: LossOfOutput | None = None,
        captured: Callable[[], Capture] | None = None,
        ungraphed: bool = False,
    ) -> None:
        model = running()
        self._running = running
        self._inputs = inputs
        self._output_fn = output_fn
        self._method = method
        self._rtol = rtol
        self._seed = seed
        self._ranks = prober.ranks
        self._progress = progress
        self._loss = loss
        self._captured = captured
        self._capture = capture_ungraphed if ungraphed else capture
        if captured is not None:
            _let_go(prober)
        self._probers = {modes(model): prober if captured else prober.bound(model)}

    def estimate(self, observed: Observed, turn: Turn | None = None) -> dict[str, Estimate]:
        """FSLR of each parameter that the step has trained.

        Args:
            observed: the step.
            turn: the examples to measure on; all if None.

        Raises:
            EstimateError: a NaN or infinite FSLR.
        """
        model = self._running()
        with self._progress(f"measuring step {observed.step}"), untouched(model):
            prober = self._prober(model)
            return prober.estimate(
                _typed(prober, observed.before),
                _typed(prober, observed.updates),
                self._inputs,
                method=self._method,
                rtol=self._rtol,
                generator=torch.Generator().manual_seed((self._seed + observed.step) % 2**64),
                turn=turn,
            )

    def loss(self, observed: Observed) -> float:
        """Return the loss of the probe batch before the step; NaN where it is not known.

        Raises:
            InputError: the loss is no number, or does not take the model's output.
        """
        if self._loss is None:
            return math.nan
        model = self._running()
        with untouched(model), torch.no_grad():
            prober = self._prober(model)
            output = prober.captured.returned(_typed(prober, observed.before), self._inputs)
            loss = self._loss(output)
        return math.nan if loss is None else float(loss)

    def _prober(self, model: nn.Module) -> CaptureProber:
        mode = modes(model)
        if mode not in self._probers:
            anew = functools.partial(self._capture, model, self._inputs, self._output_fn)
            self._probers[mode] = CaptureProber((self._captured or anew)(), self._ranks)
            if self._captured is not None:
                _let_go(self._probers[mode])
        prober = self._probers[mode]
        if self._captured is not None:
            buffers = dict(prober.captured.model.named_buffers())
            with torch.no_grad():
                for name, value in model.named_buffers():
                    buffers[name].copy_(whole(value))
        return prober


def _typed(prober: CaptureProber, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values in the types of the copy that is measured."""
    kinds = {name: p.dtype for name, p in prober.captured.parameters.items()}
    return {name: value.to(kinds.get(name, value.dtype)) for name, value in values.items()}


def _let_go(prober: CaptureProber) -> None:
    """Free the trainable weights of a copy: it is given the model's at each measurement."""
    for parameter in prober.captured.parameters.values():
        parameter.data = parameter.data.new_zeros(()).expand(parameter.shape)
