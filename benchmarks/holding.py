"""What the library holds at a time, in copies of a model's weights, where these dominate."""

import functools
import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flerm_fx
from benchmarks.cases import labelled
from benchmarks.memory import peak_bytes
from benchmarks.results import HoldingResult
from benchmarks.settings import Progress, Settings

WIDTH, LAYERS, SETTLE = 768, 16, 10
EXAMPLES, FEATURES, CLASSES = 8, 64, 10


def run(settings: Settings, progress: Progress) -> list[HoldingResult]:
    """Peaks of training with Adam, recording and compiling, beside it in the same run."""
    width = 64 if settings.quick else WIDTH
    calls: dict[str, Callable[[nn.Module], Any]] = {"a training step with Adam": _trained}
    for settle in (0, SETTLE):
        for option in (None, "offload", "copy"):
            options: dict[str, Any] = {option: True} if option else {}
            named = "".join(f", {name}=True" for name in options)
            given: dict[str, Any] = {"settle": settle, **options}
            calls[f"record, settle={settle}{named}"] = functools.partial(_recorded, **given)
            calls[f"compile, settle={settle}{named}"] = functools.partial(_compiled, **given)
            calls[f"check, settle={settle}{named}"] = functools.partial(_checked, **given)
    results: list[HoldingResult] = []
    for name, call in calls.items():
        progress(f"holding: {name}")
        gc.collect()
        model = _mlp(width).to(settings.device)
        own = sum(p.numel() * p.element_size() for p in model.parameters())
        prepared = call(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            peak = (own + peak_bytes(prepared, settings.device)) / own
        first = results[0].copies if results else peak
        results.append(HoldingResult(name, peak, peak / first))
    return results


def _mlp(width: int) -> nn.Module:
    """Weights that are many times what its activations take."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(FEATURES, width), nn.ReLU()]
    for _ in range(LAYERS):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def _pool() -> tuple[list[Tensor], list[Tensor]]:
    batches = [labelled(EXAMPLES, FEATURES, classes=CLASSES) for _ in range(3)]
    return [x for x, _ in batches], [y for _, y in batches]


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def _trained(model: nn.Module) -> Callable[[], None]:
    (x, *_), (y, *_) = _pool()

    def train() -> None:
        optimizer = _adam(model)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return train


def _recorded(model: nn.Module, **options: Any) -> Callable[[], Any]:
    optimizer = _adam(model)
    return lambda: flerm_fx.record(model, optimizer, *_pool(), **options)


def _compiled(model: nn.Module, *, settle: int, **options: Any) -> Callable[[], Any]:
    base = _mlp(8).to(next(model.parameters()).device)
    with flerm_fx.record(base, _adam(base), *_pool(), settle=settle) as recorder:
        return lambda: flerm_fx.compile(model, recorder.profile, **options)


def _checked(model: nn.Module, *, settle: int, **options: Any) -> Callable[[], Any]:
    compiled = _compiled(model, settle=settle, **options)()
    assert isinstance(compiled, flerm_fx.CompiledModel)
    return compiled.check
