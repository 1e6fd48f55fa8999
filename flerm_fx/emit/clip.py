"""This module clips gradients in the units of the weights that the model computes with."""

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from flerm_fx.boundary.options import checked, number
from flerm_fx.emit.module import plain_names, scales_of
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.model.distributed import unwrapped, whole


def clip_grad_norm_(model: nn.Module, max_norm: float, norm_type: float = 2.0) -> Tensor:
    r"""Clip gradients by the norm that they have for the effective weights :math:`\theta = s\,w`.

    Behind a scale node of s the gradient of the stored weight is s times that of the effective one,
    so ``torch.nn.utils.clip_grad_norm_`` would weigh each parameter by its scale. Here

    .. math:: \lVert g \rVert = \Big(\sum_l \lVert g_{w_l} / s_l \rVert^p\Big)^{1/p},

    which is the norm of the plain model's gradients, and a plain model is clipped as by torch.

    Args:
        model: whose gradients are clipped in place, with scale nodes or without.
        max_norm: largest norm to leave; ``math.inf`` to clip nothing.
        norm_type: p, or ``math.inf``.

    Returns:
        The norm before clipping, of shape ``()``.

    Raises:
        InputError: ``max_norm`` or ``norm_type`` is not above 0.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> scaled = ScaledModel(nn.Linear(2, 1, bias=False), {"weight": 4.0})
    >>> for each in (model, scaled):
    ...     each(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).sum().backward()
    >>> clip_grad_norm_(model, 1.0), clip_grad_norm_(scaled, 1.0), scaled.weight.grad.norm()
    (tensor(5.), tensor(5.), tensor(4.0000))
    """
    max_norm = number("max_norm", max_norm, above=0, finite=False)
    norm_type = number("norm_type", norm_type, above=0, finite=False)
    inner = unwrapped(checked("model", model))
    if isinstance(inner, ScaledModel):
        scales, names = inner.scales, {}
    else:
        scales, names = scales_of(inner), plain_names(inner)
    parameters = {names.get(n, n): p for n, p in inner.named_parameters() if p.grad is not None}
    if not parameters:
        return torch.tensor(0.0)
    norms = [
        whole(torch.linalg.vector_norm(p.grad, norm_type)) / scales.get(name, 1.0)
        for name, p in parameters.items()
    ]
    device = norms[0].device
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms]), norm_type)
    clip_grads_with_norm_(parameters.values(), max_norm, total)
    return total
