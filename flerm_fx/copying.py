"""Copies of models."""

import copy
import warnings

from torch import Tensor, nn

from flerm_fx.distributed import as_plain, without_sharding
from flerm_fx.errors import InputError


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model, without gradients; of a sharded one, plain and whole.

    Tensors with a history that modules keep as plain attributes or in a list, as
    ``torch.nn.utils.weight_norm`` and recurrent networks with parametrizations do until the next
    forward pass, are copied without it.

    Raises:
        InputError: the model cannot be copied.

    >>> model = nn.utils.spectral_norm(nn.Linear(2, 2))
    >>> copied(model).weight.requires_grad
    False
    """
    memo: dict[int, object] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for attribute in vars(module).values()
        for value in (attribute if isinstance(attribute, list | tuple) else [attribute])
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        with warnings.catch_warnings(), as_plain(model) as plain:
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, for a graph module
            twin = copy.deepcopy(model, {**memo, **plain})
        without_sharding(twin)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the model cannot be copied, which measuring it needs: {error}; attributes "
            "that hold tensors with a history should be buffers or detached"
        ) from error
    twin.zero_grad(set_to_none=True)
    return twin
