"""Results as tables of text, for the terminal and for a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.results import (
    AgainResult,
    CompileResult,
    EstimatorResult,
    FollowingResult,
    HoldingResult,
    MatchingResult,
    MultiplierResult,
    PrecisionResult,
    Results,
    ScalingResult,
    Spread,
)
from benchmarks.stages import STAGES


@dataclass(frozen=True)
class Table:
    """A title, a row of headings, rows, and lines below them."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def tables(results: Results) -> Iterator[Table]:
    """All tables of a run."""
    if results.estimators:
        yield summary(results.estimators)
    yield from details(results)


def details(results: Results) -> Iterator[Table]:
    """All but the summary."""
    yield from map(estimators, results.estimators)
    if results.again:
        yield again(results.again)
    if results.compiling:
        yield compiling(results.compiling)
    if results.following:
        yield following(results.following)
    if results.multipliers:
        yield multipliers(results.multipliers)
    if results.holding:
        yield holding(results.holding)
    if results.scaling is not None:
        yield exponents(results.scaling)
        yield points(results.scaling)
        yield many(results.scaling.many)
    if results.precision:
        yield precision(results.precision)
    if results.matching:
        yield matching(results.matching)
    if results.emitters:
        yield emitters(results.emitters)


def summary(cases: Sequence[EstimatorResult]) -> Table:
    """One line for each case: what it comes down to."""
    rows = []
    for case in cases:
        by_name = {method.name: method for method in case.methods}
        equal, best = case.equal_accuracy, case.hindsight
        rows.append(
            (
                case.title,
                str(case.tensors),
                number(by_name["exact"].steps.median),
                f"1/{1 / case.loop.exact:.1f}",
                number(by_name["sampled, m = 1"].steps.median),
                f"m = {equal.samples}: 1/{1 / equal.cost:.0f}" if equal else "",
                f"{best.chosen}: {number(best.steps)}",
                f"{best.best}: {number(best.best_steps)}",
            )
        )
    header = (
        "case",
        "L",
        "exact",
        "exact / loop of jvp",
        "m = 1",
        "at the accuracy of kronecker, 40 passes",
        "auto",
        "best in hindsight",
    )
    return Table("Estimators, in training steps", header, rows)


def estimators(case: EstimatorResult) -> Table:
    """All methods on one case."""
    forward = case.forward.median
    rows = [
        (
            method.name,
            spread(method.steps),
            number(method.steps.median / forward),
            "" if method.first_call is None else number(method.first_call),
            "0" if method.method == "exact" else percent(method.error),
            percent(method.worst_stderr),
            "" if method.memory is None else f"{method.memory:.1f}",
            method.chosen if method.method == "auto" else "",
        )
        for method in case.methods
    ]
    header = (
        "method",
        "training steps",
        "forward passes",
        "first call, steps",
        "RMS log error",
        "worst stderr",
        "peak memory / step's",
        "chosen",
    )
    return Table(case.title, header, rows, tuple(_notes(case)))


def _notes(case: EstimatorResult) -> Iterator[str]:
    yield (
        f"L = {case.tensors}, {case.parameters:,} parameters, N = {case.examples}, "
        f"K = {case.coordinates:,}. A training step takes {milliseconds(case.step_seconds)} and "
        f"{case.step_bytes / 2**20:,.0f} MiB, a forward pass {case.forward.median:.2f} of it, "
        f"capture {number(case.capture)} steps."
    )
    every = case.loop.timed == case.tensors
    which = "all timed" if every else f"extrapolated from {case.loop.timed} at different depths"
    yield (
        f"A loop of torch.func.jvp over the {case.tensors} parameters takes "
        f"{number(case.loop.steps)} steps ({which}); exact takes {case.loop.exact:.2f} of that."
    )
    equal = case.equal_accuracy
    if equal is not None:
        verdict = "" if equal.error <= equal.paper_error else ", still less accurate"
        yield (
            f"40 passes of kronecker are off by {percent(equal.paper_error)}; sampled "
            f"with m = {equal.samples} by {percent(equal.error)}{verdict}, at {equal.cost:.3f} of "
            "their cost."
        )
    best = case.hindsight
    yield (
        f"auto at rtol 5 % took {best.chosen} ({number(best.steps)} steps); best in hindsight is "
        f"{best.best} ({number(best.best_steps)} steps)."
    )
    for note in dict.fromkeys(m.note for m in case.methods if m.note):
        yield f"Sampled: {note}."


def again(found: Sequence[AgainResult]) -> Table:
    """Calls of a prober that has been called before."""
    rows = [(r.title, str(r.tensors), spread(r.steps), spread(r.draw)) for r in found]
    note = (
        "In training steps of the same batch: a call of a flerm_fx.Prober after the first, with "
        "m = 1, and of it the draw, without the checks that nothing has changed."
    )
    return Table("A second measurement", ("model", "L", "call", "draw"), rows, (note,))


def following(found: Sequence[FollowingResult]) -> Table:
    """What matching adds to a run."""
    header = (
        "model",
        "L",
        "attaching",
        "first measurement",
        "each other",
        "1,000 steps matched every 100, over them",
        "start in the run",
    )
    rows = [
        (
            r.title,
            str(r.tensors),
            *(number(steps) for steps in (r.attached, r.first, r.point)),
            f"{1 + r.run:.3f}",
            number(r.start),
        )
        for r in found
    ]
    note = "In steps of the run, forward and backward pass and AdamW's own. Processor time."
    return Table("Matching in the run", header, rows, (note,))


def compiling(found: Sequence[CompileResult], title: str = "Compiling") -> Table:
    """Time by stage."""
    header = (
        "target",
        "L",
        "settle",
        "seconds",
        "training steps",
        "beyond the settling steps",
        *STAGES,
    )
    rows = [
        (
            result.title,
            str(result.tensors),
            str(result.settle),
            number(result.seconds),
            number(result.steps),
            number(result.beyond),
            *(_stage(result, stage) for stage in STAGES),
        )
        for result in found
    ]
    note = (
        "Stages in training steps of the batch, with the number of calls in brackets. settle: "
        "simulated steps, probe: estimates, emit: what is in no other stage. A settling step is a "
        "training step and Adam's own, which takes "
        f"{', '.join(dict.fromkeys(f'{result.adam:.3f}' for result in found))} of one."
    )
    return Table(title, header, rows, (note,))


def many(found: Sequence[CompileResult]) -> Table:
    """Time by stage of models of many tensors, and how it grows."""
    table = compiling(found, "Compiling many tensors")
    few, most = found[0], found[-1]
    ratio = (most.seconds / most.tensors) / (few.seconds / few.tensors)
    note = f"{most.tensors} tensors take {ratio:.2f} times as long, each, as {few.tensors}."
    return replace(table, notes=(*table.notes, note))


def _stage(result: CompileResult, stage: str) -> str:
    calls = result.calls[stage]
    return number(result.stages[stage]) + (f" ({calls})" if calls > 1 else "")


def multipliers(found: Sequence[MultiplierResult]) -> Table:
    """What the default budget costs, in accuracy and in steps."""
    rows = [
        (r.title, str(r.tensors), percent(r.error), percent(r.worst), number(r.estimates))
        for r in found
    ]
    header = ("model", "L", "RMS log error", "largest", "estimates, steps")
    note = (
        "Against multipliers from exact FSLRs on both sides; the base has a quarter of the width, "
        "and 20 settling steps. Budgets were tried on the first. Estimates: of the target, "
        "the check for coupling included."
    )
    return Table("Multipliers by default", header, rows, (note,))


def holding(found: Sequence[HoldingResult]) -> Table:
    """Peaks of memory."""
    rows = [(r.call, f"{r.copies:.2f}", f"{r.ratio:.2f}") for r in found]
    note = (
        "The most that is held at a time, the user's own model included, in copies of the weights "
        "of a model whose activations are small beside them. With offload=True, what is in the "
        "temporary file counts as nothing."
    )
    header = ("call", "copies of the weights", "beside training with Adam")
    return Table("Memory", header, rows, (note,))


def exponents(scaling: ScalingResult) -> Table:
    """The powers with which costs grow."""
    axes = list(dict.fromkeys(e.axis for e in scaling.exponents))
    found = {(e.quantity, e.axis): f"{e.exponent:.2f}" for e in scaling.exponents}
    quantities = dict.fromkeys(quantity for quantity, _ in found)
    rows = [(quantity, *(found.get((quantity, a), "") for a in axes)) for quantity in quantities]
    note = (
        "Fitted exponents of the time against width, number of parameter tensors (depth) and "
        "sequences in the batch, the others fixed. Overhead: the same calls on models of the same "
        "depth with hardly any arithmetic in them (width 16, 2 sequences of 2 tokens)."
    )
    return Table("Scaling", ("time of", *axes), rows, (note,))


def points(scaling: ScalingResult) -> Table:
    """What the exponents are fitted to."""
    series: dict[tuple[str, str], list[str]] = {}
    for point in scaling.points:
        cell = f"{point.size}: {milliseconds(point.seconds)}"
        series.setdefault((point.axis, point.quantity), []).append(cell)
    rows = [(axis, quantity, ", ".join(cells)) for (axis, quantity), cells in series.items()]
    return Table("Scaling: times by size", ("axis", "time of", "size: time"), rows)


def precision(found: Sequence[PrecisionResult]) -> Table:
    """Errors of coarser types."""
    header = ("model", "measured in", "method", "RMS log error", "from rounding", "worst of it")
    rows = [
        (
            row.title,
            row.arithmetic,
            row.method,
            f"{row.error:.1e}",
            f"{row.rounding:.1e}",
            f"{row.worst:.1e}",
        )
        for row in found
    ]
    note = (
        "Against exact FSLRs in float64, of a model with the same rounded weights, inputs and "
        "updates. From rounding: against the same method with the same draws in float64."
    )
    return Table("Precision", header, rows, (note,))


def matching(found: Sequence[MatchingResult]) -> Table:
    """Seconds against the number of parameters."""
    rows = [
        (
            f"{r.parameters:,}",
            f"{r.equal:.2f} s",
            f"{r.half:.2f} s",
            "" if r.flat is None else f"{r.flat:.2f} s",
        )
        for r in found
    ]
    header = ("parameters", "equal graphs", "base half as deep", "and names without a tree")
    return Table("Matching", header, rows)


def emitters(found: dict[str, Any]) -> Table:
    """Step times of every form that compile emits, over the eager model's."""
    rows = [
        (case, form, f"{times['passes']:.3f}", f"{times['step']:.3f}")
        for case, forms in found["steps"].items()
        for form, times in forms.items()
    ]
    groups = found["a group for each parameter, over one"]
    recorded = found["record(every=100)"]
    start, hooks = recorded["start, over the run"], recorded["run with hooks, over the run"]
    notes = (
        *(
            f"The optimizer's step with a group for each parameter of {case}, over one group: "
            + ", ".join(f"{what} {ratio:.3g}" for what, ratio in ratios.items())
            + "."
            for case, ratios in groups.items()
        ),
        f"Recording every 100 steps: {hooks:.3f} of the run of {recorded['steps']} steps without, "
        f"and before it the start, {start:.3f} of the run.",
        f"Processor time on {found['threads']} thread, fused Adam.",
    )
    return Table("Emitters", ("case", "form", "passes", "step"), rows, notes)


def spread(found: Spread) -> str:
    """A median, with the quartiles where there are some."""
    if found.repetitions == 1:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)} to {number(found.high)})"


def number(value: float) -> str:
    """Three digits, two below 10.

    >>> number(1234.4), number(23.45), number(2.345), number(0.1234)
    ('1,234', '23.4', '2.3', '0.12')
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def percent(value: float) -> str:
    """As a percentage."""
    return f"{100 * value:.1f} %"


def milliseconds(seconds: float) -> str:
    """A time in a unit that suits it."""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
