"""Learning-rate multipliers act on an optimizer whose groups stay the user's own."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_fx.recipe.multiplier import multiplied
from flerm_fx.recipe.optimizers import Optimizers

_OF_PARAMETERS = ("params", "param_names")


class GroupMultipliers:
    """A ``GroupMultipliers`` holds multipliers during a step, and at no other time.

    Before a step :meth:`apply` splits each group into one for each multiplier, with the learning
    rate, decay and ``eps`` of :func:`~flerm_fx.recipe.multiplier.multiplied`; :meth:`restore`
    brings the groups back. Optimizer state belongs to parameters and is not touched. Schedulers,
    checkpoints and whoever edits a group see the groups as they were made.

    Args:
        model: whose parameters have the multipliers.
        optimizer: of its parameters, or of some.
        run: the rules by which it trains them.

    >>> import torch
    >>> model = nn.Linear(2, 2)
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    >>> groups = GroupMultipliers(model, optimizer, Optimizers.of(model, [optimizer]))
    >>> groups.apply({"weight": 4.0})
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.4, 0.1]
    >>> groups.restore()
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.1]
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, run: Optimizers) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._optimizer = optimizer
        self._run = run
        self._own: list[dict[str, Any]] | None = None
        self._parts: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []

    def apply(self, multipliers: Mapping[str, float]) -> None:
        """Split the groups by multiplier, which is 1 for parameters that have none."""
        self.restore()  # they are still split where the last step raised
        # In its own list, which wrappers share and a property may guard.
        self._own = list(self._optimizer.param_groups)
        split = []
        for group in self._own:
            members: dict[float, list[int]] = {}
            for index, parameter in enumerate(group["params"]):
                m = multipliers.get(self._names.get(id(parameter), ""), 1.0)
                members.setdefault(m, []).append(index)
            if members.keys() <= {1.0}:
                split.append(group)
                continue
            for m, indices in members.items():
                lists = {k: [group[k][i] for i in indices] for k in _OF_PARAMETERS if k in group}
                name = self._names.get(id(group["params"][indices[0]]), "")
                changed = multiplied(self._run.rule(name), group, m) if m != 1.0 else {}
                part = {**group, **lists, **changed}
                self._parts.append((group, part, {**part}))
                split.append(part)
        self._optimizer.param_groups[:] = split

    def restore(self) -> None:
        """Bring the groups back, with what the step has written into them (counts and the like)."""
        if self._own is None:
            return
        self._optimizer.param_groups[:] = self._own
        for group, part, before in self._parts:
            group.update({k: v for k, v in part.items() if v is not before.get(k, _MISSING)})
        self._parts.clear()
        self._own = None


_MISSING = object()
