"""The FSLRs of the recorded run, as the report's heat map and lines read them."""

from typing import Any

from flerm_fx.dump.report.graph import finite
from flerm_fx.profile.profile import BaseProfile


def trajectory_data(profile: BaseProfile) -> dict[str, Any] | None:
    """Steps, learning rates and, for each parameter, one FSLR a step; None if none was recorded."""
    course = profile.trajectory
    if not course.steps:
        return None
    return {
        "steps": list(course.steps),
        "learning_rates": [finite(rate) for rate in course.learning_rates],
        "fslrs": [[finite(e.value) for e in course.fslrs[name]] for name in profile.parameters],
    }
