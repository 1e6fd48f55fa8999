"""Functions of the user's make models and optimizers; what they make, and how, is checked."""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from flerm_fx.boundary.options import described, integer
from flerm_fx.errors import InputError
from flerm_fx.model.distributed import whole
from flerm_fx.model.values import refuse_without_values


class ModelFactory:
    """A ``ModelFactory`` makes models by a function of the user's, at new initial weights each
    time.

    What a second model with the same weights tells is what the first one has told, and an error
    over such models would be none.

    Args:
        make: makes a model, from keyword arguments or from none.

    >>> import flerm_fx
    >>> factory = ModelFactory(lambda width: nn.Linear(width, 3))
    >>> factory.check_takes(width=4)
    >>> factory(0, width=4)
    Linear(in_features=4, out_features=3, bias=True)
    """

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        if isinstance(make, nn.Module) or not callable(make):
            raise InputError(
                "factory must be a function that makes a new model each time, got "
                f"{described(make)}; for one model that is there already, use flerm_fx.record"
            )
        self._make = make
        self._models: WeakSet[nn.Module] = WeakSet()  # one at a time is all that memory has to hold
        self._made: dict[tuple[Any, ...], int] = {}

    def check_takes(self, **arguments: Any) -> None:
        """Check that the function can be called with these arguments and no others.

        Raises:
            InputError: it lacks one, or does not take one.
        """
        given = ", ".join(f"{name}=…" for name in arguments)
        _check_call("factory", self._make, f"factory({given})", **arguments)

    def __call__(self, seed: Any, **arguments: Any) -> nn.Module:
        """Make a model under a seed, from which the random state goes on.

        Raises:
            InputError: the seed is none, or what is made is no model, has no values, is a model
                that was made before, or has the weights of one.
        """
        seed = integer("a seed", seed, 0)
        torch.manual_seed(seed)
        model = self._make(**arguments)
        if not isinstance(model, nn.Module):
            raise InputError(f"factory made {described(model)}; expected an nn.Module")
        if model in self._models:
            raise InputError(
                "factory made one and the same model twice; expected new initial weights each time"
            )
        refuse_without_values(model)
        self._models.add(model)
        weights = tuple(_sum(p) for p in model.parameters() if p.requires_grad)
        made = repr(arguments), weights
        if weights and made in self._made:
            raise InputError(
                f"factory made the same trainable weights under seeds {self._made[made]} and {seed}"
                "; expected new ones from torch's random state: leave torch.manual_seed out of it, "
                "or pass seeds=1 where they are always the same, as pretrained ones are"
            )
        self._made[made] = seed
        return model


def check_optimizer_factory(make: Any) -> None:
    """Check that a function makes an optimizer of a model, as far as that is seen before it does.

    Raises:
        InputError: an optimizer, the class of one, no function, or one of other arguments.

    >>> check_optimizer_factory(lambda model: torch.optim.Adam(model.parameters()))
    """
    such = "such as lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3)"
    is_class = isinstance(make, type) and issubclass(make, Optimizer)
    if is_class or isinstance(make, nn.Module | Optimizer) or not callable(make):
        raise InputError(
            "optimizer must be a function that makes a new one of each model, got "
            f"{described(make)}; pass a function, {such}"
        )
    _check_call("optimizer", make, f"optimizer(model); pass a function, {such}", None)


def _check_call(name: str, make: Callable[..., Any], call: str, *args: Any, **kwargs: Any) -> None:
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # what is written in C may have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{name} has {error}; it is called as {call}") from None


def _sum(tensor: torch.Tensor) -> float:
    """Return a number that is another one for other random values."""
    values = whole(tensor.detach())
    real = torch.view_as_real(values) if values.is_complex() else values
    return float(real.sum(dtype=torch.float64))
