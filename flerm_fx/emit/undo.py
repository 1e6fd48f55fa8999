"""This module lets a model be changed in place wholly, or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_OWN = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))
"""The attributes of every module that hold its parameters, buffers, modules, hooks and so on."""


@contextmanager
def undone_on_failure(model: nn.Module, copies: Mapping[str, Tensor]) -> Iterator[None]:
    """Put a model back bit for bit, with its parameters in their places, if a block raises.

    Args:
        model: that the block changes, in weights, modules, classes or attributes.
        copies: what its parameters hold, by name, of those that the block changes.

    >>> model = nn.Linear(2, 2)
    >>> before = model.weight
    >>> copies = {"weight": before.detach().clone()}
    >>> try:
    ...     with undone_on_failure(model, copies):
    ...         with torch.no_grad():
    ...             _ = model.weight.mul_(3)
    ...         del model.weight
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     model.weight is before, torch.equal(before, copies["weight"])
    (True, True)
    """
    modules = [
        (module, type(module), dict(vars(module)), {k: vars(module)[k].copy() for k in _OWN})
        for module in model.modules()
    ]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors: list[tuple[Tensor, Tensor]] = [
        (parameters[name], copy) for name, copy in copies.items()
    ]
    tensors += [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    except BaseException:
        for module, kind, attributes, contents in modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                attributes[name].update(content)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)
        raise
