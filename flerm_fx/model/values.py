"""This module tells whether the tensors of a model have values, and values to train."""

from torch import nn
from torch.nn.parameter import is_lazy

from flerm_fx.errors import InputError

NOTHING_TO_TRAIN = (
    "the model has no trainable parameter (none with requires_grad=True); set that of the "
    "parameters that are to be trained, and build the optimizer after that"
)
"""Said of a model that is frozen as a whole."""


def refuse_without_values(model: nn.Module, *, on_meta: bool = False) -> None:
    """Refuse parameters and buffers that have no values yet.

    Args:
        model: that is to be run.
        on_meta: let those on the device ``meta`` be, where shapes are all that is asked.

    Raises:
        InputError: one is on the device ``meta``, or waits for a first batch.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"{name!r} has no shape yet, as in a lazy module before its first batch; run the "
                "model once on a batch, and build the optimizer after that"
            )
        if tensor.is_meta and not on_meta:
            raise InputError(
                f"{name!r} is on the device 'meta', so it has a shape and no values to measure at; "
                "call model.to_empty(device=...) and initialise it, or load a state dict with "
                "assign=True, and build the optimizer after that"
            )


def is_without_values(model: nn.Module) -> bool:
    """Tell whether some parameter of a model is on the device ``meta``."""
    return any(parameter.is_meta for parameter in model.parameters())
