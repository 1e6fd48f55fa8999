"""Moving averages are kept of what is measured while a model trains."""

import math
from collections.abc import Mapping, Sequence

from flerm_fx.probe.estimate import Estimate


class MovingAverage:
    """A ``MovingAverage`` averages squared FSLRs, and corrects for its start at 0."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sums: dict[str, tuple[float, float]] = {}

    def after(self, fslrs: Mapping[str, Estimate]) -> dict[str, float]:
        """Return the roots of the averages as they would be with these FSLRs in them."""
        return {n: math.sqrt(s / w) for n, (s, w) in self._with(fslrs).items()}

    def keep(self, fslrs: Mapping[str, Estimate]) -> None:
        """Add these FSLRs to the averages."""
        self._sums = self._with(fslrs)

    def _with(self, fslrs: Mapping[str, Estimate]) -> dict[str, tuple[float, float]]:
        d = self._decay
        sums = dict(self._sums)
        for name, estimate in fslrs.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = (d * total + (1 - d) * estimate.value**2, d * weight + 1 - d)
        return sums

    def state(self) -> dict[str, tuple[float, float]]:
        """Return the sum and the weight of each parameter, from which :meth:`load` goes on."""
        return dict(self._sums)

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go back to what :meth:`state` returned."""
        self._sums = {name: (total, weight) for name, (total, weight) in state.items()}
