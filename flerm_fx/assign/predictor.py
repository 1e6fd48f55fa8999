"""A predictor gives multipliers without a measurement of the target."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from flerm_fx.align.aligning import Match
from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.options import instance
from flerm_fx.capture.captured import Capture
from flerm_fx.profile.profile import LOAD, BaseProfile

LOAD_LAW = f"{LOAD}, or a law with flerm_fx.ScalingLaw.load(path)"
"""What to do with what is neither."""


class Predictor(ABC):
    """A ``Predictor`` gives a captured model its multipliers from its shapes alone.

    Attributes:
        profile: of the base that the multipliers are relative to.
    """

    profile: BaseProfile

    @abstractmethod
    def predicted(self, captured: Capture, matches: Mapping[str, Match]) -> tuple[Assignment, ...]:
        """Return what is predicted of each parameter of a captured model.

        Args:
            captured: the target.
            matches: the base parameters that each of its parameters answers to.

        Raises:
            MatchError: of one of them, nothing is known.
        """


def profile_and_law(base: object) -> tuple[BaseProfile, Predictor | None]:
    """Return the profile that multipliers are relative to, and the law that predicts them, if any.

    Args:
        base: a profile, or a law, which goes through one.

    Raises:
        InputError: it is neither.
    """
    law = base if isinstance(base, Predictor) else None
    profile: BaseProfile = instance(
        "base_profile",
        law.profile if law else base,
        BaseProfile,
        "a BaseProfile or a law",
        LOAD_LAW,
    )
    return profile, law
