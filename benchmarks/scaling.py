"""Cost against width, depth and batch: the exponents of power laws."""

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

import flerm_fx
from benchmarks.cases import Case, tensors, text
from benchmarks.compiling import LEARNING_RATE
from benchmarks.compiling import measure as measure_compile
from benchmarks.results import CompileResult, Exponent, ScalingPoint, ScalingResult
from benchmarks.settings import Progress, Settings
from benchmarks.timing import mean_seconds, once
from flerm_fx.capture.tracing import capture
from flerm_fx.probe.capture_prober import CaptureProber
from models.transformer import Transformer

AXES: dict[str, Sequence[int]] = {
    "width": (64, 128, 256, 512),
    "tensors": (2, 4, 8, 16),
    "batch": (8, 16, 32, 64),
}
"""Widths, numbers of blocks, sequences of 64 tokens; along each axis the others stay at
:data:`WIDTH`, :data:`BLOCKS` and :data:`SEQUENCES`."""

QUICK: dict[str, Sequence[int]] = {"width": (16, 32), "tensors": (1, 2), "batch": (2, 4)}

WIDTH, BLOCKS, SEQUENCES, LENGTH = 128, 2, 16, 64
MANY_TENSORS = (300, 3000)
REPETITIONS = 3

Times = dict[str, float]


def run(settings: Settings, progress: Progress) -> ScalingResult:
    """Every point, the power laws through them, and models of many tensors."""
    points = []
    for axis, sizes in (QUICK if settings.quick else AXES).items():
        for size in sizes:
            progress(f"scaling: {axis}, {size}")
            case = _case(axis, size)
            x = tensors(case.model) if axis == "tensors" else size
            times = _times(case, settings)
            if axis == "tensors":
                times |= _overheads(size, settings)
            points += [ScalingPoint(axis, x, name, seconds) for name, seconds in times.items()]
    many = []
    for wanted in (20, 40) if settings.quick else MANY_TENSORS:
        progress(f"scaling: compile of {wanted} tensors")
        many.append(_many(wanted, settings))
    return ScalingResult(points, exponents(points), many)


def exponents(points: Sequence[ScalingPoint]) -> list[Exponent]:
    """The power law through each quantity along each axis."""
    series: dict[tuple[str, str], dict[int, float]] = {}
    for point in points:
        series.setdefault((point.axis, point.quantity), {})[point.size] = point.seconds
    return [Exponent(*key, exponent(found)) for key, found in series.items()]


def exponent(series: Mapping[int, float]) -> float:
    """Slope of the straight line through the logarithms, by least squares.

    >>> round(exponent({1: 3.0, 2: 12.0, 4: 48.0}), 6)
    2.0
    """
    x = torch.tensor(list(series), dtype=torch.float64).log()
    y = torch.tensor(list(series.values()), dtype=torch.float64).log()
    x = x - x.mean()
    return float(x @ y / (x @ x))


def _case(axis: str, size: int, *, width: int = WIDTH) -> Case:
    torch.manual_seed(0)
    width = size if axis == "width" else width
    blocks = size if axis == "tensors" else BLOCKS
    sequences = size if axis == "batch" else SEQUENCES
    model = Transformer(width=width, depth=blocks, context=LENGTH)
    return Case(axis, f"{axis} {size}", model, *text(sequences, LENGTH))


def _times(case: Case, settings: Settings) -> Times:
    """Seconds of a step, the estimators and the compiler, medians after a first call."""
    case.on(settings.device)
    return {**_estimating(case, settings), "compile": _compiling(case, settings)}


def _estimating(case: Case, settings: Settings) -> Times:
    updates = case.unit_updates()
    prober = CaptureProber(capture(case.model, case.inputs))

    def estimate(method: str) -> Callable[[], object]:
        return lambda: prober.estimate(
            case.parameters,
            updates,
            case.inputs,
            method=method,  # type: ignore[arg-type]
            samples=1 if method == "sampled" else None,
            generator=torch.Generator(settings.device).manual_seed(0),
        )

    calls: dict[str, Callable[[], object]] = {
        "training step": case.step,
        "sampled, m = 1": estimate("sampled"),
        "exact": estimate("exact"),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(REPETITIONS + 1):
        for name, call in calls.items():
            seconds = mean_seconds(call, settings.device)
            if repetition:
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def _compiling(case: Case, settings: Settings) -> float:
    """Of the model for itself: the base is of no size that would matter."""
    optimizer = torch.optim.Adam(case.model.parameters(), lr=LEARNING_RATE)
    recorder = flerm_fx.record(
        case.model, optimizer, case.inputs, case.targets, settle=0, method="sampled"
    )
    recorder.close()
    profile = recorder.profile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return once(lambda: flerm_fx.compile(case.model, profile), settings.device)[0]


def _overheads(blocks: int, settings: Settings) -> Times:
    """The same calls where there is hardly any arithmetic: two tokens at width 16."""
    case = _case("tensors", blocks, width=16)
    assert isinstance(case.inputs, Tensor)
    case.inputs, case.targets = case.inputs[:2, :2], case.targets[:2, :2]
    found = _estimating(case.on(settings.device), settings)
    return {f"overhead of {name}": seconds for name, seconds in found.items()}


def _many(wanted: int, settings: Settings) -> CompileResult:
    """``compile`` of a narrow model of so many tensors, from one of a few blocks."""
    torch.manual_seed(0)
    each = tensors(Transformer(width=16, depth=2)) - tensors(Transformer(width=16, depth=1))
    blocks = 1 + -(-(wanted - tensors(Transformer(width=16, depth=1))) // each)
    model = Transformer(width=16, depth=4, depth_multiplier=-(-blocks // 4), context=LENGTH)
    title = f"transformer, {len(model.blocks)} blocks of width 16, from 4 blocks"
    case = Case("large", title, model, *text(16, LENGTH)).on(settings.device)
    base = Transformer(width=16, depth=4, context=LENGTH).to(settings.device)
    return measure_compile(case, base, settle=0, settings=settings)
