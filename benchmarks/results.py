"""What was measured: plain data, and its file."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    platform: str
    processor: str
    cores: int
    threads: int
    device: str
    python: str
    torch: str
    quick: bool


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one ratio: the median, and the quartiles around it."""

    median: float
    low: float
    high: float
    repetitions: int


@dataclass(frozen=True)
class MethodResult:
    """One way to estimate all FSLRs of a model.

    Attributes:
        name: such as ``"sampled, m = 4"``.
        method: as for ``flerm_fx.measure``.
        samples: draws for each example, or passes; None where the method chooses or takes none.
        steps: its steady cost in training steps of the same batch.
        error: RMS of log(estimate / exact) over parameters and seeds.
        worst_stderr: median over seeds of the largest relative standard error it reports.
        seeds: how many seeds ``error`` is taken over.
        first_call: the first call in training steps, which builds graphs and checks for coupling;
            None where a method builds nothing, or shares what another built.
        memory: peak memory as a ratio to a training step's; None if not measured.
        chosen: what came of it: the estimate's method and samples.
        note: the estimate's note.
    """

    name: str
    method: str
    samples: int | None
    steps: Spread
    error: float
    worst_stderr: float
    seeds: int
    first_call: float | None
    memory: float | None
    chosen: str
    note: str


@dataclass(frozen=True)
class Loop:
    """A loop of ``torch.func.jvp`` over parameters.

    Attributes:
        steps: of all parameters, in training steps.
        exact: of the exact method, in the cost of the loop.
        timed: how many parameters were timed; the others are taken to cost as much.
    """

    steps: float
    exact: float
    timed: int


@dataclass(frozen=True)
class EqualAccuracy:
    """Sampled at the accuracy that the paper's method has after 40 passes.

    Attributes:
        samples: the smallest number of draws whose error is at most that.
        error: its RMS log error.
        paper_error: that of 40-pass ``kronecker``.
        cost: its cost relative to the 40 passes.
    """

    samples: int
    error: float
    paper_error: float
    cost: float


@dataclass(frozen=True)
class Hindsight:
    """The planner's choice against the best that reaches its tolerance.

    Attributes:
        chosen: what ``method="auto"`` did.
        steps: its cost in training steps.
        best: the cheapest that reaches the tolerance, for every parameter.
        best_steps: its cost; for sampled, on a straight line through the measured numbers of draws.
    """

    chosen: str
    steps: float
    best: str
    best_steps: float


@dataclass(frozen=True)
class EstimatorResult:
    """All methods on one case.

    Attributes:
        case, title: its key, and what it is.
        tensors, parameters: trainable parameter tensors L, and their numbers.
        examples, coordinates: N and K.
        step_seconds, step_bytes: a training step: its time, and its peak of memory.
        forward: a forward pass in training steps.
        capture: ``capture`` in training steps.
        methods: each way to estimate.
        loop, equal_accuracy, hindsight: comparisons; a large model takes no 40 passes.
    """

    case: str
    title: str
    tensors: int
    parameters: int
    examples: int
    coordinates: int
    step_seconds: float
    step_bytes: int
    forward: Spread
    capture: float
    methods: list[MethodResult]
    loop: Loop
    equal_accuracy: EqualAccuracy | None
    hindsight: Hindsight


@dataclass(frozen=True)
class CompileResult:
    """``flerm_fx.compile`` of one model.

    Attributes:
        title: the target.
        tensors: of the target.
        settle: how the base was recorded.
        step_seconds: a training step of the target on the probe batch.
        steps: all of it in training steps.
        stages: the same by stage.
        calls: how often each stage was entered.
        seconds: all of it.
        adam: what Adam's own step takes, in training steps, which have none.
    """

    title: str
    tensors: int
    settle: int
    step_seconds: float
    steps: float
    stages: dict[str, float]
    calls: dict[str, int]
    seconds: float
    adam: float

    @property
    def beyond(self) -> float:
        """What is left without as many steps of a run as the target settles for."""
        return self.steps - self.settle * (1 + self.adam)


@dataclass(frozen=True)
class ScalingPoint:
    """Seconds of one quantity at one size."""

    axis: str
    size: int
    quantity: str
    seconds: float


@dataclass(frozen=True)
class Exponent:
    """The power with which a quantity grows along an axis, by least squares in logarithms."""

    axis: str
    quantity: str
    exponent: float


@dataclass(frozen=True)
class ScalingResult:
    """Cost against size."""

    points: list[ScalingPoint]
    exponents: list[Exponent]
    many: list[CompileResult]


@dataclass(frozen=True)
class PrecisionResult:
    """FSLRs in a coarser type against those of float64.

    Attributes:
        title: the model.
        arithmetic: the type of its weights, and autocast.
        method: ``"exact"`` or ``"sampled"``, with the number of draws.
        error: RMS of log(estimate / exact in float64).
        rounding: RMS of log(estimate / the same method with the same draws in float64).
        worst: largest magnitude of the latter.
    """

    title: str
    arithmetic: str
    method: str
    error: float
    rounding: float
    worst: float


@dataclass(frozen=True)
class MatchingResult:
    """Seconds that matching takes.

    Attributes:
        parameters: their number, in the target.
        equal: with a base of equal graph.
        half: with one half as deep.
        flat: with that and names without a tree in the target.
    """

    parameters: int
    equal: float
    half: float
    flat: float | None = None


@dataclass(frozen=True)
class MultiplierResult:
    """Multipliers by default against those from exact FSLRs on both sides.

    Attributes:
        title: the model; the target is 4 times as wide as the base.
        tensors: of the target.
        error: RMS of log(multiplier / exact one) over parameters.
        worst: largest magnitude of it.
        estimates: what the target's estimates take in its training steps, first call included.
    """

    title: str
    tensors: int
    error: float
    worst: float
    estimates: float


@dataclass(frozen=True)
class AgainResult:
    """A call of a ``flerm_fx.Prober`` that has been called before, with one draw.

    Attributes:
        title: the model.
        tensors: of it.
        steps: the call in training steps of the same batch.
        draw: the draw alone, without the checks that nothing has changed.
    """

    title: str
    tensors: int
    steps: Spread
    draw: Spread


@dataclass(frozen=True)
class FollowingResult:
    """What ``flerm_fx.match`` adds to a run, in its steps.

    Attributes:
        title: the model.
        tensors: of it.
        attached: what attaching takes.
        first: what the first measurement takes beside a step.
        point: what each other one does.
        run: all that is added to 1,000 steps that are matched every 100, over these steps.
        start: what is added by the start found in the run, all of it.
    """

    title: str
    tensors: int
    attached: float
    first: float
    point: float
    run: float
    start: float


@dataclass(frozen=True)
class HoldingResult:
    """The most that a call holds at a time, the user's own model included.

    Attributes:
        call: what was called.
        copies: the peak in copies of the model's weights.
        ratio: to the peak of a training step with Adam.
    """

    call: str
    copies: float
    ratio: float


@dataclass(frozen=True)
class Results:
    """One run. Parts that were not run are empty."""

    machine: Machine
    estimators: list[EstimatorResult] = field(default_factory=list)
    compiling: list[CompileResult] = field(default_factory=list)
    scaling: ScalingResult | None = None
    precision: list[PrecisionResult] = field(default_factory=list)
    matching: list[MatchingResult] = field(default_factory=list)
    emitters: dict[str, Any] = field(default_factory=dict)
    holding: list[HoldingResult] = field(default_factory=list)
    multipliers: list[MultiplierResult] = field(default_factory=list)
    again: list[AgainResult] = field(default_factory=list)
    following: list[FollowingResult] = field(default_factory=list)


def write(results: Results, path: Path) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(results), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Results:
    """What :func:`write` wrote."""
    return typing.cast(Results, _read(Results, json.loads(path.read_text(encoding="utf-8"))))


def _read(kind: Any, value: Any) -> Any:
    """A JSON value as the type that a field is declared with."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [_read(arguments[0], item) for item in value]
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value)
    return value
