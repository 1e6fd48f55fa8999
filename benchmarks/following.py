"""What matching a run adds to training it.

A run is matched as by default, every 100 steps of 1,000. What is timed is the attachment, and steps
that are measured beside steps that are not; what all of them add to 1,000 steps follows. Times are
of the processor.
"""

import statistics
import time
from collections.abc import Iterator, Sequence

import torch

import flerm_fx
from benchmarks.cases import Case, build, tensors
from benchmarks.results import FollowingResult
from benchmarks.settings import Progress, Settings
from flerm_fx.start.procedure import batch_loss

STEPS, EVERY = 1000, 100
KEYS = ("transformer-6",)


def run(keys: Sequence[str], settings: Settings, progress: Progress) -> Iterator[FollowingResult]:
    """Match each case in a run of its own."""
    for key in keys:
        if key in KEYS:
            progress(f"following: {key}")
            yield measure(build(key, settings))


def measure(case: Case) -> FollowingResult:
    """Time what a matched run does beside its steps."""
    profile = _profile(case)
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    plain = [_seconds(case, optimizer) for _ in range(12)]
    began = time.process_time()
    with flerm_fx.match(case.model, optimizer, profile, case.inputs, at=range(0, 40, 2)):
        attached = time.process_time() - began
        taken = [_seconds(case, optimizer) for _ in range(40)]
    step = statistics.median(plain[2:] + taken[1::2])
    first, *measured = taken[::2]
    point = statistics.median(measured) - step
    start = len(profile.settling.steps)
    once = attached + first - step
    return FollowingResult(
        title=case.title,
        tensors=tensors(case.model),
        attached=attached / step,
        first=(first - step) / step,
        point=point / step,
        run=(once + (STEPS // EVERY - 1) * point) / step / STEPS,
        start=(once + start * point) / step,
    )


def _profile(case: Case) -> flerm_fx.BaseProfile:
    """Of the model as its own base, with a course of two points."""
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    pool = [case.inputs, case.inputs], [case.targets, case.targets]
    with flerm_fx.record(
        case.model, optimizer, *pool, settle=8, warmup=0, rtol=0.35, at=[0, 1]
    ) as recorder:
        for _ in range(2):
            _seconds(case, optimizer)
    return recorder.profile


def _seconds(case: Case, optimizer: torch.optim.Optimizer) -> float:
    began = time.process_time()
    optimizer.zero_grad()
    batch_loss(case.model, (case.inputs, case.targets), case.loss, None).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return time.process_time() - began
