"""The stages that an architecture goes through, each with a result of its own."""

import dataclasses
import tempfile
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import networkx as nx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.emitters import Emit
from flerm_fx.model.inputs import call_arguments, select_output
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.recipe.loss import resolve
from zoo.architecture import Architecture, Size
from zoo.names import against
from zoo.reference import (
    Reference,
    by_differences,
    by_rows,
    copied,
    random_updates,
    reference,
)

Status = Literal["passed", "failed", "not run", "not defined"]
Emitter = Literal["graph", "param_groups"]

LEARNING_RATE = 1e-3
STEPS = 3
SEED = 5

RTOL = 1e-3
"""Relative difference that an FSLR may have from the reference."""

SMALL = 1e-3
"""Below this part of the model's largest FSLR, differences are relative to this part of it: the
rounding of float32 is a millionth of the largest, whatever the parameter's own."""

ERRORS = 4.5
"""Standard errors that a sampled FSLR may be off: one in 150,000 is further."""

DRAWS = 32
"""Of each example, in the sampled stage."""


@dataclass(frozen=True)
class Result:
    """What came of one stage.

    Attributes:
        stage: its name.
        status: only a stage that ran to its end, with all that it checks, has passed.
        message: of a failure, or why it was not run.
        seconds: that it took.
        details: figures that it found.
        warnings: that were raised meanwhile.
    """

    stage: str
    status: Status
    message: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class StageError(AssertionError):
    """A stage found something other than it should have."""


class NotDefinedError(Exception):
    """A stage has no meaning for this architecture."""


class Subject:
    """An architecture on its way through the stages, with what the first leave to the later."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.inputs = architecture.inputs()
        self.targets = architecture.targets()
        self.profile: flerm_fx.BaseProfile | None = None
        self._references: dict[bool, Reference] = {}
        self._probers: dict[bool, CaptureProber] = {}

    def base(self) -> nn.Module:
        """The base model at its initial weights, in training mode."""
        return self.architecture.make("base")

    @cached_property
    def stochastic(self) -> bool:
        """Whether the model draws random numbers in training mode."""
        model = self.base()
        return not torch.equal(self.output(model, 0), self.output(model, 1))

    def output(self, model: nn.Module, seed: int = SEED) -> Tensor:
        """The output tensor of a copy, under a seed."""
        torch.manual_seed(seed)
        args, kwargs = call_arguments(self.inputs)
        with torch.no_grad():
            called = copied(model)(*args, **kwargs)
        return select_output(called, self.architecture.output_fn)

    def reference(self, model: nn.Module, updates: Mapping[str, Tensor]) -> Reference:
        """FSLRs of the base model's random updates in its present mode."""
        if model.training not in self._references:
            given = model, updates, self.inputs, self.architecture.output_fn, SEED
            self._references[model.training] = (
                Reference(by_rows(*given), "backward passes")
                if self.architecture.by_rows
                else reference(*given, self.architecture.detaches)
            )
        return self._references[model.training]

    def prober(self, model: nn.Module) -> CaptureProber:
        """What :func:`flerm_fx.measure` measures with, one for several methods."""
        if model.training not in self._probers:
            found = capture(model, self.inputs, self.architecture.output_fn)
            self._probers[model.training] = CaptureProber(found)
        return self._probers[model.training]

    def losses(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        """Losses of some steps of training."""
        torch.manual_seed(SEED)
        args, kwargs = call_arguments(self.inputs)
        loss_function = resolve(self.architecture.loss_fn, self.targets)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            output = select_output(model(*args, **kwargs), self.architecture.output_fn)
            loss = loss_function(output, self.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        if not all(map(torch.isfinite, map(torch.tensor, losses))):
            raise StageError(f"the losses are {losses}")
        return losses

    def compiled(self, model: nn.Module, emit: Emit = "graph") -> flerm_fx.CompiledModel:
        """A model compiled with the profile."""
        assert self.profile is not None
        return flerm_fx.compile(
            model,
            self.profile,
            loss_fn=self.architecture.loss_fn,
            output_fn=self.architecture.output_fn,
            emit=emit,
            method="exact",
        )


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of all stages."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE)


# The stages


def captured(subject: Subject) -> dict[str, Any]:
    """There is a graph that computes what the model computes, or a reason why there is none."""
    model = subject.base()
    found = subject.prober(model).captured
    if found.probe_module is None:
        if not found.reason:
            raise StageError("there is no graph, and no reason given")
        return {"path": "no graph", "reason": found.reason}
    expected = subject.output(model)
    torch.manual_seed(SEED)
    with torch.no_grad():
        got = found.probe_module(*found.flat(subject.inputs))
    difference = _relative(got, expected)
    if difference > 1e-4:
        raise StageError(f"the graph's output differs from the model's by {difference:.1e}")
    return {"path": "export", "parameters": len(found.parameters)}


def recorded(subject: Subject) -> dict[str, Any]:
    """Two steps of Adam are recorded."""
    model = subject.base()
    optimizer = adam(p for p in model.parameters() if p.requires_grad)
    with flerm_fx.record(
        model,
        optimizer,
        subject.inputs,
        subject.targets,
        loss_fn=subject.architecture.loss_fn,
        output_fn=subject.architecture.output_fn,
        every=1,
        settle=0,
        method="exact",
    ) as recorder:
        losses = subject.losses(model, optimizer, 2)
    profile = recorder.profile
    if profile.trajectory.steps != (0, 1):
        raise StageError(f"steps {profile.trajectory.steps} were recorded, expected (0, 1)")
    if not any(estimate.value > 0 for estimate in profile.start.values()):
        raise StageError("every FSLR is 0")
    subject.profile = profile
    return {"losses": losses}


def saved(subject: Subject) -> dict[str, Any]:
    """A profile read from its file is the one that was written."""
    profile = subject.profile
    assert profile is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        profile.save(path)
        read = flerm_fx.BaseProfile.load(path)
    for attribute in dataclasses.fields(profile):
        one, other = getattr(profile, attribute.name), getattr(read, attribute.name)
        # A loss or a rule from elsewhere has no name to be read back from.
        if not _same(one, other):
            raise StageError(f"{attribute.name} was {one!r} and is read as {other!r}"[:400])
    return {}


def exact(subject: Subject) -> dict[str, Any]:
    """The exact FSLRs of random updates are the reference's."""
    model = subject.base()
    updates = random_updates(model)
    torch.manual_seed(SEED)
    found = flerm_fx.measure(
        model,
        updates,
        subject.inputs,
        output_fn=subject.architecture.output_fn,
        method="exact",
    )
    expected = subject.reference(model, updates)
    differences = _differences(found, expected.fslrs)
    worst = max(differences, key=differences.__getitem__)
    if not differences[worst] <= RTOL:
        third = by_differences(
            model, {worst: updates[worst]}, subject.inputs, subject.architecture.output_fn, SEED
        )
        raise StageError(
            f"{_number(differences, RTOL)}: {worst} has an FSLR of {found[worst].value:.6g}; "
            f"{expected.method} gives {expected.fslrs[worst]:.6g}, differences in float64 "
            f"{third[worst]:.6g}"
        )
    return {"reference": expected.method, "worst": differences[worst]}


def sampled(subject: Subject) -> dict[str, Any]:
    """Sampled FSLRs are the reference's, within their standard errors."""
    return _estimated(subject, method="sampled", samples=DRAWS)


def automatic(subject: Subject) -> dict[str, Any]:
    """So they are by the method that is chosen for the model."""
    return _estimated(subject, method="auto")


def itself(subject: Subject) -> dict[str, Any]:
    """The base compiled against itself has multipliers of 1."""
    compiled = subject.compiled(subject.base())
    off = {name: abs(m - 1) for name, m in compiled.multipliers.items()}
    worst = max(off, key=off.__getitem__)
    if off[worst] > 1e-4:
        raise StageError(
            f"{_number(off, 1e-4)}: the multiplier of {worst} is {compiled.multipliers[worst]:.6g}"
        )
    _check_names(subject, "base", compiled)
    _check_passes(compiled)
    return {"unresolved": sum(row.status == "unresolved" for row in compiled.assignments)}


def wide(subject: Subject) -> dict[str, Any]:
    """A wider model is matched one to one, and trains, by every emitter alike."""
    if "wide" not in subject.architecture.sizes:
        raise NotDefinedError
    losses: dict[str, list[float]] = {}
    multipliers: dict[str, float] = {}
    for emit in typing.get_args(Emit):
        model = subject.architecture.make("wide", seed=1)
        compiled = subject.compiled(model, emit)
        multipliers = compiled.multipliers
        _check_names(subject, "wide", compiled)
        if emit == "graph":
            _check_passes(compiled)
        losses[emit] = _trained(subject, model, compiled, emit)
        _check_folds(subject, compiled)
    first, *others = losses.values()
    for other in others:
        if any(abs(a - b) > 1e-2 * abs(a) for a, b in zip(first, other, strict=True)):
            raise StageError(f"emitters train differently: losses {losses}")
    logs = [abs(torch.tensor(m).log2().item()) for m in multipliers.values()]
    return {"losses": losses, "largest log2 multiplier": max(logs)}


def deep(subject: Subject) -> dict[str, Any]:
    """A deeper model is matched block by block, and mass is conserved."""
    if "deep" not in subject.architecture.sizes:
        raise NotDefinedError
    compiled = subject.compiled(subject.architecture.make("deep", seed=1))
    given: dict[str, float] = {}
    for match in compiled.matches.values():
        for base, share in match.base:
            given[base] = given.get(base, 0.0) + share
    assert subject.profile is not None
    used = {a.parameter for a in compiled.assignments if a.status != "unused"}
    unmatched = [name for name in used if not compiled.matches[name].base]
    if unmatched:
        raise StageError(f"{unmatched} have no counterpart")
    lost = {
        name: given.get(name, 0.0)
        for name in subject.profile.parameters
        if subject.profile.graph.nodes[name].get("op") and abs(given.get(name, 0.0) - 1) > 1e-6
    }
    if lost:
        raise StageError(f"shares of base parameters sum to {lost}")
    _check_names(subject, "deep", compiled)
    _check_passes(compiled)
    return {}


STAGES: dict[str, tuple[Callable[[Subject], dict[str, Any]], bool]] = {
    "capture": (captured, False),
    "exact": (exact, False),
    "sampled": (sampled, False),
    "auto": (automatic, False),
    "record": (recorded, False),
    "save": (saved, True),
    "self": (itself, True),
    "wide": (wide, True),
    "deep": (deep, True),
}
"""Each stage, and whether it needs the profile of ``record``."""


def run(architecture: Architecture, starting: Callable[[str], None]) -> Iterator[Result]:
    """Take an architecture through all stages.

    Args:
        architecture: to go through.
        starting: told of each stage before it runs.
    """
    subject: Subject | None = None
    for name, (stage, needs_profile) in STAGES.items():
        starting(name)
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            status: Status = "passed"
            message, details = "", {}
            try:
                subject = subject or Subject(architecture)
                if needs_profile and subject.profile is None:
                    status, message = "not run", "there is no profile"
                else:
                    details = stage(subject)
            except NotDefinedError:
                status = "not defined"
            except Exception as error:
                status, message = "failed", _described(error)
        yield Result(
            name,
            status,
            message,
            time.perf_counter() - began,
            details,
            tuple(dict.fromkeys(_warning(w) for w in raised)),
        )


# What the stages are made of


def _differences(
    found: Mapping[str, flerm_fx.Estimate], expected: Mapping[str, float]
) -> dict[str, float]:
    """Relative difference of each FSLR, see :data:`SMALL`."""
    floor = SMALL * max(expected.values()) + 1e-30
    return {
        name: abs(found[name].value - value) / max(value, floor) for name, value in expected.items()
    }


def _estimated(subject: Subject, **options: Any) -> dict[str, Any]:
    """FSLRs against the reference, in standard errors.

    Where the model draws random numbers (dropout), each example and estimator sees draws of its
    own, and a seed does not make two functions one. Such a model is compared in evaluation mode.
    """
    model = subject.base()
    if subject.stochastic:
        model.eval()
    updates = random_updates(model)
    prober = subject.prober(model)
    torch.manual_seed(SEED)
    with untouched(prober.captured.model):
        found = prober.estimate(
            dict(prober.captured.parameters), updates, subject.inputs, **options
        )
    expected = subject.reference(model, updates).fslrs
    floor = SMALL * max(expected.values()) + 1e-30
    errors, over = {}, {}
    for name, estimate in found.items():
        # Standard errors are in proportion to values: one of a value that is low by chance is low.
        stderr = estimate.stderr * max(1.0, expected[name] / max(estimate.value, 1e-30))
        off = abs(estimate.value - expected[name])
        errors[name] = off / stderr if stderr > 0 else 0.0
        over[name] = off / (ERRORS * stderr + RTOL * max(expected[name], floor))
    worst = max(over, key=over.__getitem__)
    if not over[worst] <= 1:
        raise StageError(
            f"{_number(over, 1)}: {worst} has an FSLR of {found[worst].value:.6g} ± "
            f"{found[worst].stderr:.2g} by {found[worst].method} ({found[worst].note}), expected "
            f"{expected[worst]:.6g}"
        )
    return {
        "method": found[worst].method,
        "note": found[worst].note,
        "standard errors": max(errors.values()),
        "mode": "train" if model.training else "eval",
    }


def _trained(
    subject: Subject, model: nn.Module, compiled: flerm_fx.CompiledModel, emit: Emit
) -> list[float]:
    if emit == "param_groups":
        return subject.losses(model, adam(compiled.param_groups(LEARNING_RATE)), STEPS)
    trainable = (p for p in compiled.parameters() if p.requires_grad)
    return subject.losses(compiled, adam(trainable), STEPS)


def _check_folds(subject: Subject, compiled: flerm_fx.CompiledModel) -> None:
    args, kwargs = call_arguments(subject.inputs)
    compiled.eval()
    folded = compiled.fold().eval()
    outputs = []
    for model in (compiled, folded):
        torch.manual_seed(SEED)
        with torch.no_grad():
            outputs.append(select_output(model(*args, **kwargs), subject.architecture.output_fn))
    difference = _relative(*outputs)
    if difference > 1e-4:
        raise StageError(f"the folded model's output differs by {difference:.1e}")


def _check_passes(compiled: flerm_fx.CompiledModel) -> None:
    failed = [check for check in compiled.check() if not check.passed]
    if failed:
        first = failed[0]
        raise StageError(
            f"check() fails for {len(failed)} of {len(compiled.assignments)}: {first.parameter} "
            f"expected {first.expected:.6g}, measured {first.measured.value:.6g}, tolerance "
            f"{first.tolerance:.2g}"
        )


def _check_names(subject: Subject, size: Size, compiled: flerm_fx.CompiledModel) -> None:
    used = {row.parameter for row in compiled.assignments if row.status != "unused"}
    wrong = against(subject.architecture, size, compiled.matches, used)
    if wrong:
        raise StageError(wrong)


def _relative(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        raise StageError(f"outputs have shapes {tuple(one.shape)} and {tuple(other.shape)}")
    scale = other.abs().max().clamp_min(1e-30)
    return float((one - other).abs().max() / scale)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, nx.DiGraph):
        return bool(nx.utils.graphs_equal(one, other))
    if hasattr(one, "fslrs"):
        return bool(vars(one) == vars(other))
    leaves, spec = pytree.tree_flatten(one)
    others, other_spec = pytree.tree_flatten(other)
    return spec == other_spec and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(leaves, others, strict=True)
    )


def _number(values: Mapping[str, float], limit: float) -> str:
    return f"{sum(not v <= limit for v in values.values())} of {len(values)} parameters"


def _described(error: Exception) -> str:
    message = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
    if isinstance(error, StageError | flerm_fx.FlermError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-6:]]
    return f"{message} ({' > '.join(places)})"


def _warning(warning: warnings.WarningMessage) -> str:
    return f"{warning.category.__name__}: {str(warning.message).splitlines()[0][:300]}"
