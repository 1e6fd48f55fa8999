"""Tables and pictures of what was found."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.axes import Axis
from experiments.measures import Cell, Transfer, complete, transfer
from experiments.methods import MAIN, METHODS, SINGLE_BASES, Method
from experiments.runner import best_rate, scales_of
from experiments.store import Store

COLUMNS = (
    "method",
    "scale",
    "seeds",
    "shift, octaves",
    "loss at the base's rate",
    "own best",
    "regret",
    "of standard's",
    "collapse",
)


SIGNIFICANT = 0.02
"""Nats that standard training has to lose for a share of them to be given."""


def show(axes: Sequence[Axis], store: Store, console: Console) -> None:
    """Print a table for each axis."""
    for axis in axes:
        table = Table(*COLUMNS, title=axis.title)
        for row in rows(axis, store):
            table.add_row(*row)
        console.print(table)


def rows(axis: Axis, store: Store) -> Iterator[tuple[str, ...]]:
    """One for each method and scale that has all its results."""
    standard = {t.scale: t.regret for t in transfers(axis, METHODS["standard"], store)}
    for key in METHODS:
        for found in transfers(axis, METHODS[key], store):
            yield _row(METHODS[key], found, standard.get(found.scale, math.nan))


def transfers(axis: Axis, method: Method, store: Store) -> list[Transfer]:
    """Of every scale but the base, over the seeds that have results at all rates."""
    rates, results = axis.grid.rates, store.of(axis, method.key)
    base = results if method.own_base else store.of(axis, "standard")
    found = []
    for scale in scales_of(axis, method):
        seeds = sorted({*complete(base, 1, rates)} & {*complete(results, scale, rates)})
        if scale != 1 and seeds:
            found.append(transfer(base, results, scale, rates, seeds))
    return found


def at_base_rate(axis: Axis, store: Store) -> Iterator[Cell]:
    """What every method but ablations ends at where the base is best, at each larger scale."""
    if not complete(store.of(axis, "standard"), 1, axis.grid.rates):
        return
    best = best_rate(axis, store)
    for scale in axis.scales[1:]:
        losses: dict[str, dict[int, float]] = defaultdict(dict)
        for key in MAIN:
            for result in store.of(axis, key):
                if (result.run.scale, result.run.rate) == (scale, best):
                    losses[key][result.run.seed] = result.loss
        if losses:
            yield Cell(scale, losses)


def write(axes: Sequence[Axis], store: Store, page: Path | None) -> None:
    """Draw a picture of each axis beside its results, and write a page if asked to."""
    from experiments.figures import draw

    folder = store.folder if page is None else page.parent / page.stem
    folder.mkdir(parents=True, exist_ok=True)
    text = list(summary(axes, store))
    for axis in axes:
        found = list(rows(axis, store))
        if not found:
            continue
        picture = folder / f"{axis.key}.png"
        draw(axis, store, picture)
        text += [f"## {axis.title}", "", f"![{axis.title}]({folder.name}/{picture.name})", ""]
        text += [line(COLUMNS), line(["---"] * len(COLUMNS)), *map(line, found), ""]
    if page is not None:
        put(page, "transfer", text)


def summary(axes: Sequence[Axis], store: Store) -> Iterator[str]:
    """Tables of all axes, a row for each scale and a column for each method that has results."""
    found: list[tuple[Axis, float, dict[str, Transfer]]] = []
    for axis in axes:
        cells: dict[float, dict[str, Transfer]] = defaultdict(dict)
        for key, method in METHODS.items():
            for each in transfers(axis, method, store):
                cells[each.scale][key] = each
        found += [(axis, scale, cells[scale]) for scale in sorted(cells)]
    ablations = [key for key in METHODS if key not in MAIN]
    ablated = [row for row in found if any(key in row[2] for key in ablations)]
    at_best = [(axis, each) for axis in axes for each in at_base_rate(axis, store)]
    yield from _at_best(at_best)
    yield from _differences(at_best)
    yield from _spread(axes, store)
    yield from _table(
        "At each model's own best rate",
        "The lowest loss on the grid, in nats.",
        MAIN,
        found,
        lambda each: f"{each.best:.3f}",
    )
    yield from _table(
        "How far the best rate moves",
        "Shift in octaves, and regret in nats.",
        MAIN,
        found,
        _moved,
    )
    yield from _table(
        "Other choices",
        "Shift in octaves, regret in nats, and loss at the base's best rate.",
        ["compile", *ablations],
        ablated,
        lambda each: f"{_moved(each)}, {each.loss:.3f}",
    )


def _at_best(found: Sequence[tuple[Axis, Cell]]) -> Iterator[str]:
    keys = [key for key in METHODS if any(key in cell.losses for _, cell in found)]
    yield from ("## At the base's best rate", "")
    yield "Loss on the validation set, in nats, the mean over the seeds of all methods. The scale"
    yield "is the large model's size, or what else the axis says, over the small one's. An empty"
    yield from ("cell was not run.", "")
    yield line(["axis", "scale", "seeds", *(METHODS[key].title for key in keys)])
    yield line(["---"] * (3 + len(keys)))
    for axis, cell in found:
        means = [f"{cell.mean(key):.3f}" if key in cell.losses else "" for key in keys]
        yield line([axis.title, f"{cell.scale:g}", f"{len(cell.seeds)}", *means])
    yield ""


def _differences(found: Sequence[tuple[Axis, Cell]]) -> Iterator[str]:
    """Of what compile ends at from what the others do."""
    kept = [(axis, cell) for axis, cell in found if "compile" in cell.losses]
    keys = [
        key for key in METHODS if key != "compile" and any(key in cell.losses for _, cell in kept)
    ]
    yield from ("## By how much compile ends above the others", "")
    yield "Nats at the base's best rate, paired by seed, with 95 % intervals; below 0 it is ahead."
    yield ""
    yield line(["axis", "scale", *(METHODS[key].title for key in keys)])
    yield line(["---"] * (2 + len(keys)))
    for axis, cell in kept:
        apart = [
            _interval(*cell.difference("compile", k)) if k in cell.losses else "" for k in keys
        ]
        yield line([axis.title, f"{cell.scale:g}", *apart])
    yield ""


def _spread(axes: Sequence[Axis], store: Store) -> Iterator[str]:
    """What runs of one seed end at with each of several bases."""
    found: list[tuple[Axis, float, int, list[float]]] = []
    for axis in axes:
        of_base = [
            {(r.run.scale, r.run.seed, r.run.rate): r.loss for r in store.of(axis, key)}
            for key in SINGLE_BASES
        ]
        shared = sorted(set.intersection(*(set(each) for each in of_base)))
        found += [(axis, s, seed, [each[s, seed, r] for each in of_base]) for s, seed, r in shared]
    if not found:
        return
    yield from ("## By how much one base differs from another", "")
    yield "Loss of one run with each of several bases, recorded singly, and its standard deviation."
    yield ""
    bases = [f"base {k}" for k in range(1, len(SINGLE_BASES) + 1)]
    yield line(["axis", "scale", "seed", *bases, "deviation"])
    yield line(["---"] * (4 + len(SINGLE_BASES)))
    for axis, scale, seed, losses in found:
        numbers = [*losses, statistics.stdev(losses)]
        yield line([axis.title, f"{scale:g}", f"{seed}", *(f"{n:.3f}" for n in numbers)])
    yield ""


def _interval(mean: float, half: float) -> str:
    return f"{mean:+.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def _moved(found: Transfer) -> str:
    return f"{found.shift:+.1f}, {found.regret:.3f}"


def _table(
    title: str,
    note: str,
    keys: Iterable[str],
    found: Sequence[tuple[Axis, float, Mapping[str, Transfer]]],
    cell: Callable[[Transfer], str],
) -> Iterator[str]:
    keys = [key for key in keys if any(key in row for _, _, row in found)]
    if not keys:
        return
    yield from (f"## {title}", "", note, "")
    yield line(["axis", "scale", *(METHODS[key].title for key in keys)])
    yield line(["---"] * (2 + len(keys)))
    for axis, scale, row in found:
        yield line(
            [axis.title, f"{scale:g}", *(cell(row[key]) if key in row else "" for key in keys)]
        )
    yield ""


def put(page: Path, name: str, text: Sequence[str]) -> None:
    """Write lines between the marks of a name in a page, at its end if it has none."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    head, _, rest = before.partition(start)
    tail = rest.partition(end)[2]
    page.write_text("\n".join([f"{head}{start}", "", *text, f"{end}{tail}"]), encoding="utf-8")


def line(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def _row(method: Method, found: Transfer, standard: float) -> tuple[str, ...]:
    interval = "" if math.isnan(found.interval) else f" ± {found.interval:.1f}"
    share = found.regret / standard if standard >= SIGNIFICANT else math.nan
    return (
        method.title,
        f"{found.scale:g}",
        f"{found.seeds}",
        f"{found.shift:+.2f}{interval}" + ("" if found.inside else " (edge)"),
        f"{found.loss:.3f}",
        f"{found.best:.3f}",
        f"{found.regret:.3f}",
        "" if method.kind == "standard" or math.isnan(share) else f"{share:.2f}",
        f"{found.collapse:.3f}",
    )
