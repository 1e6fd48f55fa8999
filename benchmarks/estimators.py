"""Cost of each estimator in forward passes of the same model, measured in the same run.

    make bench

One thread, medians of interleaved repetitions. The planner's constants are fitted to this table.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flerm_fx.capture import capture
from flerm_fx.probe.prober import Prober
from models.resmlp import ResMLP
from models.transformer import Transformer

REPETITIONS = 5
DRAWS = (1, 4, 10)


def cases() -> dict[str, tuple[nn.Module, Tensor]]:
    """Models and probe inputs, seeded."""
    torch.manual_seed(0)
    return {
        "ResMLP, N = 256": (ResMLP(784, 10, 256, 5), torch.randn(256, 784)),
        "transformer, 2 blocks, N = 20 x 64": (
            Transformer(width=128, depth=2, context=64),
            torch.randint(256, (20, 64)),
        ),
        "transformer, 6 blocks, N = 20 x 64": (
            Transformer(width=128, depth=6, context=64),
            torch.randint(256, (20, 64)),
        ),
    }


def seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median time of each call, after one to warm up; repetitions interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(REPETITIONS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repetition:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def costs(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Forward passes that a training step and each estimator take."""
    updates = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    parameters = dict(model.named_parameters())
    prober = Prober(capture(model, inputs))

    def forward() -> None:
        with torch.no_grad():
            model(inputs)

    def step() -> None:
        model(inputs).square().mean().backward()
        model.zero_grad()

    def sampled(draws: int) -> Callable[[], object]:
        return lambda: prober.estimate(parameters, updates, inputs, method="sampled", samples=draws)

    calls: dict[str, Callable[[], object]] = {"forward": forward, "step": step}
    calls["exact"] = lambda: prober.estimate(parameters, updates, inputs, method="exact")
    calls.update({f"m = {draws}": sampled(draws) for draws in DRAWS})
    measured = seconds(calls)
    return {name: value / measured["forward"] for name, value in measured.items()}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    columns = ["step", "exact", "exact / L", *(f"m = {draws}" for draws in DRAWS)]
    print("forward passes".ljust(36), "L".rjust(4), *(c.rjust(10) for c in columns))
    for name, (model, inputs) in cases().items():
        tensors = sum(1 for _ in model.parameters())
        found = costs(model, inputs)
        found["exact / L"] = found["exact"] / tensors
        print(name.ljust(36), str(tensors).rjust(4), *(f"{found[c]:10.1f}" for c in columns))


if __name__ == "__main__":
    main()
