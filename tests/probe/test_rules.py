"""Rules for tangents of single operations, held against differentiation of the operation."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from flerm_fx.capture.probed_as import attention, attention_dropout_mask
from flerm_fx.ops.operation import argument_name, operation_name
from flerm_fx.ops.table import TABLE, facts
from flerm_fx.probe import stacks
from flerm_fx.probe.by_element import Combination, diagonal
from flerm_fx.probe.derivative import jvp
from flerm_fx.probe.jacobians import JACOBIANS
from flerm_fx.probe.linear_maps import linear_map
from flerm_fx.probe.rules import argument_at, tangent

aten = torch.ops.aten
RTOL = 1e-12  # of float64


def t(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def convolution(dimensions: int, *rest: Any, turned: bool = False) -> tuple[Any, ...]:
    weight = t(3, 4, *[2] * dimensions) if turned else t(4, 3, *[2] * dimensions)
    return (t(2, 3, *[5] * dimensions), weight, t(4), *rest)


def cases() -> dict[Any, Any]:
    """Arguments of each operation that is linear in one of them, or that some rule knows."""
    return {
        aten._to_copy.default: (t(2, 3), {"dtype": torch.float64}),
        aten.alias.default: (t(2, 3),),
        aten.clone.default: (t(2, 3),),
        aten.exp.default: (t(2, 3),),
        aten.gelu.default: (t(2, 3),),
        aten.mean.default: (t(2, 3),),
        aten.neg.default: (t(2, 3),),
        aten.relu.default: (t(2, 3),),
        aten.silu.default: (t(2, 3),),
        aten.sum.default: (t(2, 3),),
        aten.tanh.default: (t(2, 3),),
        aten.baddbmm.default: (t(4), t(2, 3, 5), t(2, 5, 4), {"beta": 0.5, "alpha": 2.0}),
        aten.rsub.Tensor: (t(3), t(2, 3), {"alpha": 0.5}),
        aten.rsub.Scalar: (t(2, 3), 2.0, 0.5),
        aten.add.Scalar: (t(2, 3), 2.0, 0.5),
        aten.mul.Scalar: (t(2, 3), 2.5),
        aten.div.Scalar: (t(2, 3), 2.5),
        aten.instance_norm.default: (t(2, 3, 4), t(3), t(3), None, None, True, 0.1, 1e-5, False),
        aten.repeat.default: (t(2, 3), [2, 1, 1]),
        aten.swapaxes.default: (t(2, 3, 4), 0, -1),
        aten.tensor_split.sections: (t(4, 6), 3, 1),
        aten.feature_dropout.default: (t(2, 3, 4), 0.5, False),
        aten.add.Tensor: (t(2, 3), t(3), {"alpha": 2.5}),
        aten.sub.Tensor: (t(3), t(2, 3), {"alpha": 0.5}),
        aten.mul.Tensor: (t(2, 3), t(3)),
        aten.div.Tensor: (t(2, 3), t(3)),
        aten.addmm.default: (t(4), t(2, 3), t(3, 4), {"beta": 0.5, "alpha": 2.0}),
        aten.adaptive_avg_pool2d.default: (t(2, 3, 6, 6), [2, 2]),
        aten.avg_pool2d.default: (t(2, 3, 6, 6), [2, 2]),
        aten.batch_norm.default: (t(4, 3, 2), t(3), t(3), None, None, True, 0.1, 1e-5, False),
        aten.bmm.default: (t(2, 3, 4), t(2, 4, 5)),
        aten.chunk.default: (t(4, 6), 2, 1),
        aten.contiguous.default: (t(3, 2).mT,),
        aten.convolution.default: convolution(2, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        aten.conv1d.default: convolution(1, [2], [1]),
        aten.conv2d.default: convolution(2, [2, 1], [1, 0]),
        aten.conv3d.default: convolution(3),
        aten.conv1d.padding: convolution(1, [1], "same"),
        aten.conv2d.padding: convolution(2, [1, 1], "same"),
        aten.conv3d.padding: convolution(3, [1, 1, 1], "same"),
        aten.conv_transpose1d.default: convolution(1, turned=True),
        aten.conv_transpose2d.input: convolution(2, [2, 2], turned=True),
        aten.conv_transpose3d.input: convolution(3, turned=True),
        aten.cumsum.default: (t(3, 4), 1),
        aten.dropout.default: (t(2, 3), 0.5, False),
        aten.embedding.default: (t(5, 3), torch.tensor([[0, 4], [1, 1]])),
        aten.expand.default: (t(1, 3), [2, 3]),
        aten.flatten.using_ints: (t(2, 3, 4), 1, 2),
        aten.flip.default: (t(2, 3), [1]),
        aten.gather.default: (t(2, 3), 1, torch.tensor([[0], [2]])),
        aten.group_norm.default: (t(2, 4, 3), 2, t(4), t(4), 1e-5),
        aten.index_select.default: (t(2, 3), 1, torch.tensor([2, 0])),
        aten.layer_norm.default: (t(2, 3, 4, 5), [4, 5], t(4, 5), t(4, 5), 1e-5),
        aten.linear.default: (t(2, 5, 3), t(4, 3), t(4)),
        aten.log_softmax.int: (t(2, 3), 1),
        aten.matmul.default: (t(2, 3, 4), t(4, 5)),
        aten.mean.dim: (t(2, 3), [1], True),
        aten.mm.default: (t(2, 3), t(3, 4)),
        aten.movedim.int: (t(2, 3, 4), 0, 2),
        aten.narrow.default: (t(2, 3), 1, 1, 2),
        aten.permute.default: (t(2, 3, 4), [2, 0, 1]),
        aten.reshape.default: (t(2, 6), [3, 4]),
        aten.rms_norm.default: (t(2, 3), [3], t(3), 1e-6),
        aten.roll.default: (t(2, 3), [1], [1]),
        aten.select.int: (t(2, 3), 1, 2),
        aten.slice.Tensor: (t(4, 3), 0, 1, 3),
        aten.softmax.int: (t(2, 3, 4), 1),
        aten.split.Tensor: (t(4, 6), 2, 1),
        aten.split_with_sizes.default: (t(4, 6), [2, 4], 1),
        aten.squeeze.default: (t(2, 1, 3),),
        aten.squeeze.dim: (t(2, 1, 3), 1),
        aten.sum.dim_IntList: (t(2, 3), [0]),
        aten.t.default: (t(2, 3),),
        aten.to.dtype: (t(2, 3), torch.float64),
        aten.transpose.int: (t(2, 3, 4), 0, -1),
        aten.unbind.int: (t(2, 3), 1),
        aten.unflatten.int: (t(2, 6), 1, [2, 3]),
        aten.unfold.default: (t(2, 6), 1, 2, 2),
        aten.unsqueeze.default: (t(2, 3), 1),
        aten.view.default: (t(2, 6), [3, 4]),
    }


def arguments(op: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an operation, the same each time."""
    torch.manual_seed(0)
    given = cases()[op]
    kwargs = given[-1] if isinstance(given[-1], dict) else {}
    return given[: len(given) - bool(kwargs)], kwargs


OPERATIONS = list(cases())
RULES = [
    (op, index)
    for op in OPERATIONS
    for index in range(len(arguments(op)[0]))
    if argument_name(op, index) in {*facts(op).linear, *facts(op).terms}
    and isinstance(arguments(op)[0][index], Tensor)
]


def positions(args: tuple[Any, ...]) -> dict[int, int]:
    """Positions among the flattened arguments of those that are floating tensors, with indices."""
    found = {p: argument_at(args, p) for p in range(12)}
    return {
        p: i
        for p, i in found.items()
        if i >= 0 and isinstance(args[i], Tensor) and args[i].is_floating_point()
    }


@pytest.mark.parametrize("op,index", RULES, ids=str)
def test_the_tangent_of_an_operation_is_that_of_its_jvp(op: Any, index: int) -> None:
    args, kwargs = arguments(op)
    (position,) = (p for p, i in positions(args).items() if i == index)
    update = {position: torch.randn_like(args[index])}
    expected = jvp(op, args, kwargs, update)
    found = tangent(op, args, kwargs, update)
    for each, wanted in zip(outputs(found), outputs(expected), strict=True):
        torch.testing.assert_close(each.expand_as(wanted), wanted, rtol=RTOL, atol=RTOL)


def outputs(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple | list) else [value]


@pytest.fixture(params=[0, stacks.SMALL], ids=["by rows", "at once"])
def small_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that have no stacks, called for each row and through vmap."""
    monkeypatch.setattr(stacks, "SMALL", request.param)


@pytest.mark.usefixtures("small_rows")
@pytest.mark.parametrize("op", OPERATIONS, ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_linear_map_is_the_jvp_of_each_row(op: Any, rows: int) -> None:
    args, kwargs = arguments(op)
    value = op(*args, **kwargs)
    for position, index in positions(args).items():
        stack = torch.randn(rows, *args[index].shape, dtype=torch.float64)
        moved = linear_map(op, args, kwargs, value, (position,))({position: stack})
        for row in range(rows):
            expected = jvp(op, args, kwargs, {position: stack[row]})
            for found, wanted in zip(moved, outputs(expected), strict=True):
                assert found is not None
                torch.testing.assert_close(found[row], wanted, rtol=RTOL, atol=RTOL)


@pytest.mark.usefixtures("small_rows")
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_either_mode(training: bool) -> None:
    torch.manual_seed(0)
    running = (None, None) if training else (t(3), t(3).exp())
    args = (t(4, 3, 2), t(3), t(3), *running, training, 0.1, 1e-5, False)
    op = aten.batch_norm.default
    stack = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    (moved,) = linear_map(op, args, {}, op(*args), (0,))({0: stack})
    assert moved is not None
    for row in range(2):
        expected = jvp(op, args, {}, {0: stack[row]})
        torch.testing.assert_close(moved[row], expected, rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("op", [aten.cat.default, aten.stack.default], ids=str)
@pytest.mark.parametrize("dim", [0, -1])
def test_what_joins_without_a_tangent_joins_as_zero(op: Any, dim: int) -> None:
    args = ([t(2, 3), t(2, 3)], dim)
    stack = torch.randn(4, 2, 3, dtype=torch.float64)
    (moved,) = linear_map(op, args, {}, op(*args), (0, 1))({1: stack})
    expected = torch.stack([op([torch.zeros_like(row), row], dim) for row in stack])
    assert moved is not None and torch.equal(moved, expected)


def test_concatenation_passes_over_an_empty_vector() -> None:
    args = ([torch.zeros(0, dtype=torch.float64), t(2, 3)], -2)
    stack = torch.randn(4, 2, 3, dtype=torch.float64)
    (moved,) = linear_map(aten.cat.default, args, {}, torch.cat(*args), (1,))({1: stack})
    assert moved is not None and torch.equal(moved, stack)


ATTENTION: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.3},
    "biased": {"bias": True},
    "masked": {"mask": True},
    "grouped": {"enable_gqa": True},
    "dropped": {"dropout": True},
}


@pytest.mark.usefixtures("small_rows")
@pytest.mark.parametrize(
    "kind,varying",
    [
        *((kind, varying) for kind in ATTENTION for varying in [(0, 1, 2), (0,), (1,), (2,)]),
        ("biased", (3,)),
        ("biased", (0, 3)),
    ],
)
def test_attention(kind: str, varying: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    settings = dict(ATTENTION[kind])
    heads = 2 if settings.get("enable_gqa") else 4
    args: tuple[Any, ...] = (t(2, 4, 5, 3), t(2, heads, 5, 3), t(2, heads, 5, 3))
    if settings.pop("bias", False):
        args = (*args, t(2, 4, 5, 5))
    if settings.pop("mask", False):
        args = (*args, torch.ones(5, 5, dtype=torch.bool).tril())
    if settings.pop("dropout", False):
        settings["dropout_mask"] = attention_dropout_mask(args[0], args[1], 0.4)
    stacks = {p: torch.randn(2, *args[p].shape, dtype=torch.float64) for p in varying}
    value = attention(*args, **settings)
    (moved,) = linear_map(attention, args, settings, value, varying)(stacks)
    assert moved is not None
    for row in range(2):
        expected = jvp(attention, args, settings, {p: s[row] for p, s in stacks.items()})
        torch.testing.assert_close(moved[row], expected, rtol=1e-10, atol=1e-10)


def test_a_combination_takes_only_the_memory_that_it_may() -> None:
    torch.manual_seed(0)
    x, y, d = t(2, 3), t(2, 3), t(3)
    expected = x * d + 2 * y
    before = x.clone(), y.clone()
    combination = Combination({0: d, 1: 2.0})
    (apart,) = combination({0: x, 1: y})
    assert apart is not None and torch.allclose(apart, expected, rtol=RTOL)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    (inside,) = combination({0: x, 1: y}, {1})
    assert inside is y and torch.allclose(y, expected, rtol=RTOL) and torch.equal(x, before[0])


def test_what_is_not_by_element_has_no_diagonal() -> None:
    x, wide = t(2, 3), t(4, 2, 3)
    assert diagonal(aten.softmax.int, 0, x.softmax(1), (x, 1), {}) is None
    assert diagonal(aten.add.Tensor, 0, x + wide, (x, wide), {}) is None
    assert diagonal(aten.dropout.default, 0, x, (x, 0.5, True), {}) is None


def test_every_operation_that_is_linear_in_something_has_a_case() -> None:
    known = {name for name, each in TABLE.items() if each.linear or each.terms} | {*JACOBIANS}
    lists = {"aten.einsum"}  # its factors are in one, see below
    assert known - {operation_name(op) for op in OPERATIONS} == lists


EQUATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "bij,jk->bik": ((2, 3, 4), (4, 5)),
    "...i,oi->...o": ((2, 3, 4), (5, 4)),
    "bi,ij,bj->b": ((2, 3), (3, 4), (2, 4)),
    "bij,bjk": ((2, 3, 4), (2, 4, 5)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_is_linear_in_each_of_its_factors(equation: str) -> None:
    torch.manual_seed(0)
    op, factors = aten.einsum.default, [t(*shape) for shape in EQUATIONS[equation]]
    args = (equation, factors)
    value = op(*args)
    for place, factor in enumerate(factors):
        rows = t(3, *factor.shape)
        expected = torch.stack(
            [op(equation, [*factors[:place], row, *factors[place + 1 :]]) for row in rows]
        )
        (moved,) = linear_map(op, args, {}, value, (place + 1,))({place + 1: rows})
        torch.testing.assert_close(moved, expected, rtol=RTOL, atol=RTOL)
        single = tangent(op, args, {}, {place + 1: rows[0]})
        torch.testing.assert_close(single, expected[0], rtol=RTOL, atol=RTOL)


def test_the_quotient_that_is_rounded_is_not_linear() -> None:
    x, y = torch.tensor([3.7]).double(), torch.tensor([2.0]).double()
    mode = {"rounding_mode": "floor"}
    assert tangent(aten.div.Tensor_mode, (x, y), mode, {0: torch.ones_like(x)}).item() == 0.0
