"""What a process of the runner does: record a base, fit a law, find multipliers, or train once."""

import itertools
import json
import math
import multiprocessing
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

import flerm_fx
from experiments import completep, data, mup_models, rules_by_hand
from experiments.axes import Axis
from experiments.data import Batch
from experiments.methods import Method
from experiments.store import Result, Run
from experiments.training import Sign, optimizers, train

PROBE_SEED = 10_000
"""Seed of the batches that FSLRs are measured on."""

BASE_SEED = 1_000
"""Seed of the first base model that is recorded; those of the runs are others."""

LAW_SEEDS = range(2_000, 2_003)
"""Seeds of the models of each size that a law is fitted to."""

SETTLING_BATCHES = 20
"""To train on while settling, beside the one that FSLRs are measured on."""


@dataclass(frozen=True)
class Recording:
    """Record base models at a rate, and save the mean of their profiles."""

    axis: Axis
    method: Method
    rate: float
    path: Path

    def __call__(self) -> None:
        """Record each, training only where a trajectory is asked for."""
        count = min(self.method.seeds, self.axis.seeds)
        profiles = [self._profile(BASE_SEED + self.method.first + i) for i in range(count)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flerm_fx.BaseProfile.mean(profiles).save(self.path)

    def _profile(self, seed: int) -> flerm_fx.BaseProfile:
        axis, method = self.axis, self.method
        model = build(axis, 1, seed)
        run = of_axis(axis, model, self.rate)
        settle = min(method.settle, axis.steps)
        pool = probe(axis, settle)
        with flerm_fx.record(
            model,
            run,
            [x for x, _ in pool],
            [y for _, y in pool],
            at=None if method.at == "start" else method.at,
            settle=settle,
            method=method.estimator,
        ) as recorder:
            if method.trajectory:
                train(model, run, data.load(axis.data), axis, seed)
        return recorder.profile


@dataclass(frozen=True)
class Fitting:
    """Fit a law to models that are smaller than a scale, and save it."""

    axis: Axis
    method: Method
    scale: float
    profile: Path
    path: Path

    def __call__(self) -> None:
        """Compile several models of each size, or follow a run of each."""
        base = flerm_fx.BaseProfile.load(self.profile)
        scales = [scale for scale in self.method.fitted if scale < self.scale]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            law = self._of_courses(base, scales) if self.method.course else self._of(base, scales)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        law.save(self.path)

    def _of(self, base: flerm_fx.BaseProfile, scales: Sequence[float]) -> flerm_fx.ScalingLaw:
        return flerm_fx.scaling_law(
            lambda scale: self.axis.build(scale).to(device()),
            [{"scale": scale} for scale in scales],
            base,
            seeds=LAW_SEEDS,
            method=self.method.estimator,
            optimizer=_custom(self.axis),
        )

    def _of_courses(
        self, base: flerm_fx.BaseProfile, scales: Sequence[float]
    ) -> flerm_fx.ScalingLaw:
        """Each model trains with the multipliers that ``compile`` gives it."""
        axis, pool = self.axis, probe(self.axis, 0)
        assert not isinstance(self.method.at, str)
        runs = []
        for scale, seed in itertools.product(scales, LAW_SEEDS):
            model = build(axis, scale, seed)
            found = flerm_fx.compile(
                model, base, emit="param_groups", optimizer=_custom(axis)
            ).multipliers
            run = of_axis(axis, model, base.learning_rate, found)
            with flerm_fx.record(
                model,
                run,
                [x for x, _ in pool],
                [y for _, y in pool],
                at=self.method.at,
                settle=0,
                method=self.method.estimator,
            ) as recorder:
                train(model, run, data.load(axis.data), axis, seed)
            runs.append(recorder.profile)
        return flerm_fx.ScalingLaw.fit_trajectories(base, runs)


@dataclass(frozen=True)
class Compiling:
    """Find the multipliers of one model by a profile or a law, and save them."""

    axis: Axis
    method: Method
    scale: float
    seed: int
    source: Path
    path: Path

    def __call__(self) -> None:
        """Compile the model that a run of this seed begins with."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = self._by_law() if self.method.kind == "law" else self._by_profile()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
        temporary.replace(self.path)

    def _by_profile(self) -> dict[str, float]:
        base = flerm_fx.BaseProfile.load(self.source)
        compiled = flerm_fx.compile(
            build(self.axis, self.scale, self.seed),
            base,
            emit="param_groups",
            method=self.method.estimator,
            optimizer=_custom(self.axis),
        )
        return multipliers(compiled, self.method, sum(e.value for e in base.start.values()))

    def _by_law(self) -> dict[str, float]:
        """Those of a model that is not run: it has shapes alone."""
        with torch.device("meta"):
            model = self.axis.build(self.scale)
        law = flerm_fx.ScalingLaw.load(self.source)
        return flerm_fx.compile(model, law, emit="param_groups").multipliers


@dataclass(frozen=True)
class Training:
    """Train one model at one rate."""

    axis: Axis
    method: Method
    run: Run
    profile: Path | None
    multipliers: Path | None

    def __call__(self) -> Result:
        """Build, set the rates, train, validate."""
        axis, run = self.axis.run(self.run.scale), self.run
        batches = data.load(axis.data)
        model, rule = self._begun()
        if self.method.kind == "match" and self.profile is not None:
            base, by = flerm_fx.BaseProfile.load(self.profile), self.method
            matched = model
            if by.compiled:
                matched = flerm_fx.compile(model, base, emit="param_groups", method=by.estimator)
            with flerm_fx.match(matched, rule, base, at=by.at, method=by.estimator):
                outcome = train(model, rule, batches, axis, run.seed)
        else:
            outcome = train(model, rule, batches, axis, run.seed)
        return Result(run, outcome.loss, outcome.train_loss, outcome.seconds)

    def _begun(self) -> tuple[nn.Module, list[Optimizer]]:
        """The model and what trains it, before the first step."""
        axis, run = self.axis.run(self.run.scale), self.run
        if self.method.kind == "mup":
            model = mup_models.build(axis, run.scale, run.seed).to(device())
            return model, [mup_models.optimizer(model, run.rate)]
        if self.method.kind == "completep":
            model = completep.build(axis, run.scale, run.seed).to(device())
            return model, [completep.optimizer(axis, model, run.scale, run.rate)]
        model = build(axis, run.scale, run.seed)
        return model, of_axis(axis, model, run.rate, self._multipliers())

    def _multipliers(self) -> dict[str, float] | None:
        """Those of the method; None where all are 1."""
        if self.method.kind == "mup-rates":
            by_hand = self.axis.model in rules_by_hand.PLACES
            rates = rules_by_hand.mup_rates if by_hand else mup_models.rates
            return rates(self.axis, self.run.scale)
        if self.multipliers is None:
            return None
        found: dict[str, float] = json.loads(self.multipliers.read_text())
        return found


Work = Recording | Fitting | Compiling | Training


def build(axis: Axis, scale: float, seed: int) -> nn.Module:
    """A model at its initial weights, the same on any device."""
    torch.manual_seed(seed)
    return axis.build(scale).to(device())


def of_axis(
    axis: Axis, model: nn.Module, rate: float, found: Mapping[str, float] | None = None
) -> list[Optimizer]:
    """The axis's optimizers, at a rate, with its factors, and with multipliers if there are any."""
    if axis.rates:
        names = [name for name, _ in model.named_parameters()]
        found = {
            name: axis.factor(name) * (1.0 if found is None else found[name]) for name in names
        }
    return optimizers(axis.optimizer, model, rate, found, axis.swept, axis.other_rate, axis.recipe)


def device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def probe(axis: Axis, settle: int) -> list[Batch]:
    """The batches of a start: one, and others to settle on where it does."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    count = 1 + (SETTLING_BATCHES if settle else 0)
    return [data.load(axis.data).sample(axis.batch, generator) for _ in range(count)]


def multipliers(
    compiled: flerm_fx.CompiledModel, method: Method, whole: float = 1.0
) -> dict[str, float]:
    r"""Those that were found, or with other masses.

    With ``"root"`` a tensor that gets a share :math:`s` of its base parameters has
    :math:`m_l / \sqrt{s}`. The paper's ablations are :math:`m_l = M / (L\, \mathrm{FSLR}_l)`: with
    ``"equal"`` L counts the target's tensors; with ``"equal-split"`` it counts the base's, and a
    tensor gets its share of one. M is ``whole``, 1 in the paper; with the sum of the base's FSLRs
    the best rate stays on the grid.
    """
    found = compiled.multipliers
    if method.mass == "recorded":
        return found
    shares = {name: sum(s for _, s in compiled.matches[name].base) for name in found}
    if method.mass == "root":
        return {name: m / math.sqrt(shares[name]) for name, m in found.items()}
    if method.mass == "equal":
        shares = dict.fromkeys(found, 1.0)
    total = sum(shares.values())
    return {
        row.parameter: whole * shares[row.parameter] / (total * row.target.value)
        if row.target.value
        else 1.0
        for row in compiled.assignments
    }


def _custom(axis: Axis) -> type[Sign] | None:
    """The optimizer, where torch does not have it."""
    return Sign if axis.optimizer == "sign" else None


def start_process() -> None:
    """One thread, as numbers depend on how many there are; and an end where the runner ends."""
    torch.set_num_threads(1)
    if runner := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=[runner], daemon=True).start()


def _end_with(runner: BaseProcess) -> None:
    runner.join()
    os._exit(1)
