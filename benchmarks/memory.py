"""Peak memory of a call."""

import gc
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most that a call holds at a time beyond what was held before it.

    On a CPU it is the largest running sum of the allocator's events, which the profiler records
    in order: tensors alone, and all of them, those within an operation too. (The size of the
    process says less: the C library gives memory back late, or not at all.)
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return max(itertools.accumulate(_events(profiler), initial=0))


def _events(profiler: profile) -> list[int]:
    """Bytes that each event took, or gave back, in order of time.

    The raw events: what the profiler makes of them takes minutes for a call of a million
    operations.
    """
    inner: Any = profiler.profiler
    raw = [e for e in inner.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(raw, key=lambda event: event.start_ns())]
