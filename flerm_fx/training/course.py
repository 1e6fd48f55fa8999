"""The base's recorded course gives the multipliers by which a target follows it."""

from collections.abc import Mapping

from torch import Tensor

from flerm_fx.align.aligning import Match
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.assign.matches import wanted
from flerm_fx.assign.multipliers import resolved
from flerm_fx.assign.way import first_guess
from flerm_fx.capture.captured import Capture
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.start.update_size import update_sizes


class Course:
    r"""A ``Course`` holds FSLRs of the base along its run,
    and which of them each target parameter answers to.

    .. math:: m_l(t) = \frac{\sum_b \mathrm{share}_{b \to l}\,
                             \mathrm{FSLR}_b(t / \mathrm{stretch})}{\mathrm{FSLR}_l(t)}

    Attributes:
        parameters: the target's, in execution order.
        decay: of the moving average that smooths the FSLRs of both sides.

    Args:
        profile: of the base, with its trajectory.
        captured: the target.
        matches: the base parameters that each of its parameters answers to.
        stretch: length of the target's run over the length of the base's.
        decay: 0 where nothing is smoothed.
    """

    def __init__(
        self,
        profile: BaseProfile,
        captured: Capture,
        matches: Mapping[str, Match],
        stretch: float,
        decay: float,
    ) -> None:
        self.parameters = tuple(captured.parameters)
        self.decay = decay
        self._profile, self._captured, self._matches = profile, captured, matches
        self._graph = capture_graph(captured)
        self._run = profile.optimizers
        self._trajectory = profile.trajectory.smoothed(decay)
        self._stretch = stretch

    def guess(self, updates: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the multipliers at which a first step is as large as the base's was.

        Args:
            updates: unit updates of the target's first step.

        Returns:
            A multiplier for each parameter; none if the base's start was not settled.
        """
        if not self._profile.update_sizes:
            return {}
        sizes = update_sizes(dict(updates), self._graph)
        return dict(first_guess(self._profile, self._matches, sizes))

    def multipliers(
        self, step: int, measured: Mapping[str, Estimate], smoothed: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the multipliers at which the target's FSLRs meet the base's at a step.

        Args:
            step: of the target.
            measured: its FSLRs there.
            smoothed: their moving averages, by which the base's are divided.

        Returns:
            A multiplier for each parameter whose FSLR is resolved on both sides.
        """
        base = self._trajectory.between(step / self._stretch)
        known = resolved(base, self._captured)
        own = resolved(measured, self._captured)
        values = {name: estimate.value for name, estimate in base.items()}
        return {
            name: wanted(self._run, match.base, values) / smoothed[name]
            for name, match in self._matches.items()
            if name in own and any(b in known for b, _ in match.base)
        }
