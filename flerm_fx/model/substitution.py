"""A model is called with other tensors in the place of its own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import own_buffers, own_parameters


def called_with(
    model: nn.Module, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return what a model returns with some of its parameters and buffers replaced.

    ``torch.func.functional_call`` puts tensors in by name, and back by name. Where a module is
    registered under two names, the second time it puts back what it had put in. Here each place in
    a module has one name.

    Args:
        model: as it is afterwards.
        tensors: by the model's names; a tied one replaces all that are tied to it.
        args: of the call.
        kwargs: of the call.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> model = nn.Sequential(layer, layer)
    >>> called_with(model, {"0.weight": 2 * torch.eye(2)}, (torch.ones(1, 2),), {})
    tensor([[4., 4.]])
    >>> isinstance(layer.weight, nn.Parameter)
    True
    """
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    given = {id(named[name]): tensor for name, tensor in tensors.items()}
    places = {
        f"{path}.{name}" if path else name: given[id(held)]
        for path, module in model.named_modules()
        for name, held in (*own_parameters(module).items(), *own_buffers(module).items())
        if id(held) in given
    }
    return torch.func.functional_call(model, places, args, kwargs, tie_weights=False)
