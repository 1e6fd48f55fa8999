"""Does a law predict what would be measured? ``python -m experiments.laws`` prints it.

A law is fitted to a transformer that is 2, 4 and 8 times as wide as its base, and asked for 16
times. The error of its multipliers is printed beside what two measurements there differ by: with
other initial weights of the target, and with others of base and target both.
"""

import argparse
import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from statistics import fmean

import torch

import flerm_fx
from experiments.data import load
from models.transformer import Transformer

LEARNING_RATE = 2**-6
CONTEXT = 32

FACTORS = (2, 4, 8, 16)
"""Widths of the models that the law is fitted to, and last of the one that it is asked for."""

Multipliers = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """How a prediction compares with measurements.

    Attributes:
        settle: simulated steps before the start.
        width: of the base.
        factor: by which the target is wider.
        seeds: of the base, of each size that was fitted, and of the measurements.
        error: RMS of log predicted less log measured, over parameters and seeds, against the
            base that the law was fitted with.
        seeds_differ: RMS of the logarithms' difference between two seeds' measurements there.
        other_error: the same error, of measurements against a base with other initial weights.
        others_differ: RMS of the difference between measurements against the one and the other.
        held_out: what the law says of itself, from the size below.
        covered: share of the parameters whose multiplier, the mean of all that were measured
            against both bases, lies in the law's interval of 90 %.
    """

    settle: int
    width: int
    factor: int
    seeds: int
    error: float
    seeds_differ: float
    other_error: float
    others_differ: float
    held_out: float
    covered: float


def transformer(width: int) -> Transformer:
    """Two blocks, with heads that stay as wide as they are."""
    return Transformer(width=width, depth=2, heads=max(1, width // 16), context=CONTEXT)


def outcome(settle: int, width: int, seeds: int, factors: Sequence[int]) -> Outcome:
    """Fit all factors but the last, and compare at the last."""
    sample, generator = load("bytes").sample, torch.Generator().manual_seed(0)
    pool = [sample(8, generator) for _ in range(settle + 1 if settle < 20 else 21)]
    inputs, targets = ([batch[at][:, :CONTEXT].contiguous() for batch in pool] for at in (0, 1))
    profile, other = (
        flerm_fx.record_seeds(
            lambda: transformer(width),
            lambda model: torch.optim.Adam(model.parameters(), lr=LEARNING_RATE),
            inputs,
            targets,
            seeds=range(first, first + seeds),
            settle=settle,
        )
        for first in (0, 100)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        law = flerm_fx.ScalingLaw.fit(
            _measured(width, factor, seed, profile)
            for factor in factors[:-1]
            for seed in range(seeds)
        )
        rows = flerm_fx.compile(
            transformer(width * factors[-1]), law, emit="param_groups"
        ).assignments
        measured, others = (
            [_measured(width, factors[-1], seed, base).multipliers for seed in range(seeds)]
            for base in (profile, other)
        )
    predicted = {row.parameter: row.multiplier for row in rows if row.status == "predicted"}
    centres = {
        name: math.exp(fmean(math.log(one[name]) for one in (*measured, *others)))
        for name in predicted
    }
    intervals = {row.parameter: row.interval for row in rows if row.interval}
    return Outcome(
        settle,
        width,
        factors[-1],
        seeds,
        _apart(predicted, ((predicted, one) for one in measured)),
        _apart(predicted, combinations(measured, 2)),
        _apart(predicted, ((predicted, one) for one in others)),
        _apart(predicted, _crossed(measured, others)),
        law.held_out_error or math.nan,
        fmean(low <= centres[name] <= high for name, (low, high) in intervals.items()),
    )


def _measured(
    width: int, factor: int, seed: int, profile: flerm_fx.BaseProfile
) -> flerm_fx.CompiledModel:
    """One of so many models of a size, each with initial weights of its own."""
    torch.manual_seed(10 * factor + seed)
    return flerm_fx.compile(transformer(width * factor), profile, emit="param_groups")


def _crossed(
    measured: Sequence[Multipliers], others: Sequence[Multipliers]
) -> Iterator[tuple[Multipliers, Multipliers]]:
    """Pairs of which base and target both have other initial weights."""
    for (i, one), (j, other) in product(enumerate(measured), enumerate(others)):
        if i != j:
            yield one, other


def _apart(names: Iterable[str], pairs: Iterable[tuple[Multipliers, Multipliers]]) -> float:
    """RMS of the difference of logarithms, over parameters and pairs."""
    logs = [math.log(one[name] / other[name]) for one, other in pairs for name in names]
    return math.sqrt(fmean(log**2 for log in logs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it at the first step and settled, and print each."""
    parser = argparse.ArgumentParser(prog="python -m experiments.laws", description=__doc__)
    parser.add_argument("--width", type=int, default=16, help="of the base")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--settle", type=int, nargs="*", default=[0, 32])
    parser.add_argument("--out", type=Path, help="append the outcomes there, as JSON lines")
    options = parser.parse_args(arguments)
    for settle in options.settle:
        found = outcome(settle, options.width, options.seeds, FACTORS)
        print(
            f"settle {settle}: predicted {found.error:.3f}, targets differ by "
            f"{found.seeds_differ:.3f}; against another base {found.other_error:.3f} and "
            f"{found.others_differ:.3f}; held out {found.held_out:.3f}; "
            f"{found.covered:.0%} in their intervals",
            flush=True,
        )
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(found)) + "\n")


if __name__ == "__main__":
    main()
