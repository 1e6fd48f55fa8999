"""Times of calls as ratios to a reference timed beside them, since machines are noisy."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.results import Spread

LEAST = 0.05
"""Seconds that a reference is timed for, at least: a step of milliseconds is repeated."""


@dataclass(frozen=True)
class Call:
    """One timed call.

    Attributes:
        seconds: it took.
        ratio: to the mean of the references before and after it.
        value: what it returned.
    """

    seconds: float
    ratio: float
    value: Any


def once(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a call, and what it returned."""
    _wait(device)
    began = time.perf_counter()
    value = call()
    _wait(device)
    return time.perf_counter() - began, value


def mean_seconds(call: Callable[[], Any], device: torch.device, least: float = LEAST) -> float:
    """Seconds of a call, over as many as ``least`` seconds take."""
    total, calls = 0.0, 0
    while total < least:
        total += once(call, device)[0]
        calls += 1
    return total / calls


def beside(
    reference: Callable[[], Any], call: Callable[[], Any], device: torch.device
) -> tuple[float, Call]:
    """A call, timed between two references; the mean of the references comes first."""
    before = mean_seconds(reference, device)
    seconds, value = once(call, device)
    mean = (before + mean_seconds(reference, device)) / 2
    return mean, Call(seconds, seconds / mean, value)


def interleaved(
    reference: Callable[[], Any],
    calls: Mapping[str, Callable[[int], Any]],
    device: torch.device,
    *,
    repetitions: int,
    budget: float,
) -> tuple[float, dict[str, list[Call]]]:
    """Repetitions of all calls in turn, a reference before and after each.

    Args:
        reference: what times are ratios to.
        calls: each is given the number of the repetition.
        device: to wait for.
        repetitions: of each call, at most.
        budget: seconds after which a call is repeated no more.

    Returns:
        The median time of the reference, and each call's repetitions.
    """
    taken: dict[str, list[Call]] = {name: [] for name in calls}
    before = mean_seconds(reference, device)
    references = [before]
    for repetition in range(repetitions):
        for name, call in calls.items():
            if sum(earlier.seconds for earlier in taken[name]) > budget:
                continue
            seconds, value = once(functools.partial(call, repetition), device)
            after = mean_seconds(reference, device)
            taken[name].append(Call(seconds, 2 * seconds / (before + after), value))
            references.append(after)
            before = after
    return statistics.median(references), taken


def spread(values: list[float]) -> Spread:
    """Median and quartiles.

    >>> spread([1.0, 2.0, 3.0, 4.0, 50.0])
    Spread(median=3.0, low=2.0, high=4.0, repetitions=5)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
