"""A second measurement of a model costs its draws: a later call of a ``flerm_fx.Prober``."""

from collections.abc import Iterator, Sequence

import torch

import flerm_fx
from benchmarks.cases import Case, build, tensors
from benchmarks.results import AgainResult
from benchmarks.settings import Progress, Settings
from benchmarks.timing import interleaved, spread
from flerm_fx.capture.tracing import capture
from flerm_fx.probe.capture_prober import CaptureProber

KEYS = ("resmlp", "transformer-2", "transformer-6")
REPETITIONS = 25
"""Of calls that take a training step each."""


def run(keys: Sequence[str], settings: Settings, progress: Progress) -> Iterator[AgainResult]:
    """Measure each case, called before."""
    for key in keys:
        if key in KEYS:
            progress(f"again: {key}")
            yield measure(build(key, settings), settings)


def measure(case: Case, settings: Settings) -> AgainResult:
    """Time calls of a prober and draws alone, in turn."""
    updates = case.unit_updates()
    prober = flerm_fx.Prober(case.model, case.inputs)
    drawing = CaptureProber(capture(case.model, case.inputs))

    def again(seed: int) -> None:
        prober.measure(
            updates,
            method="sampled",
            samples=1,
            generator=torch.Generator(settings.device).manual_seed(seed),
        )

    def draw(seed: int) -> None:
        drawing.estimate(
            case.parameters,
            updates,
            case.inputs,
            method="sampled",
            samples=1,
            generator=torch.Generator(settings.device).manual_seed(seed),
        )

    case.step()
    again(0)
    draw(0)
    _, calls = interleaved(
        case.step,
        {"again": again, "draw": draw},
        settings.device,
        repetitions=2 if settings.quick else REPETITIONS,
        budget=settings.budget,
    )
    return AgainResult(
        title=case.title,
        tensors=tensors(case.model),
        steps=spread([call.ratio for call in calls["again"]]),
        draw=spread([call.ratio for call in calls["draw"]]),
    )
