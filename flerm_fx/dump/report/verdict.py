"""The verdict is what a report says first of a base and of the target compiled against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flerm_fx.assign.assignment import Assignment
from flerm_fx.profile.moment import recordings
from flerm_fx.profile.profile import BaseProfile


def verdict(
    profile: BaseProfile,
    assignments: Sequence[Assignment] = (),
    name: str = "",
    checks: Mapping[str, bool] | None = None,
    warned: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what cannot be read off the parameters themselves.

    Args:
        profile: of the base.
        assignments: of the target, if there is one.
        name: of the target's class.
        checks: for each parameter, whether ``check()`` found the base's FSLR; None if it was not
            run.
        warned: what was warned of while compiling.
    """
    return {
        "names": [profile.model, name] if assignments else [profile.model],
        "start": _start(profile),
        "checks": dict(checks) if checks is not None else None,
        "cautions": [*warned, *_cautions(profile)] if assignments else [],
    }


def _start(profile: BaseProfile) -> str:
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(profile.optimizers.learning_rates))
    if not profile.settle:
        return f"of the first step, at a learning rate of {rates}"
    warmup = f", with a warm-up of {profile.warmup}" if profile.warmup else ""
    return f"settled at a learning rate of {rates} in {profile.settle} steps{warmup}"


def _cautions(profile: BaseProfile) -> list[str]:
    if any(recordings(estimate) > 1 for estimate in profile.start.values()):
        return []
    return [
        "The base is one recording, and other initial weights move its FSLRs by some 40 %: record "
        "several with flerm_fx.record_seeds"
    ]
