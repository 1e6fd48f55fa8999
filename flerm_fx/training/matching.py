"""Matching again and again while the target trains, along the base's recorded trajectory."""

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import nn
from torch.optim import Optimizer

from flerm_fx.align.aligning import Mapped, OnUnmatched
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.assign.matches import held_as_matched, matched, wanted
from flerm_fx.assign.multipliers import floor, resolved
from flerm_fx.assign.way import first_guess
from flerm_fx.boundary.options import checked, choice, instance, number
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.module import scales_of
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.errors import InputError, ProfileError
from flerm_fx.model.copying import copied
from flerm_fx.model.distributed import Ranks, unwrapped
from flerm_fx.model.inputs import OutputFn, device_of, output_of, to_device
from flerm_fx.probe.estimate import Estimate, rows
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.probe.prober import Prober
from flerm_fx.profile.profile import LOAD, BaseProfile
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.as_base import check_as_base
from flerm_fx.recipe.likeness import check_state_is_free
from flerm_fx.recipe.optimizers import Optimizers, listed
from flerm_fx.recipe.pool import Pool, probe_batch
from flerm_fx.recipe.schedule import Schedule
from flerm_fx.start.precision import is_coarse, measurable, refined
from flerm_fx.start.update_size import update_sizes
from flerm_fx.training.logs import FSLR, MULTIPLIER, Log, logging
from flerm_fx.training.observer import Attached, Observed, UpdateObserver
from flerm_fx.training.running import RunningProber
from flerm_fx.training.states import State, a_rate, a_step, items
from flerm_fx.training.targets import PlainTarget, ScaledTarget

RISEN = 0.5
"""The part of a run's rate below which it still warms up."""


def match(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    base_profile: BaseProfile,
    inputs: Pool | None = None,
    *,
    every: int = 100,
    at: Iterable[int] | None = None,
    stretch: float = 1.0,
    ema: float = 0.0,
    output_fn: OutputFn | None = None,
    mapping: Mapped | None = None,
    on_unmatched: OnUnmatched = "error",
    method: Method = "auto",
    rtol: float = 0.05,
    log: Log | None = None,
) -> "Matcher":
    r"""Match a model to a base again and again while it trains (Milsom et al. 2025, algorithm 1).

    At steps 0, ``every``, 2 ``every``, … hooks on the optimizer measure the FSLRs of the step's own
    unit updates, and set the multipliers

    .. math:: m_l(t) = \frac{\sum_b \mathrm{share}_{b \to l}\,
                             \mathrm{FSLR}_b(t / \mathrm{stretch})}{\mathrm{FSLR}_l(t)},

    for that step already and for those that follow. The base's FSLRs come from the trajectory that
    :func:`flerm_fx.record` followed, between its steps by interpolation of their logarithms, and
    after the last as they were there. Where an FSLR is zero or within its noise, the multiplier
    stays what it was, at first 1.

    While the run warms up, below half of the rate that its groups have as a peak, multipliers are
    not matched: FSLRs at the first steps hold a wide model back. A plain model has multipliers at
    which its first update is as large as the base's there
    (:func:`flerm_fx.start.update_size.update_sizes`), if the profile's start was settled, and 1
    otherwise; a model with scale nodes has its own.

    - A plain model keeps its weights, and its optimizer the groups that it has: multipliers enter
      during the step alone, so that schedulers, checkpoints and edits of the groups see the rates
      that they set. Several multipliers in one group are several groups during the step.
    - A model from :func:`flerm_fx.compile` with scale nodes starts from its own multipliers. Stored
      weights, gradients and optimizer state are rescaled with the nodes, so that neither the
      function nor the effective state moves.

    Args:
        model: the target, in the mode in which it trains; DDP, ``fully_shard`` and
            ``torch.compile`` may be around it.
        optimizer: its optimizer, or a list of them.
        base_profile: recorded on the base while it trained.
        inputs: probe batch for this model, the same on all ranks, or a list or DataLoader, of
            which the first is read; the profile's if None.
        every: steps between measurements.
        at: the steps to measure at, in place of every so many.
        stretch: length of this run over the length of the base's.
        ema: decay of a moving average over measurements of squared FSLRs, of both sides, corrected
            for its start; the paper's code has 0.9. Base and target are to be measured equally
            often then.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor).
        mapping: as for :func:`flerm_fx.compile`.
        on_unmatched: as for :func:`flerm_fx.compile`.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`.
        log: called with ``{"flerm/fslr/<parameter>": …, "flerm/multiplier/<parameter>": …}`` and
            the step at each measurement.

    Returns:
        A :class:`Matcher`: a context manager that has the present ``multipliers``.

    Raises:
        InputError: unusable inputs or options, or a profile without a trajectory.
        MatchError: parameters that structure cannot match.
        OptimizerError: a parameter outside the optimizer, another optimizer than the base's, a
            rule whose state holds weights or learning rates, or scale nodes under one whose state
            does not follow them.
        EstimateError: a NaN or infinite update or FSLR; the step is undone first.

    Example::

        >>> import flerm_fx, torch
        >>> def mlp(width):
        ...     torch.manual_seed(0)
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> def train(model, optimizer):
        ...     for _ in range(5):
        ...         optimizer.zero_grad()
        ...         nn.functional.cross_entropy(model(x), y).backward()
        ...         optimizer.step()
        >>> x, y = torch.randn(16, 4), torch.randint(3, (16,))
        >>> small, large = mlp(8), mlp(64)
        >>> adam = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> with flerm_fx.record(small, adam, x, y, every=2) as recorder:
        ...     train(small, adam)
        >>> adam = torch.optim.Adam(large.parameters(), lr=1e-3)
        >>> with match(large, adam, recorder.profile, every=2) as matcher:
        ...     train(large, adam)
        >>> matcher.trajectory.steps
        (0, 2, 4)
    """
    return Matcher(
        model,
        optimizer,
        base_profile,
        inputs,
        every=every,
        at=at,
        stretch=stretch,
        ema=ema,
        output_fn=output_fn,
        mapping=mapping,
        on_unmatched=on_unmatched,
        method=method,
        rtol=rtol,
        log=log,
    )


@dataclass(frozen=True)
class Matched:
    """What one measurement found.

    Attributes:
        step: at which it was.
        learning_rate: of the step.
        fslrs: FSLR of each trained parameter's unit update, before its multiplier.
        multipliers: of all parameters from this step on.
    """

    step: int
    learning_rate: float
    fslrs: Mapping[str, Estimate]
    multipliers: Mapping[str, float]


class Matcher(Attached):
    """Matching in progress; see :func:`match`.

    Leaving the ``with`` block, or :meth:`close`, takes the hooks off; multipliers of a plain model
    no longer hold then.

    Attributes:
        multipliers: the present multiplier of each trainable parameter, in execution order.
        history: what each measurement found.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        base_profile: BaseProfile,
        inputs: Pool | None = None,
        *,
        every: int = 100,
        at: Iterable[int] | None = None,
        stretch: float = 1.0,
        ema: float = 0.0,
        output_fn: OutputFn | None = None,
        mapping: Mapped | None = None,
        on_unmatched: OnUnmatched = "error",
        method: Method = "auto",
        rtol: float = 0.05,
        log: Log | None = None,
    ) -> None:
        model = checked("model", model)
        instance("base_profile", base_profile, BaseProfile, "a BaseProfile", LOAD)
        schedule = Schedule(every, at)
        stretch, ema, rtol = checked("stretch", stretch), checked("ema", ema), checked("rtol", rtol)
        choice("method", method, METHODS)
        choice("on_unmatched", on_unmatched, get_args(OnUnmatched))
        for name, value in (("output_fn", output_fn), ("mapping", mapping), ("log", log)):
            checked(name, value)
        if not base_profile.trajectory.steps:
            raise InputError(
                "the profile has no trajectory to match: train the base inside of "
                "flerm_fx.record(...), or compile the model, which matches the start alone"
            )
        ranks = Ranks.of(model)
        model = unwrapped(model)
        scaled = _scaled(model)
        model = model if scaled is None else scaled
        optimizers = listed(optimizer)
        run = Optimizers.of(model, optimizers)
        plain = model if scaled is None else scaled.skeleton
        probe = base_profile.pool[0][0] if inputs is None else probe_batch(plain, inputs)
        probe = to_device(ranks.agreed(probe), device_of(model))
        copied_anew = functools.partial(copied, model) if scaled is None else scaled.plain
        twin, ((probe, _),), obstacle = measurable(
            copied_anew, ((probe, None),), lambda m, batch: output_of(m, batch[0], output_fn)
        )
        captured = capture(twin, probe, output_fn, original=model)
        if obstacle:
            warnings.warn(
                "the model has weights in half precision and does not run in float32 "
                f"({obstacle}), so its steps are measured as it is: FSLRs are off by some "
                f"hundredths, and those below {floor(captured):.1%} of the largest are taken for "
                "rounding",
                stacklevel=3,
            )
        precise = is_coarse(model) and not obstacle
        matches = matched(base_profile, captured, mapping, on_unmatched)
        self.multipliers = dict.fromkeys(captured.parameters, 1.0)
        self.history: list[Matched] = []
        self._base_run = base_profile.optimizers
        held = held_as_matched(base_profile, captured, matches)
        given = {name: (run.rule(name), run.rate(name)) for name in run.held}
        check_as_base(replace(self._base_run, held=held), given)
        for rule in run.rules:
            check_state_is_free(rule)
        self._run, self._graph = run, capture_graph(captured)
        self._matches, self._profile = matches, base_profile
        self._trajectory = base_profile.trajectory.smoothed(ema)
        self._stretch = stretch
        self._squares = _MovingAverage(ema)
        self._log = log
        self._captured = captured
        self._target: PlainTarget | ScaledTarget = (
            PlainTarget(model, optimizers, run)
            if scaled is None
            else ScaledTarget(scaled, optimizers, run)
        )
        self.multipliers.update(self._target.multipliers())
        self._prober = RunningProber(
            (lambda: model) if scaled is None else (lambda: scaled.skeleton),
            Prober(captured, ranks),
            probe,
            output_fn=output_fn,
            method=method,
            rtol=rtol,
            seed=base_profile.seed,
            plain=(lambda: refined(copied_anew()))
            if precise
            else copied_anew
            if scaled is not None and scaled.in_module
            else None,
        )
        self._observer = UpdateObserver(
            model, optimizers, run, schedule.due, self._observed, self._saved
        )
        super().__init__(optimizers, self._before, self._after)

    @property
    def step(self) -> int:
        """Optimizer steps seen so far; those that a gradient scaler skipped are none."""
        return self._observer.step

    @property
    def trajectory(self) -> Trajectory:
        """FSLRs of the model's unit updates, before their multipliers, at each measurement."""
        never = Estimate(0.0, 0.0, "exact", 0, "not trained at this step")
        return Trajectory(
            tuple(found.step for found in self.history),
            tuple(found.learning_rate for found in self.history),
            {
                name: tuple(found.fslrs.get(name, never) for found in self.history)
                for name in self.multipliers
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Multipliers, and what was measured so far, in plain numbers, for a checkpoint."""
        return {
            "step": self._observer.step,
            "waiting": self._observer.waiting,
            "multipliers": dict(self.multipliers),
            "squares": self._squares.state(),
            "history": [
                [found.step, found.learning_rate, rows(found.fslrs), dict(found.multipliers)]
                for found in self.history
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run was interrupted.

        Attach a matcher as in the first run, then load the states of model, optimizer and matcher,
        in this order.

        Raises:
            InputError: the state is of other parameters, of another version, or of other scales
                than the model's, or has a number that is none of a matching; the matcher is as it
                was.
        """
        given = State("matcher", state, self.state_dict(), self.multipliers)

        def found(what: str, value: Any) -> Matched:
            step, rate, fslrs, multipliers = items(what, value, 4)
            return Matched(
                a_step(what, step),
                a_rate(what, rate),
                given.some_estimates(what, fslrs),
                given.multipliers(what, multipliers),
            )

        def square(what: str, value: Any) -> tuple[float, float]:
            total, weight = items(what, value, 2)
            return number(what, total, least=0), number(what, weight, above=0)

        step, waiting = given.step(), given.waiting()
        multipliers = given.part("multipliers", given.multipliers)
        squares = given.of_some("squares", given.by("squares", square))
        twin = copy.copy(self)
        twin.history = given.each("history", found)
        try:
            _ = twin.trajectory  # which raises where steps do not ascend
        except ProfileError as error:
            raise InputError(f"the matcher's state is of no matching: {error}") from error
        self._target.check(multipliers)
        self._observer.step, self._observer.waiting = step, waiting
        self.multipliers = multipliers
        self.history = twin.history
        self._squares.load(squares)

    def close(self) -> None:
        """Take the hooks off the optimizer."""
        super().close()
        self._target.stepped()

    def _before(self, optimizer: Optimizer) -> None:
        self._observer.before(optimizer)
        try:
            self._target.stepping(optimizer, self.multipliers)
        except BaseException:
            self._target.stepped()
            raise

    def _after(self, optimizer: Optimizer) -> None:
        self._target.stepped()
        self._observer.after(optimizer)
        self._target.forget()

    def _saved(self) -> Callable[[], None]:
        """What undoes :meth:`_observed`."""
        multipliers, measured = self.multipliers, len(self.history)
        squares, restore = self._squares.state(), self._target.saved()

        def undo() -> None:
            restore()
            self.multipliers = multipliers
            self._squares.load(squares)
            del self.history[measured:]

        return undo

    def _observed(self, observed: Observed) -> Callable[[], None]:
        unit = self._target.unit(observed, self.multipliers)
        found = self._prober.estimate(unit)
        smoothed = self._squares.after(found)
        following = self._matched(unit, smoothed, found)
        self._target.rematch(observed, self.multipliers, following)
        self._squares.keep(found)
        self.multipliers = following
        rate = next(rate for rate in observed.rates.values() if rate > 0)
        self.history.append(Matched(observed.step, rate, found, dict(following)))
        numbers = {FSLR + name: estimate.value for name, estimate in found.items()}
        numbers |= {MULTIPLIER + name: m for name, m in following.items()}
        return logging(self._log, numbers, observed.step)

    def _matched(
        self, observed: Observed, smoothed: Mapping[str, float], found: Mapping[str, Estimate]
    ) -> dict[str, float]:
        """Multipliers at which the smoothed FSLRs meet the base's.

        Old ones where that is not resolved, and the first guess while the rate still rises.
        """
        following = dict(self.multipliers)
        if not self._has_risen(observed):
            first = not self.history and isinstance(self._target, PlainTarget)
            if first and self._profile.update_sizes:
                sizes = update_sizes(observed.updates, self._graph)
                following |= first_guess(self._profile, self._matches, sizes)
            return following
        base = self._trajectory.between(observed.step / self._stretch)
        known = resolved(base, self._captured)
        measured = resolved(found, self._captured)
        values = {name: estimate.value for name, estimate in base.items()}
        for name, match in self._matches.items():
            if name in measured and any(b in known for b, _ in match.base):
                following[name] = wanted(self._base_run, match.base, values) / smoothed[name]
        return following

    def _has_risen(self, observed: Observed) -> bool:
        """Whether the rate has been at half of the run's peak, or does not rise any more."""
        name, rate = next((n, r) for n, r in observed.rates.items() if r > 0)
        before = [found.learning_rate for found in self.history]
        if before and rate <= before[-1]:
            return True
        return max([rate, *before]) >= RISEN * self._run.rate(name)


def _scaled(model: nn.Module) -> ScaledModel | None:
    """The scale nodes of a model, if it has any."""
    if isinstance(model, ScaledModel):
        return model if model.scales else None
    scales = scales_of(model)
    return ScaledModel(model, scales, in_module=True) if scales else None


class _MovingAverage:
    """Moving averages of squared FSLRs, each corrected for its start at 0."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sums: dict[str, tuple[float, float]] = {}

    def after(self, found: Mapping[str, Estimate]) -> dict[str, float]:
        """Roots of the averages with these FSLRs in them."""
        return {n: math.sqrt(s / w) for n, (s, w) in self._with(found).items()}

    def keep(self, found: Mapping[str, Estimate]) -> None:
        """Take these in."""
        self._sums = self._with(found)

    def _with(self, found: Mapping[str, Estimate]) -> dict[str, tuple[float, float]]:
        d = self._decay
        sums = dict(self._sums)
        for name, estimate in found.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = (d * total + (1 - d) * estimate.value**2, d * weight + 1 - d)
        return sums

    def state(self) -> dict[str, tuple[float, float]]:
        return dict(self._sums)

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        self._sums = {name: (total, weight) for name, (total, weight) in state.items()}
