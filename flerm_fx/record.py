"""Recording a base model: its start at once, its trajectory as it trains."""

import warnings
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flerm_fx.capture import Capture, capture, modes, untouched
from flerm_fx.copying import copied
from flerm_fx.errors import EstimateError, InputError, OptimizerError
from flerm_fx.inputs import (
    Inputs,
    OutputFn,
    check_finite,
    detached,
    device_of,
    probe_pool,
    to_device,
)
from flerm_fx.loss import LossFunction, resolve
from flerm_fx.parameter_graph import capture_graph
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.probe.prober import Prober
from flerm_fx.profile import BaseProfile, Trajectory
from flerm_fx.start import MODEL_LOSS, StartProcedure, measure_start
from flerm_fx.update_rule import UpdateRule


def record(
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Inputs | list[Inputs],
    targets: Any = None,
    *,
    loss_fn: LossFunction | str | None = None,
    output_fn: OutputFn | None = None,
    every: int = 100,
    settle: int = 0,
    resolve_after: int = 4,
    method: Method = "auto",
    rtol: float = 0.05,
    generator: torch.Generator | None = None,
) -> "Recorder":
    r"""Record the function-space learning rates of a base model.

    The *start* is measured at once, on a copy of the model: after ``settle`` simulated steps of the
    optimizer's rule, the FSLR of each parameter's next unit update
    :math:`u_l = \Delta\theta_l / \mathrm{lr}`. Behind a weight that starts at zero (LoRA's A while
    B is 0, a branch whose gate is 0) nothing has a gradient yet, and that FSLR is exactly 0; where
    there is such a parameter, the FSLRs of all are measured once more ``resolve_after`` steps
    later, and :func:`flerm_fx.compile` matches it by those. The *trajectory* follows as the model
    trains: hooks on the optimizer measure the real update at steps 0, ``every``, 2 ``every``, …
    Training itself is left bit for bit what it is without recording.

    Args:
        model: the base model, in the mode in which it trains.
        optimizer: its optimizer; every trainable parameter must be in it.
        inputs: probe pool: one batch (a tensor, tuple or dict of keyword arguments, batch first)
            or a list of batches. FSLRs are measured on the first; simulated steps take the others.
        targets: what the loss compares with, batch by batch; None for a model that returns its
            own ``.loss``.
        loss_fn: ``loss_fn(output, targets)``, or its name in ``torch.nn.functional``; by default
            cross entropy for integer targets and mean squared error for floating ones.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor).
        every: steps between measurements of the trajectory.
        settle: simulated steps before the start is measured; 0 is the paper's first step.
        resolve_after: further simulated steps before the *late* start is measured, where a
            parameter's FSLR at the start is exactly 0; 0 leaves such a parameter unresolved.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`.
        generator: its seed becomes the profile's; 0 if None.

    Returns:
        A :class:`Recorder`: a context manager with a ``profile``.

    Raises:
        InputError: unusable inputs, targets or options.
        OptimizerError: a parameter outside the optimizer, a learning rate of 0, or an optimizer
            that cannot be rebuilt.
        EstimateError: a NaN or infinite loss, update or FSLR.
        DivergenceError: the simulated steps diverge.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> x, y = torch.randn(16, 4), torch.randint(3, (16,))
        >>> with record(model, optimizer, x, y) as recorder:
        ...     nn.functional.cross_entropy(model(x), y).backward()
        ...     optimizer.step()
        >>> recorder.profile.trajectory.steps
        (0,)
    """
    return Recorder(
        model,
        optimizer,
        inputs,
        targets,
        loss_fn=loss_fn,
        output_fn=output_fn,
        every=every,
        settle=settle,
        resolve_after=resolve_after,
        method=method,
        rtol=rtol,
        generator=generator,
    )


class Recorder:
    """A recording in progress; see :func:`record`.

    Leaving the ``with`` block, or :meth:`close`, takes the hooks off the optimizer.

    Attributes:
        step: optimizer steps seen so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        inputs: Inputs | list[Inputs],
        targets: Any = None,
        *,
        loss_fn: LossFunction | str | None = None,
        output_fn: OutputFn | None = None,
        every: int = 100,
        settle: int = 0,
        resolve_after: int = 4,
        method: Method = "auto",
        rtol: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be an nn.Module, got {type(model).__name__}")
        for name, value, least in (
            ("every", every, 1),
            ("settle", settle, 0),
            ("resolve_after", resolve_after, 0),
        ):
            if type(value) is not int or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, got {value}")
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
        pool = detached(probe_pool(inputs, targets))
        own_loss = loss_fn is None and pool[0][1] is None
        loss = None if own_loss else resolve(loss_fn, pool[0][1])
        self.model = model
        self.optimizer = optimizer
        self.every = every
        self.resolve_after = resolve_after
        self.step = 0
        self.procedure = StartProcedure(
            rule=UpdateRule.of(optimizer),
            learning_rate=_learning_rate(optimizer),
            settle=settle,
            loss=loss,
            pool=pool,
            output_fn=output_fn,
            method=method,
            rtol=rtol,
            seed=generator.initial_seed() % 2**63 if generator is not None else 0,
        )
        twin = capture(copied(model), to_device(pool[0][0], device_of(model)), output_fn)
        _check_covered(model, optimizer)
        self._graph = capture_graph(twin)
        self._parameters = twin.parameters.keys()
        prober = Prober(twin)
        self._start = measure_start(twin, self.procedure, prober=prober)
        # Exactly 0: an FSLR within rounding, such as that of an attention key's bias, is as small
        # at any later step.
        at_zero = any(e.value == 0 and self._graph.nodes[n]["op"] for n, e in self._start.items())
        late = resolve_after if at_zero else 0
        self._late = measure_start(twin, self.procedure.after(late), prober=prober) if late else {}
        self._training = model.training
        self._probe_inputs = to_device(pool[0][0], device_of(model))
        self._probers = {modes(model): prober.bound(model)}
        self._steps: list[int] = []
        self._rates: list[float] = []
        self._fslrs: dict[str, list[Estimate]] = {name: [] for name in self._parameters}
        self._due = True
        self._warned = False
        self._before: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def profile(self) -> BaseProfile:
        """What has been recorded so far."""
        trainable = dict(self.model.named_parameters())
        loss = self.procedure.loss
        return BaseProfile(
            parameters=tuple(self._parameters),
            shapes={name: tuple(trainable[name].shape) for name in self._parameters},
            start=dict(self._start),
            late=dict(self._late),
            trajectory=Trajectory(
                steps=tuple(self._steps),
                learning_rates=tuple(self._rates),
                fslrs={name: tuple(estimates) for name, estimates in self._fslrs.items()},
            ),
            graph=self._graph,
            optimizer=self.procedure.rule,
            learning_rate=self.procedure.learning_rate,
            settle=self.procedure.settle,
            resolve_after=self.resolve_after,
            loss=MODEL_LOSS if loss is None else loss.name,
            method=self.procedure.method,
            rtol=self.procedure.rtol,
            seed=self.procedure.seed,
            pool=self.procedure.pool,
            training=self._training,
        )

    def close(self) -> None:
        """Take the hooks off the optimizer; the profile stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.step % self.every == 0:
            self._due = True
        if not self._due:
            return
        rates = _rates(self.model, optimizer)
        if not any(rates.values()):
            if not self._warned:
                warnings.warn(
                    f"the learning rate is 0 at step {self.step}, so unit updates are not defined; "
                    "recording at the next step with a rate above 0",
                    stacklevel=2,
                )
            self._warned = True
            return
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise EstimateError(
                    f"the gradient of parameter {name!r} is NaN or infinite at step {self.step}; "
                    "the step was not taken. Skip such steps, or lower the learning rate"
                )
        self._before = {
            name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad
        }

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        before, self._before = self._before, None
        step, self.step = self.step, self.step + 1
        if before is None:
            return
        self._due = False
        rates = _rates(self.model, optimizer)
        after = dict(self.model.named_parameters())
        updates = {
            name: (after[name].detach() - before[name]) / rates[name]
            for name in self._parameters
            if name in before and rates.get(name, 0) > 0
        }
        for name, update in updates.items():
            check_finite(name, update, f"update (step {step})")
        generator = torch.Generator().manual_seed(self.procedure.seed + step)
        with untouched(self.model):
            found = self._prober().estimate(
                before,
                updates,
                self._probe_inputs,
                method=self.procedure.method,
                rtol=self.procedure.rtol,
                generator=generator,
            )
        self._steps.append(step)
        self._rates.append(next(rate for rate in rates.values() if rate > 0))
        frozen = Estimate(0.0, 0.0, "exact", 0, "not trained at this step")
        for name in self._parameters:
            self._fslrs[name].append(found.get(name, frozen))

    def _prober(self) -> Prober:
        mode = modes(self.model)
        if mode not in self._probers:
            captured: Capture = capture(self.model, self._probe_inputs, self.procedure.output_fn)
            self._probers[mode] = Prober(captured)
        return self._probers[mode]


def _learning_rate(optimizer: Optimizer) -> float:
    """The run's learning rate: the first group's, before any scheduler."""
    group = optimizer.param_groups[0]
    rate = float(group.get("initial_lr", group["lr"]))
    if not rate > 0:
        raise OptimizerError(
            f"the optimizer's learning rate is {rate:g}; expected one above 0, since the unit "
            "update is the update divided by it: attach with the run's learning rate set"
        )
    return rate


def _check_covered(model: nn.Module, optimizer: Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    outside = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if outside:
        shown = ", ".join(map(repr, outside[:8])) + (", …" if len(outside) > 8 else "")
        raise OptimizerError(
            f"{len(outside)} trainable parameters are in no group of the optimizer: {shown}; add "
            "them to it, or freeze them with requires_grad_(False)"
        )


def _rates(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """The learning rate of each trainable parameter in the optimizer, by canonical name."""
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {
        name: rates[id(p)]
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) in rates
    }
