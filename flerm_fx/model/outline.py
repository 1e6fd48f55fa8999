"""This module copies models without their values."""

import copy
import warnings

import torch
from torch import Tensor, nn

from flerm_fx.errors import InputError
from flerm_fx.model.distributed import as_like, as_plain, is_sharded_tensor, whole, without_sharding
from flerm_fx.model.values import refuse_without_values


def outline(model: nn.Module) -> nn.Module:
    """Return a plain copy of a model on the device ``meta``: its code, names and shapes.

    It takes no memory, and of a sharded model nothing is gathered.

    Raises:
        InputError: the model has no values yet, or cannot be copied.

    >>> outline(nn.Linear(2, 3)).weight
    Parameter containing:
    tensor(..., device='meta', size=(3, 2), requires_grad=True)
    """
    refuse_without_values(model)
    with warnings.catch_warnings(), as_plain(model, _blank) as memo:
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, for a graph module
        held = [value for module in model.modules() for value in vars(module).values()]
        history = (v for v in held if isinstance(v, Tensor) and not v.is_leaf)
        for tensor in (*model.parameters(), *model.buffers(), *history):
            if not is_sharded_tensor(tensor):
                memo[id(tensor)] = as_like(tensor, _blank(tensor))
        try:
            twin: nn.Module = copy.deepcopy(model, memo)
        except Exception as error:  # whatever the user's classes may raise
            raise InputError(
                f"the model cannot be copied, which capturing it without its weights needs: {error}"
            ) from error
    without_sharding(twin)
    return twin


def with_buffers_of(model: nn.Module, twin: nn.Module, device: torch.device) -> nn.Module:
    """Return an outline itself, with the buffers of its model, on a device."""
    for path, module in model.named_modules():
        own = twin.get_submodule(path)
        for name, buffer in module.named_buffers(recurse=False):
            kind = own.get_buffer(name).dtype
            value = whole(buffer.detach()).to(device, kind, copy=True)
            setattr(own, name, value)
    return twin


def _blank(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
