"""The report's heat map and lines read the FSLRs of the recorded run in this form."""

from collections.abc import Sequence
from typing import Any

from flerm_fx.assign.assignment import Assignment
from flerm_fx.dump.report.graph import finite
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory


def trajectory_data(
    profile: BaseProfile,
    assignments: Sequence[Assignment] = (),
    target: Trajectory | None = None,
) -> dict[str, Any] | None:
    """Return steps, learning rates, losses and one FSLR a step for each parameter, or None if
    none was recorded.

    Args:
        profile: of the base.
        assignments: of the target, in whose order its parameters are.
        target: its run, as a matcher or a recorder has it.
    """
    names = [row.parameter for row in assignments]
    if not profile.trajectory.steps:
        return None
    of_target = _packed(target, names) if target is not None and target.steps and names else None
    return {**_packed(profile.trajectory, profile.parameters), "target": of_target}


def _packed(run: Trajectory, names: Sequence[str]) -> dict[str, Any]:
    return {
        "steps": list(run.steps),
        "learning_rates": [finite(rate) for rate in run.learning_rates],
        "losses": [finite(loss) for loss in run.losses],
        "fslrs": [[finite(e.value) for e in run.fslrs.get(name, ())] for name in names],
    }
