"""Rates of kinds of parameters, tuned on the base one after another.

A rate that is best for all of a model at once is far from best for each kind of parameter: what a
wide model gains where a rule happens to change one kind's rate it would have gained on the base,
too, and it says nothing of how the rule transfers. Where each kind has its best rate, on the base,
any that is changed costs.

    python -m experiments.kinds llama-width --out DIR
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rich.console import Console

from experiments.axes import AXES, Axis
from experiments.methods import METHODS
from experiments.runner import best_rate, run
from experiments.store import Run, Store
from experiments.work import Training, start_process

STANDARD = METHODS["standard"]

KINDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "llama": (
        ("embed_tokens",),
        ("q_proj", "k_proj"),
        ("v_proj", "o_proj"),
        ("mlp",),
        ("lm_head",),
    ),
    "gpt2": (("wte",), ("wpe",), ("c_attn",), ("attn.c_proj",), ("mlp",)),
    "vit": (("embeddings",), ("q_proj", "k_proj"), ("v_proj", "o_proj"), ("mlp",), ("classifier",)),
}
"""By architecture, the kinds whose rates are tuned, each by parts of its parameters' names; all
else, norms and biases of their own, has the one rate."""

LEAST = 0.004
"""By how much a loss has to fall for a rate to be taken: about a standard error of three seeds."""

SWEEPS = 2
"""How often each kind has its turn."""

Factors = tuple[tuple[str, float], ...]


def tuned(
    kinds: Iterable[tuple[str, ...]],
    loss_of: Callable[[Mapping[str, float]], float],
) -> dict[str, float]:
    """Return what each kind's rate is to be multiplied by, found by coordinate search in octaves.

    >>> best = {"in": 4.0, "out": 0.5}
    >>> def loss_of(factors):
    ...     return sum(math.log2(factors.get(k, 1.0) / b) ** 2 for k, b in best.items())
    >>> tuned([("in",), ("out",)], loss_of)
    {'in': 4.0, 'out': 0.5}
    """
    factors: dict[str, float] = {}
    lowest = loss_of(factors)
    for parts in [*kinds] * SWEEPS:
        before = lowest
        for step in (2.0, 0.5):
            trial = _moved(factors, parts, step)
            while lowest - (loss := loss_of(trial)) > LEAST:
                factors, lowest = trial, loss
                trial = _moved(factors, parts, step)
            if lowest < before:  # the way down is this one
                break
    return factors


def _moved(factors: Mapping[str, float], parts: Iterable[str], step: float) -> dict[str, float]:
    return {**factors, **{part: factors.get(part, 1.0) * step for part in parts}}


class Trials:
    """Runs of the base under factors of rates, each kept as it ends.

    Args:
        axis: whose base is trained.
        rate: of all, times the factors.
        seeds: of each trial.
        path: a line of JSON for each run.
    """

    def __init__(self, axis: Axis, rate: float, seeds: int, path: Path) -> None:
        self._axis, self._rate, self._seeds, self._path = axis, rate, seeds, path
        self._losses: dict[tuple[Factors, int], float] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            kept = json.loads(line)
            if (kept["axis"], kept["rate"]) == (axis.key, rate):
                self._losses[_key(kept["factors"]), kept["seed"]] = kept["loss"]

    def __call__(self, factors: Mapping[str, float]) -> float:
        """Return the mean loss over the seeds."""
        mean = fmean(self._loss(factors, seed) for seed in range(self._seeds))
        print(f"{self._axis.key}: {mean:.4f} {dict(_key(factors))}", flush=True)
        return mean

    def _loss(self, factors: Mapping[str, float], seed: int) -> float:
        key = _key(factors), seed
        if key not in self._losses:
            axis = replace(self._axis, rates=dict(key[0]))
            trial = Run(axis.key, STANDARD.key, 1, seed, self._rate)
            loss = Training(axis, STANDARD, trial, None, None)().loss
            line = {
                "axis": axis.key,
                "rate": self._rate,
                "factors": dict(key[0]),
                "seed": seed,
                "loss": loss,
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._losses[key] = loss
        return self._losses[key]


def _key(factors: Mapping[str, float]) -> Factors:
    return tuple(sorted((part, factor) for part, factor in factors.items() if factor != 1))


def main() -> None:
    """Tune the rates of an axis's base."""
    parser = argparse.ArgumentParser(description=__doc__)
    plain = [key for key, axis in AXES.items() if axis.model in KINDS and not axis.rates]
    parser.add_argument("axis", choices=plain)
    parser.add_argument("--seeds", type=int, default=3, help="of each trial")
    parser.add_argument("--jobs", type=int, help="processes that sweep the one rate")
    parser.add_argument("--out", type=Path, default=Path("results-out"), help="folder of results")
    options = parser.parse_args()
    axis, store = AXES[options.axis], Store(options.out)
    run([axis.part([])], [STANDARD], options.seeds, store, Console(), options.jobs)
    rate = best_rate(axis, store)
    start_process()
    trials = Trials(axis, rate, options.seeds, options.out / "kinds.jsonl")
    found = tuned(KINDS[axis.model], trials)
    print(f"{axis.key}, {math.log2(rate):+g} octaves: {dict(_key(found))}")


if __name__ == "__main__":
    main()
