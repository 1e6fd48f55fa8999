"""The size of an update is measured by what it does to the signal that it meets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flerm_fx.model.distributed import whole
from flerm_fx.model.inputs import as_real
from flerm_fx.ops.table import facts

if TYPE_CHECKING:
    import networkx as nx

ITERATIONS = 16
"""Of the power method. A gradient's spectrum falls fast, and a size is wanted to some percent."""


def update_sizes(
    updates: Mapping[str, Tensor], graph: "nx.DiGraph", seed: int = 0
) -> dict[str, float]:
    r"""Sizes of updates that are the same at every width where features learn as fast.

    .. math:: \lVert u \rVert_2 \sqrt{n_\mathrm{in} / n_\mathrm{out}}

    for matrices, and the root mean square for vectors and for what acts entry by entry: features
    learn where an update's spectral norm goes as :math:`\sqrt{n_\mathrm{out} / n_\mathrm{in}}`
    (Yang, Simon and Bernstein 2023, arXiv 2310.17813). A convolution is a matrix of its output
    channels by all else, and a stack of matrices has the root mean square of theirs.

    Args:
        updates: by parameter.
        graph: the parameter graph, which tells what comes in from what goes out.
        seed: of the vectors that the power method begins with.

    Example::

        >>> from flerm_fx.align.parameter_graph import chain
        >>> graph = chain([("fc", "Linear", "weight", 2), ("norm", "Norm", "weight", 1)])
        >>> sizes = update_sizes({"fc": torch.ones(3, 12), "norm": -torch.ones(12)}, graph)
        >>> [round(sizes[name], 6) for name in ("fc", "norm")]  # sqrt(36) * sqrt(12 / 3), and 1
        [12.0, 1.0]
    """
    return {
        name: _size(whole(update), graph.nodes[name]["op"], graph.nodes[name]["slot"], seed)
        for name, update in updates.items()
    }


def _size(update: Tensor, op: str, slot: str, seed: int) -> float:
    if not update.numel():
        return 0.0
    known = facts(op)
    if update.ndim < 2 or known.is_entry_by_entry:
        return float(as_real(update).double().square().mean().sqrt())
    matrices = update.flatten(1) if known.kind == "convolution" else update
    if known.layout == "in out" and (known.kind == "table" or slot == known.linear[-1]):
        matrices = matrices.mT
    out, into = matrices.shape[-2:]
    norms = _spectral_norms(matrices.reshape(-1, out, into), seed)
    return float(norms.square().mean().sqrt()) * float((into / out) ** 0.5)


def _spectral_norms(matrices: Tensor, seed: int) -> Tensor:
    """Return the largest singular values of (n, rows, columns), as (n,)."""
    wide = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(wide), wide.shape[2], 1, generator=generator, dtype=torch.float64)
    vectors = vectors.to(wide)
    norms = torch.zeros(len(wide), dtype=torch.float64, device=wide.device)
    for _ in range(ITERATIONS):
        lengths = vectors.norm(dim=1, keepdim=True)
        ahead = wide @ (vectors / torch.where(lengths > 0, lengths, 1.0))
        norms = ahead.norm(dim=1)[:, 0].to(torch.float64)
        vectors = wide.mH @ ahead
    return norms
