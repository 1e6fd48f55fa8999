"""A model with multipliers gives the parameter groups that train by them, here and elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from torch import nn

from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.options import choice, flag
from flerm_fx.emit.groups import parameter_groups, warn_of_group
from flerm_fx.emit.merging import merged
from flerm_fx.emit.overrides import GROUPED, Overrides, overrides
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.errors import InputError
from flerm_fx.start.procedure import StartProcedure


class GroupedModel(ScaledModel):
    """A ``GroupedModel`` knows its multipliers, and the base's optimizers that they are for.

    Attributes:
        assignments: all that is known of each parameter, in execution order.
        procedure: by which the start was measured, with the optimizers.
    """

    assignments: tuple[Assignment, ...]
    procedure: StartProcedure
    _model: Callable[[], nn.Module | None]

    @property
    def multipliers(self) -> dict[str, float]:
        """Learning-rate multiplier of each trainable parameter, in execution order."""
        return {a.parameter: a.multiplier for a in self.assignments}

    @property
    def merged_multipliers(self) -> dict[str, float]:
        """Multipliers of ``param_groups(lr, merge=True)``, by parameter."""
        return merged(self.assignments, self.procedure.optimizers.index)

    def param_groups(
        self,
        lr: float | None = None,
        weight_decay: float | None = None,
        *,
        optimizer: int = 0,
        merge: bool = False,
    ) -> list[dict[str, Any]]:
        """Return groups that train the *original* model as the scale nodes train this one.

        Parameters with equal multipliers share a group; each group has ``lr * m``, and weight
        decay and eps changed so that the training is the same (see
        :func:`flerm_fx.recipe.multiplier.group_settings`). Where the base's parameter groups had
        rates, decays or other settings of their own, each parameter has those of its counterpart,
        its rate in proportion to ``lr``. Nothing in the model changes.

        Args:
            lr: the learning rate of the base's first parameter group (the first that has one above
                0), to which the others keep their proportions; None for those that the base was
                recorded at.
            weight_decay: in place of the base's, in the groups that have one if some have none;
                None for the base's own.
            optimizer: which of the base's optimizers the groups are for, where it had several.
            merge: whether multipliers that agree within their errors share a group, at their mean
                (:func:`flerm_fx.emit.merging.merged`): :attr:`merged_multipliers`.

        Raises:
            InputError: the original model is gone (donated or deleted), a learning rate that is
                not above 0, or an optimizer that the base did not have.

        Warns:
            UserWarning: ``lr`` is what another group of the base had.

        Example::

            >>> import flerm_fx, torch
            >>> _ = torch.manual_seed(0)
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
            >>> adam = torch.optim.AdamW(small.parameters(), lr=1e-3)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, batches).profile)
            >>> optimizer = torch.optim.AdamW(compiled.param_groups(lr=1e-3), lr=1e-3)
            >>> sum(len(group["params"]) for group in optimizer.param_groups)
            2
        """
        model = self._model()
        if self.emitter.in_place:
            raise InputError(
                "the model that was compiled has scale nodes now: train it with base_groups(lr), "
                "or compile it with emit='param_groups'"
            )
        if model is None:
            raise InputError(
                "the model that was compiled is gone (donated or deleted), so it has no "
                "parameters to group; keep it, or train the compiled model itself"
            )
        multipliers = self.merged_multipliers if flag("merge", merge) else self.multipliers
        groups = self._groups(model, multipliers, lr, weight_decay, optimizer)
        warn_of_group(self.procedure.optimizers, lr, optimizer, stacklevel=2)
        return groups

    def base_groups(
        self,
        lr: float | None = None,
        weight_decay: float | None = None,
        *,
        optimizer: int = 0,
    ) -> list[dict[str, Any]]:
        """Return groups that train *this* model, with its scale nodes, as the base was trained.

        They are the base's own groups: rates in proportion to ``lr``, decays, and whatever else
        the base's groups did not share. One group at ``lr`` does the same where the base had one.

        Args:
            lr: as for :meth:`param_groups`.
            weight_decay: as for :meth:`param_groups`.
            optimizer: which of the base's optimizers the groups are for, where it had several.

        Raises:
            InputError: the model has no scale nodes, a learning rate that is not above 0, or an
                optimizer that the base did not have.

        Warns:
            UserWarning: ``lr`` is what another group of the base had.

        Example::

            >>> import flerm_fx, torch
            >>> _ = torch.manual_seed(0)
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
            >>> groups = [{"params": [small.weight]}, {"params": [small.bias], "weight_decay": 0.0}]
            >>> adam = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, batches).profile)
            >>> [group["weight_decay"] for group in compiled.base_groups(lr=1e-3)]
            [0.1, 0.0]
        """
        if not self.emitter.has_nodes:
            raise InputError(
                "the model was compiled without scale nodes (emit='param_groups'), so the base's "
                "groups would train it without multipliers: use param_groups(lr)"
            )
        groups = self._groups(self, {}, lr, weight_decay, optimizer)
        warn_of_group(self.procedure.optimizers, lr, optimizer, stacklevel=2)
        return groups

    def _groups(
        self,
        model: nn.Module,
        multipliers: Mapping[str, float],
        lr: float | None,
        weight_decay: float | None,
        optimizer: int,
    ) -> list[dict[str, Any]]:
        trained = {n: p for n, p in model.named_parameters() if n in self.multipliers}
        run = self.procedure.optimizers
        return parameter_groups(run, trained, multipliers, lr, weight_decay, optimizer)

    def overrides(self, format: Overrides = "json") -> str:
        """Return the multipliers as text, for a stack that does not import flerm_fx.

        Each parameter's name is matched by one entry, and the entry gives its multiplier. Functions
        take the learning rate of the base's first parameter group, which is what the base was
        recorded at where they are given none; rates of other groups are in proportion.

        Args:
            format: ``"json"``, from name to multiplier of the rate that the parameter's own group
                has; ``"regex"``, JSON from regular expressions that match whole names;
                ``"megatron"``, code of Megatron-LM's ``config_overrides``, for rates alone; with
                decay and eps as in :meth:`param_groups`, ``"torchtitan"``, code that makes
                torchtitan's groups, and ``"param_groups"``, those of a model.

        Raises:
            InputError: another format, unprintable names, or groups of several optimizers.

        Example::

            >>> import flerm_fx, json, torch
            >>> small, large = nn.Linear(4, 3), nn.Linear(4, 3)
            >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
            >>> adam = torch.optim.AdamW(small.parameters(), lr=1e-3)
            >>> compiled = flerm_fx.compile(large, flerm_fx.record(small, adam, batches).profile)
            >>> json.loads(compiled.overrides()) == compiled.multipliers
            True
        """
        choice("format", format, get_args(Overrides))
        groups: list[dict[str, Any]] = []
        run, multipliers = self.procedure.optimizers, self.multipliers
        lr = run.learning_rates[0]
        if format == "megatron":
            multipliers = {name: m * (run.rate(name) / lr) for name, m in multipliers.items()}
        if format in GROUPED:
            if run.count > 1:
                raise InputError(
                    "the base was trained by several optimizers, whose groups one function does "
                    "not hold; use param_groups(lr, optimizer=...) or overrides('json')"
                )
            names = {id(parameter): name for name, parameter in self.named_parameters()}
            for group in self._groups(self, self.multipliers, 1.0, None, 0):
                groups.append({**group, "params": [names[id(p)] for p in group["params"]]})
        return overrides(multipliers, groups, format, lr)
