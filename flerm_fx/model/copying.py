"""This module copies models."""

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import (
    REGISTRIES,
    forget_compilation,
    gradient_hooks,
    memory_of,
    pytree,
)
from flerm_fx.errors import InputError
from flerm_fx.model.distributed import as_plain, without_sharding
from flerm_fx.model.untouched import untouched
from flerm_fx.model.values import refuse_without_values


def copied(model: nn.Module, *, on_meta: bool = False, sharing: bool = False) -> nn.Module:
    """Return a deep copy of a model, without gradients; of a sharded one, plain and whole.

    Tensors with a history that modules keep as plain attributes or in a list, as
    ``torch.nn.utils.weight_norm`` and recurrent networks with parametrizations do until the next
    forward pass, are copied without it. One that shares memory with a parameter shares the copy's.

    Whether the copy computes with its own weights, :func:`flerm_fx.capture.tracing.capture` finds
    out.

    Args:
        model: any module.
        on_meta: copy one without values, too.
        sharing: whether the copy has the very parameters of the model, with their gradients, and
            what shares their memory. Buffers are copied all the same.

    Raises:
        InputError: the model has no values yet or cannot be copied, or a copy shares trainable
            parameters with it.

    >>> model = nn.utils.spectral_norm(nn.Linear(2, 2))
    >>> copied(model).weight.requires_grad
    False
    >>> copied(model, sharing=True).weight_orig is model.weight_orig
    True
    """
    refuse_without_values(model, on_meta=on_meta)
    memo: dict[int, object] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for attribute in vars(module).values()
        for value in (attribute if isinstance(attribute, list | tuple) else [attribute])
        if isinstance(value, Tensor) and not value.is_leaf
    }
    with warnings.catch_warnings(), as_plain(model) as plain:
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, for a graph module
        memo.update(plain)
        if sharing:
            shared = *model.parameters(), *(view for view, _ in _views(model))
            memo.update({id(tensor): tensor for tensor in shared})
        try:
            twin: nn.Module = copy.deepcopy(model, memo)
        except Exception as error:  # whatever the user's classes may raise
            raise InputError(
                f"the model cannot be copied, which measuring it needs: {error}; "
                "attributes that hold tensors with a history should be buffers or detached"
            ) from error
    for module in twin.modules():
        forget_compilation(module)  # for a class that has a __deepcopy__ of its own
    without_sharding(twin)
    if sharing:
        return twin
    originals = {memory_of(p) for p in model.parameters()}
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad and memory_of(parameter) in originals:
            raise InputError(
                f"a copy of the model shares parameter {name!r} with the original, so measuring "
                "on the copy would train the model; a __deepcopy__ that keeps weights must freeze "
                "them (requires_grad=False)"
            )
    for view, held in _views(model):
        _share(memo.get(id(view)), view, memo.get(id(held)), held)
    twin.zero_grad(set_to_none=True)
    return twin


def refuse_gradient_hooks(model: nn.Module) -> None:
    """Refuse hooks on parameters that change gradients, which no copy of a parameter has.

    A hook that returns None, or what it is given, only looks, and copies do without it. Which do is
    found by handing each a random gradient.

    Raises:
        InputError: a hook changes it; the message names its parameter.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.register_hook(lambda gradient: None)
    >>> refuse_gradient_hooks(layer)
    """
    if not any(gradient_hooks(parameter) for parameter in model.parameters()):
        return
    with untouched(model), torch.no_grad():
        for name, parameter in model.named_parameters():
            for hook in gradient_hooks(parameter).values():
                given = torch.randn_like(parameter)
                changed = hook(given.clone())
                if changed is not None and not torch.equal(changed, given):
                    raise InputError(
                        f"parameter {name!r} has a hook that changes its gradient "
                        f"({getattr(hook, '__qualname__', type(hook).__name__)}), and measured "
                        "steps and compiled models are on copies, which have none; change the "
                        "weight where the model reads it (weight * mask + (weight * (1 - mask))"
                        ".detach() trains a part of it), use parameter groups for a rate of its "
                        "own, or call .remove() on what register_hook returned"
                    )


def _views(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Return tensors that plain attributes hold and that are memory of a parameter, with the
    parameter.
    """
    registered = {id(t) for t in (*model.parameters(), *model.buffers())}
    by_storage = {memory_of(p): p for p in model.parameters()}
    for module in model.modules():
        for attribute, value in vars(module).items():
            if attribute in REGISTRIES:
                continue
            for leaf in pytree.tree_leaves(value):
                plain = isinstance(leaf, Tensor) and id(leaf) not in registered
                if plain and memory_of(leaf) in by_storage:
                    yield leaf, by_storage[memory_of(leaf)]


def _share(copied_view: object, view: Tensor, twin: object, parameter: Tensor) -> None:
    """Let a copied view be memory of the copied parameter."""
    if isinstance(copied_view, Tensor) and isinstance(twin, Tensor):
        offset = view.storage_offset() - parameter.storage_offset() + twin.storage_offset()
        with torch.no_grad():
            copied_view.data = twin.detach().as_strided(view.size(), view.stride(), offset)
