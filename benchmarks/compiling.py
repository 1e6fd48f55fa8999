"""What ``flerm_fx.compile`` takes, by stage, in training steps of 1,024 tokens."""

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import flerm_fx
from benchmarks.cases import Case, gpt2, tensors, text
from benchmarks.results import CompileResult
from benchmarks.settings import Progress, Settings
from benchmarks.stages import STAGES, Stopwatch, stages
from benchmarks.timing import beside, mean_seconds, once
from flerm_fx.errors import CaptureWarning
from models.transformer import Transformer

LEARNING_RATE = 1e-3
SETTLE = {"transformer-6": (0, 20, 100), "gpt2": (0, 10)}
"""Simulated steps to the start; 100 of GPT-2 take half an hour on 2 cores."""

BATCHES = 5
"""Of the pool: the probe batch, and four that simulated steps take in turn."""

Batches = Sequence[tuple[Any, Tensor]]

Pair = tuple[Case, nn.Module, Batches]
"""The target, the smaller model that it is compiled for, and what steps are simulated on beside
the batch of the case, where that is not all."""


def _transformer(quick: bool) -> Pair:
    sequences, width = (2, 16) if quick else (16, 128)
    batch = text(sequences, 64)
    depth = 2 if quick else 6
    title = f"transformer, {depth} blocks of width {width}, from a quarter of the width"
    case = Case("transformer-6", title, Transformer(width=width, depth=depth), *batch)
    further = [text(sequences, 64, seed) for seed in range(1, BATCHES)]
    return case, Transformer(width=width // 4, depth=depth), further


def _gpt2(quick: bool) -> Pair:
    if quick:
        return gpt2(2, 16, width=32, depth=1, vocabulary=300), gpt2(2, 16, 16, 1, 300).model, ()
    case = gpt2(8, 128)
    case.title = "GPT-2, 12 blocks of width 768, from a quarter of the width"
    return case, gpt2(8, 128, width=192).model, ()


_BUILDERS: dict[str, Callable[[bool], Pair]] = {"transformer-6": _transformer, "gpt2": _gpt2}

KEYS = tuple(_BUILDERS)


def run(keys: Sequence[str], settings: Settings, progress: Progress) -> Iterator[CompileResult]:
    """Compile each target under all settings."""
    for key in keys:
        if key not in _BUILDERS:
            continue
        torch.manual_seed(0)
        case, base, further = _BUILDERS[key](settings.quick)
        case.on(settings.device)
        base.to(settings.device)
        for settle in SETTLE[key]:
            progress(f"{key}: settle = {settle}")
            yield measure(case, base, settle, settings, further if settle else ())


def measure(
    case: Case, base: nn.Module, settle: int, settings: Settings, further: Batches = ()
) -> CompileResult:
    """Compile a target, several times where that does not take long; the median by stage."""
    optimizer = torch.optim.Adam(base.parameters(), lr=LEARNING_RATE)
    inputs, targets = zip((case.inputs, case.targets), *further, strict=True)
    recorder = flerm_fx.record(base, optimizer, list(inputs), list(targets), settle=settle)
    recorder.close()
    profile = recorder.profile
    case.step()
    repetitions: list[tuple[float, float, Stopwatch]] = []
    while len(repetitions) < min(3, settings.repetitions):
        before = mean_seconds(case.step, settings.device)
        seconds, watch = once(lambda: _compiled(case, profile), settings.device)
        step = (before + mean_seconds(case.step, settings.device)) / 2
        repetitions.append((seconds, step, watch))
        if sum(taken for taken, *_ in repetitions) > settings.budget:
            break
    middle = statistics.median
    return CompileResult(
        title=case.title,
        tensors=tensors(case.model),
        settle=settle,
        step_seconds=middle(step for _, step, _ in repetitions),
        steps=middle(seconds / step for seconds, step, _ in repetitions),
        stages={s: middle(w.seconds[s] / step for _, step, w in repetitions) for s in STAGES},
        calls={s: repetitions[0][2].calls[s] for s in STAGES},
        seconds=middle(seconds for seconds, *_ in repetitions),
        adam=_adam_steps(case, settings),
    )


def _adam_steps(case: Case, settings: Settings) -> float:
    """Adam's own step in training steps, on gradients and at a rate of 0: it moves nothing."""
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=0.0)

    def step() -> None:
        for p in parameters:
            p.grad = torch.zeros_like(p)
        adam.step()

    found = [beside(case.step, step, settings.device)[1].ratio for _ in range(5)]
    case.model.zero_grad(set_to_none=True)
    return statistics.median(found)


def _compiled(case: Case, profile: flerm_fx.BaseProfile) -> Stopwatch:
    with warnings.catch_warnings(), stages() as watch:
        # That multipliers have not settled is nothing that a benchmark has to say.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("default", CaptureWarning)
        flerm_fx.compile(case.model, profile)
    return watch
