"""Other tensors stand in the places of a model's own, for runs and their backward passes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flerm_fx.boundary.compat import own_buffers, own_parameters
from flerm_fx.boundary.interrupts import deferred_interrupt

Place = tuple[dict[str, Any], str, Any, Any]
"""A dictionary of a module, a name in it, what is there, and what is to stand there."""


def places(model: nn.Module, instead: Mapping[int, Tensor]) -> list[Place]:
    """Return the places of parameters and buffers in a model, with what is to stand there.

    Args:
        model: any module.
        instead: what stands in for a parameter or buffer, by the identity of that.
    """
    return [
        (held_by, name, held, stand_in)
        for module in model.modules()
        for held_by in (own_parameters(module), own_buffers(module), vars(module))
        for name, held in held_by.items()
        if (stand_in := _instead(held, instead)) is not held
    ]


@contextmanager
def standing_in(model: nn.Module, instead: Mapping[int, Tensor]) -> Iterator[None]:
    """Let other tensors stand in the places of a model's own while a block lasts.

    Unlike with ``torch.func.functional_call`` they do so in a backward pass, too, which runs a part
    of the model again where activations are checkpointed. Neither hooks of the model's own
    parameters nor a reducer of DDP's hear of it.

    Args:
        model: any module.
        instead: as for :func:`places`.

    >>> layer = nn.Linear(2, 2)
    >>> weight, other = layer.weight, nn.Parameter(layer.weight.detach().clone())
    >>> with standing_in(layer, {id(weight): other}):
    ...     print(layer.weight is other)
    True
    >>> layer.weight is weight
    True
    """
    taken = places(model, instead)

    def put_back() -> None:
        for held_by, name, held, _ in taken:
            held_by[name] = held

    try:
        for held_by, name, _, stand_in in taken:
            held_by[name] = stand_in
        yield
    finally:
        try:
            with deferred_interrupt():
                put_back()
        finally:
            put_back()  # what an interrupt on the way there has left


def _instead(held: Any, instead: Mapping[int, Tensor]) -> Any:
    """Return what is to be in the place of a parameter, or of a list of some; else what is there.

    A recurrent module of torch has its weights in a list as well, and runs with that.
    """
    if isinstance(held, list) and any(id(each) in instead for each in held):
        return [instead.get(id(each), each) for each in held]
    return instead.get(id(held), held)
