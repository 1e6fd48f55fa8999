"""Every way to estimate FSLRs: what it costs, in time and memory, and how far it is off."""

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import jvp_loop
from benchmarks.accuracy import Estimates, rms_log_error, worst_stderr
from benchmarks.cases import Case, build, numbers, tensors
from benchmarks.hindsight import equal_accuracy, hindsight
from benchmarks.memory import peak_bytes
from benchmarks.results import EstimatorResult, Loop, MethodResult
from benchmarks.settings import Progress, Settings
from benchmarks.timing import Call, beside, interleaved, spread
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture
from flerm_fx.model.inputs import batch_size, call_arguments, select_output
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.planner import Method

RTOL = 0.05
"""Relative standard error that the planner is asked for."""

DRAWS = (1, 2, 4, 8)
PASSES = (1, 10, 40)
MOST_DRAWS = 128
"""Beyond which no accuracy is chased."""

SEEDS = 12
"""Seeds that errors are taken over, as far as the budget of time goes."""


@dataclass(frozen=True)
class Way:
    """A method with its number of samples.

    Attributes:
        name: for tables.
        method, samples: as for ``CaptureProber.estimate``.
        builds: a first call builds what later ones use, and no way above in the list built it.
    """

    name: str
    method: Method
    samples: int | None = None
    builds: bool = False

    @property
    def is_random(self) -> bool:
        """Whether another seed may give another estimate."""
        return self.method != "exact"


def sampled(draws: int) -> Way:
    """Sampled, with so many draws for each example."""
    return Way(f"sampled, m = {draws}", "sampled", draws, builds=draws == DRAWS[0])


def ways(large: bool = False) -> list[Way]:
    """All that is compared, in the order of the tables; less of it where a step takes seconds."""
    paper: tuple[Method, ...] = ("full_cov", "iid", "kronecker")
    return [
        Way("exact", "exact", builds=not large),
        *map(sampled, DRAWS[:-1] if large else DRAWS),
        Way("auto", "auto", builds=not large),
        Way("live, 1 pass", "live", 1),
        *(Way(_with_passes(m, n), m, n) for m in paper for n in PASSES[: 1 if large else None]),
    ]


def _with_passes(method: str, passes: int) -> str:
    return f"{method}, {passes} pass{'es' * (passes > 1)}"


def run(keys: Sequence[str], settings: Settings, progress: Progress) -> Iterator[EstimatorResult]:
    """Measure cases, one after another."""
    for key in keys:

        def of_case(what: str, key: str = key) -> None:
            progress(f"{key}: {what}")

        of_case("building")
        yield measure(build(key, settings), settings, of_case)


def measure(case: Case, settings: Settings, progress: Progress) -> EstimatorResult:
    """All of one case."""
    with untouched(case.model):
        return _Bench(case, settings, progress).result()


class _Bench:
    """What the measurements of one case share."""

    def __init__(self, case: Case, settings: Settings, progress: Progress) -> None:
        self.case, self.settings, self.progress = case, settings, progress
        self.ways = ways(case.large)
        self.device = settings.device
        self.updates = case.unit_updates()
        case.step()
        progress("capture")
        _, call = beside(case.step, lambda: capture(case.model, case.inputs), self.device)
        self.capture, self.captured = call.ratio, _captured(call)
        self.prober = CaptureProber(self.captured)
        self.first: dict[str, float] = {}
        self.runs: dict[str, list[Call]] = {}
        self.memory: dict[str, int] = {}

    def result(self) -> EstimatorResult:
        """Measure all there is; what builds graphs comes first, so that all else is steady."""
        case = self.case
        for way in self.ways:
            if way.builds:
                self._first_call(way)
        step_bytes = self._peaks()
        calls: dict[str, Callable[[int], object]] = {
            "forward": lambda repetition: case.forward(),
            **{way.name: self._announced(way) for way in self.ways},
        }
        step_seconds, found = self._interleaved(calls)
        self.runs.update(found)
        forward = spread([call.ratio for call in self.runs.pop("forward")])
        for way in self.ways:
            self._more_seeds(way)
        self._reach_the_paper()
        self.progress("a loop of torch.func.jvp")
        loop_steps, timed = jvp_loop.steps(case, self.updates, self.device)
        methods = [self._method(way, step_bytes) for way in self._measured()]
        examples, coordinates = self._size()
        return EstimatorResult(
            case=case.key,
            title=case.title,
            tensors=tensors(case.model),
            parameters=numbers(case.model),
            examples=examples,
            coordinates=coordinates,
            step_seconds=step_seconds,
            step_bytes=step_bytes,
            forward=forward,
            capture=self.capture,
            methods=methods,
            loop=Loop(loop_steps, methods[0].steps.median / loop_steps, timed),
            equal_accuracy=equal_accuracy(methods, PASSES[-1]),
            hindsight=hindsight(methods, RTOL, self._coordinates(methods)),
        )

    def _estimate(
        self, way: Way, prober: CaptureProber | None = None
    ) -> Callable[[int], Estimates]:
        prober = prober or self.prober

        def call(seed: int) -> Estimates:
            return prober.estimate(
                self.case.parameters,
                self.updates,
                self.case.inputs,
                method=way.method,
                rtol=RTOL,
                samples=way.samples,
                generator=torch.Generator(self.device).manual_seed(seed),
            )

        return call

    def _announced(self, way: Way) -> Callable[[int], Estimates]:
        estimate = self._estimate(way)

        def call(seed: int) -> Estimates:
            self.progress(f"{way.name}, repetition {seed + 1}")
            return estimate(seed)

        return call

    def _first_call(self, way: Way) -> None:
        """A first call on a prober of its own; then one on the prober that all share."""
        self.progress(f"{way.name}, first call")
        estimate = self._estimate(way, CaptureProber(self.captured))
        _, call = beside(self.case.step, lambda: estimate(0), self.device)
        self.first[way.name] = call.ratio
        if not self.case.large:
            self._estimate(way)(0)

    def _peaks(self) -> int:
        """Peak memory of each way that differs from others in it, and of a training step."""
        for way in self.ways:
            # Passes follow one another: one has the peak of all.
            repeats = way.method in ("full_cov", "iid", "kronecker") and way.samples != 1
            if not repeats and not (self.case.large and way.method == "auto"):
                self.progress(f"{way.name}, memory")
                estimate = functools.partial(self._estimate(way), 0)
                self.memory[way.name] = peak_bytes(estimate, self.device)
        return peak_bytes(self.case.step, self.device)

    def _interleaved(
        self, calls: dict[str, Callable[[int], object]]
    ) -> tuple[float, dict[str, list[Call]]]:
        return interleaved(
            self.case.step,
            calls,
            self.device,
            repetitions=self.settings.repetitions,
            budget=self.settings.budget,
        )

    def _more_seeds(self, way: Way) -> None:
        """Untimed runs, for the error alone."""
        runs = self.runs[way.name]
        wanted = min(SEEDS, int(self.settings.budget / runs[0].seconds)) if way.is_random else 0
        for seed in range(len(runs), 2 if self.settings.quick else wanted):
            self.progress(f"{way.name}, seed {seed + 1}")
            runs.append(Call(0.0, 0.0, self._estimate(way)(seed)))

    def _reach_the_paper(self) -> None:
        """More draws, where the most of :data:`DRAWS` are less accurate than the paper's passes."""
        if self.case.large:
            return
        paper = self._error(_with_passes("kronecker", PASSES[-1]))
        draws, error = DRAWS[-1], self._error(sampled(DRAWS[-1]).name)
        while error > paper and draws < MOST_DRAWS:
            draws = min(MOST_DRAWS, max(draws + 1, round(draws * (error / paper) ** 2)))
            way = sampled(draws)
            self.runs.update(self._interleaved({way.name: self._announced(way)})[1])
            self._more_seeds(way)
            error = self._error(way.name)

    def _measured(self) -> list[Way]:
        """All ways, those of further draws after the other sampled ones."""
        known = {way.name: way for way in self.ways}
        further = [sampled(_draws(name)) for name in self.runs if name not in known]
        before = [w for w in known.values() if w.method in ("exact", "sampled")]
        return [*before, *further, *(w for w in known.values() if w not in before)]

    def _exact(self) -> Estimates:
        return _estimates(self.runs["exact"][0])

    def _error(self, name: str) -> float:
        return rms_log_error([_estimates(call) for call in self.runs[name]], self._exact())

    def _method(self, way: Way, step_bytes: int) -> MethodResult:
        runs = self.runs[way.name]
        estimates = [_estimates(call) for call in runs]
        one = next(iter(estimates[0].values()))
        peak = self.memory.get(way.name)
        return MethodResult(
            name=way.name,
            method=way.method,
            samples=way.samples,
            steps=spread([call.ratio for call in runs if call.seconds]),
            error=rms_log_error(estimates, self._exact()),
            worst_stderr=statistics.median(worst_stderr(e, self._exact()) for e in estimates),
            seeds=len(runs),
            first_call=self.first.get(way.name),
            memory=None if peak is None else peak / step_bytes,
            chosen=one.method + (f", m = {one.samples}" if one.method == "sampled" else ""),
            note=one.note,
        )

    def _size(self) -> tuple[int, int]:
        args, kwargs = call_arguments(self.case.inputs)
        with torch.no_grad():
            output: Tensor = select_output(self.case.model(*args, **kwargs))
        examples = batch_size(self.case.inputs)
        return examples, output.numel() // examples

    def _coordinates(self, methods: Sequence[MethodResult]) -> int:
        """Coordinates of what is sampled as one example: the batch, where its examples couple."""
        examples, coordinates = self._size()
        coupled = any(method.method == "sampled" and method.note for method in methods)
        return examples * coordinates if coupled else coordinates


def _draws(name: str) -> int:
    return int(name.rpartition(" ")[2])


def _captured(call: Call) -> Capture:
    captured: Capture = call.value
    return captured


def _estimates(call: Call) -> Estimates:
    estimates: Estimates = call.value
    return estimates
