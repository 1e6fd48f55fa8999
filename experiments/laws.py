"""Does a law predict what would be measured? ``python -m experiments.laws`` prints it.

A law is fitted to models that are 2, 4 and 8 times as wide as their base, and asked for 16 times.
The error of its multipliers is printed beside what two measurements there differ by: with other
initial weights of the target, and with others of base and target both.

How far intervals reach beyond the largest size was chosen on the first cell, the ResMLP and
``depth`` (:mod:`flerm_fx.laws.holding`, :class:`flerm_fx.laws.role_law.RoleLaw`); what they cover
in the others is a test.
"""

import argparse
import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

import flerm_fx
from experiments.data import Name
from experiments.exponents import (
    ARCHITECTURES,
    BATCHES,
    CONTEXT,
    TITLES,
    pool_of,
    rate_of,
)
from experiments.report import line, put
from experiments.training import optimizers
from models.transformer import Transformer

FACTORS = (2, 4, 8, 16)
"""Widths of the models that the law is fitted to, and last of the one that it is asked for."""

Multipliers = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """What is made larger, and how it is trained.

    Attributes:
        title: in tables.
        make: a model of a factor.
        data: what it reads.
        batch: how much of it.
        optimizer: of :data:`experiments.training.OPTIMIZERS`.
        rate: at which a start is settled.
    """

    title: str
    make: Callable[[int], nn.Module]
    data: Name
    batch: int
    optimizer: str
    rate: float


def _transformer(factor: int) -> Transformer:
    """Two blocks, with heads that stay as wide as they are."""
    return Transformer(width=16 * factor, depth=2, heads=factor, context=CONTEXT)


def _small_readout(factor: int) -> Transformer:
    """The same with muP's initial readout, of which nothing is left in a wide model."""
    model = _transformer(factor)
    with torch.no_grad():
        model.logits.weight.mul_(factor**-0.5)
    return model


def _of(architecture: str, optimizer: str) -> Cell:
    family = ARCHITECTURES[architecture]
    rate = rate_of(family, optimizer)
    title = f"{family.title}, {TITLES[optimizer].partition(',')[0]}"
    return Cell(title, family.make, family.data, family.batch, optimizer, rate)


CELLS = {
    "transformer": Cell("transformer at 2^-6, Adam", _transformer, "bytes", 8, "adam", 2**-6),
    "pre": _of("pre", "adam"),
    "pre-muon": _of("pre", "muon"),
    "mlp": _of("mlp", "adam"),
    "conv": _of("conv", "adam"),
    "llama": _of("llama", "adam"),
    "gpt2": _of("gpt2", "adam"),
    "small-readout": Cell(
        "transformer at 2^-6, readout of 1/width, Adam", _small_readout, "bytes", 8, "adam", 2**-6
    ),
    "depth": _of("depth", "adam"),
}
"""By key."""


@dataclass(frozen=True)
class Outcome:
    """How a prediction compares with measurements.

    Attributes:
        cell: of :data:`CELLS`.
        settle: simulated steps before the start.
        factor: by which the target is wider.
        seeds: of the base, of each size that was fitted, and of the measurements.
        error: RMS of log predicted less log measured, over seeds and the parameters that all
            measurements resolve, against the base that the law was fitted with.
        seeds_differ: RMS of the logarithms' difference between two seeds' measurements there.
        other_error: the same error, of measurements against a base with other initial weights.
        others_differ: RMS of the difference between measurements against the one and the other.
        unfitted: the error of shares of the base's mass alone, by which depth is conserved.
        held_out: what the law says of itself, from the size below.
        covered: share of the parameters whose multiplier, the mean of all that were measured
            against both bases, lies in the law's interval of 90 %.
    """

    cell: str
    settle: int
    factor: int
    seeds: int
    error: float
    seeds_differ: float
    other_error: float
    others_differ: float
    unfitted: float
    held_out: float
    covered: float


def outcome(key: str, settle: int, seeds: int, factors: Sequence[int]) -> Outcome:
    """Fit all factors but the last, and compare at the last."""
    cell = CELLS[key]
    inputs, targets = pool_of(cell.data, cell.batch, BATCHES if settle else 1)
    profile, other = (
        flerm_fx.record_seeds(
            lambda: cell.make(1),
            lambda model: optimizers(cell.optimizer, model, cell.rate),
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
            _measured(cell, factor, seed, profile)
            for factor in factors[:-1]
            for seed in range(seeds)
        )
        rows = flerm_fx.compile(cell.make(factors[-1]), law, emit="param_groups").assignments
        found = [
            [_measured(cell, factors[-1], first + seed, base) for seed in range(seeds)]
            for first, base in ((0, profile), (100, other))
        ]
    measured, others = ([model.multipliers for model in models] for models in found)
    guessed = {
        row.parameter
        for models in found
        for model in models
        for row in model.assignments
        if row.status != "matched"
    }
    predicted = {
        row.parameter: row.multiplier
        for row in rows
        if row.status == "predicted" and row.parameter not in guessed
    }
    shares = {row.parameter: sum(share for _, share in row.base) for row in rows if row.base}
    centres = {
        name: math.exp(fmean(math.log(one[name]) for one in (*measured, *others)))
        for name in predicted
    }
    intervals = {
        row.parameter: row.interval for row in rows if row.interval and row.parameter in predicted
    }
    return Outcome(
        key,
        settle,
        factors[-1],
        seeds,
        _apart(predicted, ((predicted, one) for one in measured)),
        _apart(predicted, combinations(measured, 2)),
        _apart(predicted, ((predicted, one) for one in others)),
        _apart(predicted, product(measured, others)),
        _apart(predicted, ((shares, one) for one in measured)),
        law.held_out_error or math.nan,
        fmean(low <= centres[name] <= high for name, (low, high) in intervals.items()),
    )


def _measured(
    cell: Cell, factor: int, seed: int, profile: flerm_fx.BaseProfile
) -> flerm_fx.CompiledModel:
    """One of so many models of a size, each with initial weights of its own."""
    torch.manual_seed(10 * factor + seed)
    return flerm_fx.compile(cell.make(factor), profile, emit="param_groups")


def _apart(names: Iterable[str], pairs: Iterable[tuple[Multipliers, Multipliers]]) -> float:
    """RMS of the difference of logarithms, over parameters and pairs."""
    logs = [math.log(one[name] / other[name]) for one, other in pairs for name in names]
    return math.sqrt(fmean(log**2 for log in logs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it at the first step and settled, and print each."""
    parser = argparse.ArgumentParser(prog="python -m experiments.laws", description=__doc__)
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=["transformer"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--settle", type=int, nargs="*", default=[0, 32])
    parser.add_argument(
        "--out", type=Path, help="JSON lines to add the outcomes to, in place of older ones"
    )
    parser.add_argument("--markdown", type=Path, help="page to write a table of that file to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for key, settle in product(options.cells, options.settle):
        found = outcome(key, settle, options.seeds, FACTORS)
        print(
            f"{key}, settle {settle}: predicted {found.error:.3f}, targets differ by "
            f"{found.seeds_differ:.3f}; against another base {found.other_error:.3f} and "
            f"{found.others_differ:.3f}; held out {found.held_out:.3f}, unfitted "
            f"{found.unfitted:.3f}; "
            f"{found.covered:.0%} in their intervals",
            flush=True,
        )
        if options.out:
            keep(options.out, dataclasses.asdict(found))
    if options.out and options.markdown:
        put(options.markdown, "predictions", list(table(options.out)))


def keep(path: Path, new: dict[str, Any]) -> None:
    """Write an outcome to a file: where one of the same cell and start is, and else at the end."""
    rows = _rows(path) if path.exists() else []
    of_new = [i for i, row in enumerate(rows) if _key(row) == _key(new)]
    for i in reversed(of_new):
        del rows[i]
    rows.insert(of_new[0] if of_new else len(rows), new)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()]


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["cell"], row["settle"]


def table(path: Path) -> Iterator[str]:
    """The outcomes of a file; without a coverage where that is null, of intervals that are no
    more.
    """
    yield line(
        [
            "cell, start",
            "prediction, measurement",
            "two targets",
            "prediction, another person's",
            "two persons'",
            "held out",
            "in their intervals",
        ]
    )
    yield line(["---"] * 7)
    for row in _rows(path):
        start = f"{row['settle']} steps" if row["settle"] else "first step"
        keys = ("error", "seeds_differ", "other_error", "others_differ", "held_out")
        numbers = [f"{row[key]:.2f}" for key in keys]
        covered = "" if row["covered"] is None else f"{row['covered']:.0%}"
        yield line([f"{CELLS[row['cell']].title}, {start}", *numbers, covered])


if __name__ == "__main__":
    main()
