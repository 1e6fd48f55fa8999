"""Recording a base model: its start at once, its trajectory as it trains."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flerm_fx.align.parameter_graph import capture_graph, to_json
from flerm_fx.boundary.options import checked, choice, number
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import InputError, OptimizerError, ProfileError
from flerm_fx.model.copying import copied, refuse_gradient_hooks
from flerm_fx.model.distributed import Ranks, unwrapped
from flerm_fx.model.inputs import OutputFn, device_of, to_device
from flerm_fx.probe.estimate import Estimate, rows
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.probe.prober import Prober
from flerm_fx.profile.packing import check_pool
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.text import check_printable
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.loss import LossFunction, resolve
from flerm_fx.recipe.optimizers import Optimizers, listed
from flerm_fx.recipe.pool import Pool, probe_pool
from flerm_fx.recipe.schedule import Schedule, default_settle, default_warmup
from flerm_fx.start.precision import is_coarse, measurable, refined, warn_of_rounding
from flerm_fx.start.procedure import MODEL_LOSS, StartProcedure, batch_loss
from flerm_fx.start.start import Moment, measure_settling, measure_start, start_of
from flerm_fx.training.logs import FSLR, Log, logging
from flerm_fx.training.observer import Attached, Observed, UpdateObserver
from flerm_fx.training.running import RunningProber
from flerm_fx.training.states import State, a_rate, a_step, items

FAR = 2.0
"""How many times the rate of the settled start a run's may be without a warning."""

TRAJECTORY = 2.0
"""How many times the start's relative error a point of the trajectory may have."""


def record(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    inputs: Pool,
    targets: Any = None,
    *,
    loss_fn: LossFunction | str | None = None,
    output_fn: OutputFn | None = None,
    every: int = 100,
    at: Iterable[int] | None = None,
    lr: float | None = None,
    settle: int | None = None,
    warmup: int | None = None,
    resolve_after: int = 4,
    method: Method = "auto",
    rtol: float = 0.05,
    generator: torch.Generator | None = None,
    log: Log | None = None,
) -> "Recorder":
    r"""Record the function-space learning rates of a base model.

    The *start* is measured at once, on a copy of the model: after ``settle`` simulated steps of the
    optimizer's rule, the FSLR of each parameter's next unit update
    :math:`u_l = \Delta\theta_l / \mathrm{lr}`. Behind a weight that starts at zero (LoRA's A while
    B is 0, a branch whose gate is 0) nothing has a gradient yet, and that FSLR is exactly 0; where
    there is such a parameter, the FSLRs of all are measured once more ``resolve_after`` steps
    later, and :func:`flerm_fx.compile` matches it by those. The *trajectory* follows as the model
    trains: hooks on the optimizer measure the real update at steps 0, ``every``, 2 ``every``, …
    Training itself is left bit for bit what it is without recording. Decay that an optimizer takes
    from the weights beside the gradient's step (AdamW) is no part of an update.

    Args:
        model: the base model, in the mode in which it trains.
        optimizer: its optimizer, or a list of them, such as Muon for matrices and AdamW for the
            rest; every trainable parameter must be in one.
        inputs: probe pool: one batch (a tensor, tuple or dict of keyword arguments, batch first)
            or several, in a list or a DataLoader, of which the first 21 are read
            (:func:`flerm_fx.recipe.pool.probe_pool`). FSLRs are measured on the first; simulated
            steps take the others.
        targets: what the loss compares with, batch by batch; None where ``inputs`` are pairs of
            inputs and targets, or the model returns its own loss: ``.loss``, or the tensor without
            dimensions in ``(loss, logits)``.
        loss_fn: ``loss_fn(output, targets)``, or its name in ``torch.nn.functional``; by default
            cross entropy for integer targets and mean squared error for floating ones.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor
            that has dimensions).
        every: steps between measurements of the trajectory.
        at: the steps to measure at, in place of every so many; what happens at first happens fast,
            so that powers of two show more than equal distances.
        lr: the run's learning rate, of the first parameter group, at which the start is settled;
            other groups' keep their proportion to it. By default what each group has: the
            ``max_lr`` that ``OneCycleLR`` writes there, else the ``initial_lr`` of other
            schedulers, else its ``lr``. A loop that warms up by setting ``lr`` itself has to pass
            its peak, and so has ``CyclicLR``.
        settle: simulated steps to the start; 0 is the paper's first step. Of more, the start is the
            mean over eight of them, evenly spaced behind the warm-up. By default five passes over
            the batches of the pool, of which there is none where it is a single batch, and at most
            100.
        warmup: over how many of the settling steps the rate rises in equal parts from 0. By default
            four tenths: without it, a base at the best rate of a run that warms up may be thrown at
            once, and its FSLRs are then those of a model that does not learn.
        resolve_after: further simulated steps before the *late* start is measured, where a
            parameter's FSLR at the start is exactly 0; 0 leaves such a parameter unresolved.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`, of the start. The trajectory, which has many points,
            is measured to twice that, at a quarter of the cost.
        generator: its seed becomes the profile's; 0 if None.
        log: called with ``{"flerm/fslr/<parameter>": FSLR}`` and the step at each measurement.

    Returns:
        A :class:`Recorder`: a context manager with a ``profile``.

    Warns:
        UserWarning: weights are in half precision, and the model does not run in float32, in which
            it would be measured.

    Raises:
        InputError: unusable inputs, targets or options.
        OptimizerError: a parameter outside the optimizer, learning rates that are all 0, or an
            optimizer that cannot be built again or stepped.
        EstimateError: a NaN or infinite loss, update or FSLR.
        DivergenceError: the simulated steps diverge.
        ProfileError: a name in the model has characters that are not printable, such as the end of
            a line, which a profile refuses.

    Warns:
        UserWarning: the run's learning rate is 0 at a step to be measured, or far above the one at
            which the start was settled.

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
        at=at,
        lr=lr,
        settle=settle,
        warmup=warmup,
        resolve_after=resolve_after,
        method=method,
        rtol=rtol,
        generator=generator,
        log=log,
    )


class Recorder(Attached):
    """A recording in progress; see :func:`record`.

    Leaving the ``with`` block, or :meth:`close`, takes the hooks off the optimizer; the profile
    stays.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        inputs: Pool,
        targets: Any = None,
        *,
        loss_fn: LossFunction | str | None = None,
        output_fn: OutputFn | None = None,
        every: int = 100,
        at: Iterable[int] | None = None,
        lr: float | None = None,
        settle: int | None = None,
        warmup: int | None = None,
        resolve_after: int = 4,
        method: Method = "auto",
        rtol: float = 0.05,
        generator: torch.Generator | None = None,
        log: Log | None = None,
    ) -> None:
        model = checked("model", model)
        lr = None if lr is None else checked("lr", lr)
        schedule = Schedule(every, at)
        settle, warmup = checked("settle", settle), checked("warmup", warmup)
        resolve_after, rtol = checked("resolve_after", resolve_after), checked("rtol", rtol)
        method = choice("method", method, METHODS)
        output_fn, log = checked("output_fn", output_fn), checked("log", log)
        generator = checked("generator", generator)
        optimizers = listed(optimizer)
        ranks = Ranks.of(model)
        model = unwrapped(model)
        refuse_gradient_hooks(model)
        pool = ranks.agreed(probe_pool(model, inputs, targets))
        check_pool(pool)
        settle = default_settle(len(pool)) if settle is None else settle
        warmup = default_warmup(settle) if warmup is None else warmup
        if warmup > max(settle - 1, 0):
            raise InputError(
                f"warmup is {warmup} of {settle} settling steps; expected fewer of them, so that "
                "the start is measured at the full rate"
            )
        own_loss = loss_fn is None and pool[0][1] is None
        loss = None if own_loss else resolve(loss_fn, pool[0][1])
        self.model = model
        self.optimizer = optimizer
        self.resolve_after = resolve_after
        self.procedure = StartProcedure(
            optimizers=Optimizers.of(model, optimizers, lr),
            settle=settle,
            warmup=warmup,
            loss=loss,
            pool=pool,
            output_fn=output_fn,
            method=method,
            rtol=rtol,
            seed=generator.initial_seed() % 2**63 if generator is not None else 0,
        )
        plain, measured_pool, obstacle = measurable(
            lambda: copied(model), pool, lambda m, batch: batch_loss(m, batch, loss, output_fn)
        )
        procedure = replace(self.procedure, pool=measured_pool)
        probe_inputs = to_device(measured_pool[0][0], device_of(model))
        twin = capture(plain, probe_inputs, output_fn, original=model)
        if obstacle:
            warn_of_rounding(twin, procedure, obstacle, stacklevel=3)
        self._graph = capture_graph(twin)
        rules = [rule.spec() for rule in self.procedure.optimizers.rules]
        check_printable([list(twin.parameters), to_json(self._graph), rules])
        self._shapes = {name: tuple(p.shape) for name, p in twin.parameters.items()}
        prober = Prober(twin, ranks)
        on_the_way = measure_settling(twin, procedure, prober=prober, sized=settle > 0)
        self._start = start_of(on_the_way, procedure)
        self._settling = on_the_way if settle else {}
        # Exactly 0: an FSLR within rounding, such as that of an attention key's bias, is as small
        # at any later step.
        run = self.procedure.optimizers
        at_zero = any(
            e.value == 0 and self._graph.nodes[n]["op"] and run.rate(n)
            for n, e in self._start.items()
        )
        late = resolve_after if at_zero else 0
        self._late = measure_start(twin, procedure.after(late), prober=prober) if late else {}
        self._training = model.training
        self._prober = RunningProber(
            lambda: model,
            prober,
            probe_inputs,
            output_fn=output_fn,
            method=method,
            rtol=min(TRAJECTORY * rtol, 0.99),
            seed=self.procedure.seed,
            plain=(lambda: refined(copied(model))) if is_coarse(model) and not obstacle else None,
        )
        self._log = log
        self._steps: list[int] = []
        self._rates: list[float] = []
        self._fslrs: dict[str, list[Estimate]] = {name: [] for name in self._shapes}
        self._warned: set[str] = set()
        self._settled_at = {
            id(p): run.rate(name) for name, p in model.named_parameters() if p.requires_grad
        }
        self._observer = UpdateObserver(
            model, optimizers, run, schedule.due, self._observed, self._saved
        )
        super().__init__(optimizers, self._before, self._observer.after)

    @property
    def step(self) -> int:
        """Optimizer steps seen so far; those that a gradient scaler skipped are none."""
        return self._observer.step

    @property
    def profile(self) -> BaseProfile:
        """What has been recorded so far."""
        loss = self.procedure.loss
        run = self.procedure.optimizers
        several = len(run.rules) > 1
        moments = self._settling.values()
        points = {step: m.fslrs for step, m in self._settling.items() if m.fslrs}
        return BaseProfile(
            parameters=tuple(self._shapes),
            shapes=dict(self._shapes),
            start=dict(self._start),
            late=dict(self._late),
            settling=Trajectory(
                steps=tuple(points),
                learning_rates=run.learning_rates[:1] * len(points),
                fslrs={n: tuple(fslrs[n] for fslrs in points.values()) for n in self._shapes},
            )
            if points
            else Trajectory(),
            output_rms=tuple(moment.output_rms for moment in moments),
            update_sizes=dict(self._settling[0].update_sizes) if moments else {},
            trajectory=Trajectory(
                steps=tuple(self._steps),
                learning_rates=tuple(self._rates),
                fslrs={name: tuple(estimates) for name, estimates in self._fslrs.items()},
            ),
            graph=self._graph,
            optimizer=run.rules[0],
            learning_rate=run.learning_rates[0],
            others=tuple(zip(run.rules[1:], run.learning_rates[1:], strict=True)),
            held={name: run.index(name) for name in self._shapes} if several else {},
            belongs=run.belongs if several else (),
            settle=self.procedure.settle,
            warmup=self.procedure.warmup,
            resolve_after=self.resolve_after,
            loss=MODEL_LOSS if loss is None else loss.name,
            method=self.procedure.method,
            rtol=self.procedure.rtol,
            seed=self.procedure.seed,
            pool=self.procedure.pool,
            training=self._training,
        )

    def state_dict(self) -> dict[str, Any]:
        """What has been recorded and seen so far, in plain numbers, for a checkpoint.

        Save it with the model's and the optimizer's; see :meth:`load_state_dict`.
        """
        measured = len(self._steps)
        return {
            "step": self._observer.step,
            "waiting": self._observer.waiting,
            "learning_rates": list(self.procedure.optimizers.learning_rates),
            "start": rows(self._start),
            "late": rows(self._late),
            "settling": {
                step: (rows(found.fslrs), found.output_rms, dict(found.update_sizes))
                for step, found in self._settling.items()
            },
            "steps": list(self._steps),
            "rates": list(self._rates),
            "fslrs": [rows({n: es[i] for n, es in self._fslrs.items()}) for i in range(measured)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a recording: the profile becomes that of one run, as if never interrupted.

        Attach a recorder as in the first run, then load the states of model, optimizer and
        recorder.

        Raises:
            InputError: the state is of other parameters or of another version, or has a number that
                is none of a recording; the recorder is as it was.
        """
        given = State("recorder", state, self.state_dict(), self._shapes)

        def moment(what: str, value: Any) -> Moment:
            fslrs, output_rms, sizes = items(what, value, 3)
            return Moment(
                given.estimates(what, fslrs) if fslrs else {},
                number(what, output_rms, least=0),
                {n: number(what, size, least=0) for n, size in given.of_all(what, sizes).items()}
                if sizes
                else {},
            )

        step, waiting = given.step(), given.waiting()
        twin = copy.copy(self)
        twin._start = given.part("start", given.estimates)
        twin._late = given.part("late", given.estimates) if state["late"] else {}
        settling = given.by("settling", moment)
        twin._settling = {a_step("a step of settling", at): found for at, found in settling.items()}
        twin._steps = given.each("steps", a_step)
        twin._rates = given.each("rates", a_rate)
        measured = given.each("fslrs", given.estimates)
        twin._fslrs = {name: [found[name] for found in measured] for name in self._shapes}
        rates = given.each("learning_rates", lambda what, rate: number(what, rate, least=0))
        try:
            twin.procedure = self.procedure.at_rates(rates)
            _ = twin.profile  # which raises where its parts do not agree
        except (OptimizerError, ProfileError) as error:
            raise InputError(f"the recorder's state is of another recording: {error}") from error
        vars(self).update(vars(twin))
        self._observer.step, self._observer.waiting = step, waiting

    def _before(self, optimizer: Optimizer) -> None:
        self._observer.before(optimizer)
        if self._observer.resting:
            self._warn(
                "resting",
                f"the learning rate is 0 at step {self.step}, so unit updates are not defined; "
                "recording at the next step with a rate above 0",
            )
        for group in optimizer.param_groups:
            rate, settled = group["lr"], self._settled_at.get(id(next(iter(group["params"]), None)))
            on_host = not isinstance(rate, Tensor) or rate.device.type == "cpu"
            if settled and on_host and float(rate) > FAR * settled:
                self._warn(
                    "far",
                    f"the learning rate is {float(rate):g} at step {self.step}, and the start was "
                    f"settled at {settled:g}; multipliers of a start at another rate than the "
                    "run's are off: record with lr=… set to its largest",
                )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=3)

    def _saved(self) -> Callable[[], None]:
        """What undoes :meth:`_observed`."""
        measured = len(self._steps)

        def undo() -> None:
            recorded: list[list[Any]] = [self._steps, self._rates, *self._fslrs.values()]
            for rows_so_far in recorded:
                del rows_so_far[measured:]

        return undo

    def _observed(self, observed: Observed) -> Callable[[], None]:
        found = self._prober.estimate(observed)
        self._steps.append(observed.step)
        held = self.procedure.optimizers.held
        first = [r for name, r in observed.rates.items() if r > 0 and not held.get(name)]
        self._rates.append(next(iter(first), None) or next(r for r in observed.rates.values() if r))
        frozen = Estimate(0.0, 0.0, "exact", 0, "not trained at this step")
        for name in self._shapes:
            self._fslrs[name].append(found.get(name, frozen))
        numbers = {FSLR + name: estimate.value for name, estimate in found.items()}
        return logging(self._log, numbers, observed.step)
