r"""The paper's own estimators take one random sum of outputs a pass, and smooth over passes.

With :math:`\phi = (NK)^{-1/2} \sum_{n,k} \xi_{nk} f_{nk}` for Gaussian :math:`\xi`, and
:math:`z = u_l \odot \partial\phi/\partial\theta_l` (Milsom et al. 2025, section 3):

- ``full_cov``: :math:`(\sum z)^2`, unbiased with relative variance 2;
- ``iid``: :math:`\sum z^2`, which assumes the entries' contributions uncorrelated;
- ``kronecker``: :math:`\prod_a \lVert \sum_{\text{axis } a} z \rVert^2 / (\sum z^2)^{d-1}` for d
  axes, which assumes a covariance that is a Kronecker product over them.

Each factor is an exponential moving average over passes with its bias correction, as in the paper.
It needs nothing of the model but a backward pass. A complex parameter is the real one of its two
parts, an axis of its own.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flerm_fx.capture.captured import Capture
from flerm_fx.model.inputs import Inputs, as_real
from flerm_fx.model.randomness import preserved_rng

PaperMethod = Literal["full_cov", "iid", "kronecker"]

PASSES = 40
"""Warm-up passes in the paper's experiments."""

BETA = 0.9
"""Decay of the moving averages in the authors' code."""


def factors(z: Tensor, method: PaperMethod) -> Tensor:
    """Return the quantities of one pass whose averages make up the estimate.

    One number for ``full_cov`` and ``iid``; for ``kronecker`` one for each axis, then Σ z².
    """
    z = z.reshape(1) if z.ndim == 0 else z
    if method == "full_cov":
        return z.sum().square().reshape(1)
    if method == "iid":
        return z.square().sum().reshape(1)
    axes = [z.sum(axis).square().sum() for axis in range(z.ndim)]
    return torch.stack([*axes, z.square().sum()])


def combine(averages: Tensor, method: PaperMethod) -> Tensor:
    """FSLR² from averaged factors.

    >>> combine(torch.tensor([2.0, 3.0, 1.5]), "kronecker")
    tensor(4.)
    """
    if method != "kronecker":
        return averages[0]
    axes, total = averages[:-1], averages[-1]
    if not total > 0:
        return torch.zeros_like(total)
    return (axes.log().sum() - (axes.numel() - 1) * total.log()).exp()


def paper(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    method: PaperMethod,
    passes: int = PASSES,
    generator: torch.Generator,
    beta: float = BETA,
) -> dict[str, tuple[float, float]]:
    r"""FSLR and standard error of each parameter, by one of the paper's estimators.

    The standard error is the delete-one jackknife over passes, with the moving average's weights:
    it covers the draws, not the bias of ``iid`` and ``kronecker``. With one pass it is taken from
    ``full_cov``'s relative variance of 2, an FSLR's relative error of :math:`1/\sqrt 2`.
    """
    parameters = {name: value.detach() for name, value in parameters.items()}
    history: dict[str, list[Tensor]] = {name: [] for name in updates}
    with preserved_rng():
        for _ in range(passes):
            leaves = {name: parameters[name].clone().requires_grad_() for name in updates}
            with torch.enable_grad(), captured.holding({**parameters, **leaves}):
                output = captured.run(inputs)
                xi = torch.randn(output.shape, generator=generator, device=generator.device).to(
                    output
                )
                phi = (output * xi).sum() / math.sqrt(output.numel())
                gradients = torch.autograd.grad(phi, list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                z = torch.zeros_like(leaves[name]) if gradient is None else gradient
                z = (as_real(z) * as_real(updates[name].to(z))).detach()
                z = z if z.dtype == torch.float64 else z.float()
                history[name].append(factors(z, method))
    weights = torch.tensor([beta ** (passes - 1 - t) for t in range(passes)], dtype=torch.float64)
    return {
        name: _estimate(torch.stack(rows).double().cpu(), weights, method)
        for name, rows in history.items()
    }


def _estimate(rows: Tensor, weights: Tensor, method: PaperMethod) -> tuple[float, float]:
    def fslr(w: Tensor) -> Tensor:
        return combine((w / w.sum()) @ rows, method).clamp_min(0).sqrt()

    value = float(fslr(weights))
    passes = len(weights)
    if passes == 1:
        return value, value / math.sqrt(2)
    left_out = torch.stack([fslr(weights * (torch.arange(passes) != t)) for t in range(passes)])
    # Infinitesimal weights: each pass pulls by its own share, so sum squared pulls.
    pulls = (left_out - value) * (1 - weights / weights.sum())
    return value, float(pulls.square().sum().sqrt())
