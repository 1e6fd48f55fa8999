"""Multipliers at the default budget, beside those from exact FSLRs."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import flerm_fx
from benchmarks.cases import labelled, tensors, text
from benchmarks.results import MultiplierResult
from benchmarks.settings import Progress, Settings
from benchmarks.stages import stages
from benchmarks.timing import mean_seconds
from flerm_fx.probe.planner import Method
from flerm_fx.recipe.loss import resolve
from flerm_fx.start.procedure import batch_loss
from models.convnet import ConvNet
from models.resmlp import ResMLP
from models.transformer import Transformer

BATCHES = 5
"""Of the pool: the probe batch, and four that 20 settling steps pass five times."""

LEARNING_RATE = 1e-3

Make = Callable[[int], nn.Module]
Draw = Callable[[], tuple[Tensor, Tensor]]


def _cases(quick: bool) -> dict[str, tuple[Make, Draw, int]]:
    """By title: a model of a width, a batch for it, and the base's width; the target's is 4 times.

    Budgets were tried on the first; the others are reported as they come.
    """
    wide, sequences, examples = (4, 2, 4) if quick else (32, 16, 64)
    return {
        "transformer, 6 blocks": (
            lambda width: Transformer(width=width, depth=6, context=64),
            lambda: text(sequences, 64),
            wide,
        ),
        "ResMLP": (
            lambda width: ResMLP(64, 10, width, 5),
            lambda: labelled(examples, 64),
            wide,
        ),
        "ConvNet, BatchNorm in evaluation mode": (
            lambda width: ConvNet(width=width).eval(),
            lambda: labelled(examples, 3, 16, 16),
            max(2, wide // 8),
        ),
    }


def run(settings: Settings, progress: Progress) -> list[MultiplierResult]:
    """Compile each target twice, with what ``record`` and ``compile`` do by default and exactly."""
    results = []
    for title, (make, draw, width) in _cases(settings.quick).items():
        progress(f"multipliers: {title}")
        torch.manual_seed(0)
        pool = [draw() for _ in range(BATCHES)]
        base, target = (make(w).to(settings.device) for w in (width, 4 * width))
        exact, _ = _multipliers(base, target, pool, "exact", settings)
        found, steps = _multipliers(base, target, pool, "auto", settings)
        logs = [math.log(found[name] / m) for name, m in exact.items()]
        results.append(
            MultiplierResult(
                title=title,
                tensors=tensors(target),
                error=math.sqrt(sum(x * x for x in logs) / len(logs)),
                worst=max(map(abs, logs)),
                estimates=steps,
            )
        )
    return results


def _multipliers(
    base: nn.Module,
    target: nn.Module,
    pool: list[tuple[Tensor, Tensor]],
    method: Method,
    settings: Settings,
) -> tuple[dict[str, float], float]:
    """What is found, and what the target's estimates take in steps of the target."""
    xs, ys = (list(part) for part in zip(*pool, strict=True))
    adam = torch.optim.Adam(base.parameters(), lr=LEARNING_RATE)
    loss = resolve(None, ys[0])

    def step() -> None:
        batch_loss(target, (xs[0], ys[0]), loss, None).backward()  # type: ignore[no-untyped-call]
        target.zero_grad(set_to_none=True)

    with warnings.catch_warnings(), stages() as watch:
        warnings.simplefilter("ignore", UserWarning)
        with flerm_fx.record(base, adam, xs, ys, method=method) as recorder:
            profile = recorder.profile
        before = watch.seconds["probe"]
        compiled = flerm_fx.compile(target, profile, method=method)
    taken = watch.seconds["probe"] - before
    return compiled.multipliers, taken / mean_seconds(step, settings.device)
