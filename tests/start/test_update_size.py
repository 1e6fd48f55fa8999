"""Sizes of updates, against singular values."""

from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

from flerm_fx.start.update_size import update_sizes


def graph_of(op: str, slot: str) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_node("w", op=op, slot=slot)
    return graph


def size(update: Tensor, op: str, slot: str = "weight") -> float:
    return update_sizes({"w": update}, graph_of(op, slot))["w"]


def low_rank(*shape: int) -> Tensor:
    """A gradient's spectrum: one direction far above the others."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, 1, generator=generator) for n in shape[-2:])
    return rows @ columns.T + 0.1 * torch.randn(*shape, generator=generator)


@pytest.mark.parametrize(
    ("op", "slot", "into"),
    [
        ("aten.linear", "weight", 1),
        ("aten.addmm", "mat2", 0),
        ("aten.matmul", "other", 0),
        ("aten.embedding", "weight", 0),
    ],
)
def test_a_matrix_has_its_spectral_norm_by_what_comes_in(op: str, slot: str, into: int) -> None:
    update = low_rank(6, 24)
    expected = (
        torch.linalg.matrix_norm(update, 2) * (update.shape[into] / update.shape[1 - into]) ** 0.5
    )
    assert size(update, op, slot) == pytest.approx(float(expected), rel=1e-5)


def test_a_convolution_is_a_matrix_of_its_channels() -> None:
    update = low_rank(8, 27)
    expected = float(torch.linalg.matrix_norm(update, 2)) * (27 / 8) ** 0.5
    assert size(update.reshape(8, 3, 3, 3), "aten.conv2d") == pytest.approx(expected, rel=1e-5)


def test_a_stack_of_matrices_has_the_mean_square_of_theirs() -> None:
    stack = torch.stack([low_rank(4, 9), 2 * low_rank(4, 9)])
    one = float(torch.linalg.matrix_norm(stack[0], 2)) * (4 / 9) ** 0.5
    expected = one * (5 / 2) ** 0.5
    assert size(stack, "aten.bmm", "mat2") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("update", [torch.full((5,), -3.0), torch.full((1, 4, 5), 3.0)])
def test_what_acts_entry_by_entry_has_its_root_mean_square(update: Tensor) -> None:
    assert size(update, "aten.add", "other") == pytest.approx(3.0)


@pytest.mark.parametrize("update", [torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(3)])
def test_no_update_has_no_size(update: Tensor) -> None:
    assert size(update, "aten.linear") == 0.0


def test_a_complex_matrix_has_its_spectral_norm() -> None:
    update = torch.complex(low_rank(4, 6), 0.5 * low_rank(4, 6))
    expected = float(torch.linalg.matrix_norm(update, 2)) * (6 / 4) ** 0.5
    assert size(update, "aten.linear") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_sign_updates_have_the_sizes_of_mup(width: int) -> None:
    """Hidden layers and readouts grow with the width, tables and inputs stay (Yang et al. 2022)."""

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape)

    def ratio(op: str, slot: str, small: Any, large: Any) -> float:
        return size(ones(*large), op, slot) / size(ones(*small), op, slot)

    assert ratio("aten.linear", "weight", (8, 8), (8 * width, 8 * width)) == pytest.approx(width)
    assert ratio("aten.linear", "weight", (3, 8), (3, 8 * width)) == pytest.approx(width)
    assert ratio("aten.linear", "weight", (8, 3), (8 * width, 3)) == pytest.approx(1.0)
    assert ratio("aten.embedding", "weight", (9, 8), (9, 8 * width)) == pytest.approx(1.0)
