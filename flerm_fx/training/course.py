"""The base's recorded course tells which FSLRs a target has to meet on its own."""

from collections.abc import Mapping

from torch import Tensor

from flerm_fx.align.aligning import Match
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.align.roles import roles
from flerm_fx.assign.matches import wanted_estimate
from flerm_fx.assign.multipliers import NOISE, floor, resolved
from flerm_fx.assign.way import first_guess
from flerm_fx.capture.captured import Capture
from flerm_fx.model.distributed import whole
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.start.update_size import update_sizes


class Course:
    r"""A ``Course`` tells what the FSLRs of a target's parameters have to be along its run.

    .. math:: \sum_b \mathrm{share}_{b \to l}\, \mathrm{FSLR}_b(t / \mathrm{stretch})

    It has no weights of the target, nor a graph that holds any.

    Attributes:
        parameters: the target's, in execution order.
        shapes: theirs.
        matches: the base parameters that each answers to.
        roles: of each, what it is in the blocks that repeat.

    Args:
        profile: of the base.
        captured: the target.
        matches: the base parameters that each of its parameters answers to.
        trajectory: FSLRs of the base, at steps of its run.
        stretch: length of the target's run over the length of the base's.
    """

    def __init__(
        self,
        profile: BaseProfile,
        captured: Capture,
        matches: Mapping[str, Match],
        trajectory: Trajectory,
        stretch: float,
    ) -> None:
        self.parameters = tuple(captured.parameters)
        self.shapes = {name: tuple(p.shape) for name, p in captured.parameters.items()}
        self.matches = matches
        self._graph = capture_graph(captured)
        self._profile, self._run = profile, profile.optimizers
        self._rounding = floor(captured)
        self._trajectory, self._stretch = trajectory, stretch
        self.roles = roles(self._graph, self.shapes)

    def guess(self, updates: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the multipliers at which a first step is as large as the base's was.

        Args:
            updates: unit updates of the target's first step.

        Returns:
            A multiplier for each parameter; none if the base's start was not settled.
        """
        if not self._profile.update_sizes:
            return {}
        sizes = {n: update_sizes({n: whole(u)}, self._graph)[n] for n, u in updates.items()}
        return first_guess(self._profile, self.matches, sizes)

    def met(self, step: int) -> dict[str, Estimate]:
        """Return the FSLRs to be met at a step of the target, where the base's are resolved."""
        base = self._trajectory.between(step / self._stretch)
        known = resolved(base, self._rounding)
        return {
            name: wanted_estimate(self._run, match.base, base)
            for name, match in self.matches.items()
            if any(b in known for b, _ in match.base)
        }

    def resolved(self, measured: Mapping[str, Estimate], noise: float = NOISE) -> set[str]:
        """Return those of the target's parameters whose FSLRs are not within noise or rounding."""
        return resolved(measured, self._rounding, noise)
