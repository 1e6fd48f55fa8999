"""Operations and constructs, one at a time, at which a tangent could be lost without an error."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import CaptureWarning
from tests.cases import features, random_updates, tokens
from tests.rounding import assert_close, rounding, terms
from zoo.registry import architectures
from zoo.stages import run

MEASURED = (
    "gru-cell",  # no rule for vmap
    "lstm-2-layers",  # draws a mask, then has no forward derivative
    "siamese",  # an output of shape (batch,)
    "transformer-encoder",  # dropout of what was transposed
)
"""Architectures of the zoo that are taken through the stages which measure, beside the dozen that
are taken through all of them."""

STAGES = ("capture", "exact", "sampled", "auto")


@pytest.mark.parametrize("name", MEASURED)
def test_fslrs_are_those_of_an_independent_computation(name: str) -> None:
    results = run(architectures()[name], lambda stage: None)
    for stage, result in zip(STAGES, results, strict=False):
        assert (result.stage, result.status) == (stage, "passed"), result.message


class Op(nn.Module):
    """A layer, an operation with parameters of its own, and an activation."""

    def __init__(self, op: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.op = op
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self.first(x).tanh(), *self.weights)


OPERATIONS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "baddbmm": (
        lambda h, b, w: torch.baddbmm(
            b, h[:, None], w.expand(h.shape[0], 6, 5), beta=0.5, alpha=3.0
        ),
        ((5,), (1, 6, 5)),
    ),
    "baddbmm, of data": (
        lambda h, b: torch.baddbmm(b, h[:, :, None], h[:, None], alpha=2.0),
        ((6,),),
    ),
    "einsum": (lambda h, w, v: torch.einsum("bi,ij,jk->bk", h, w, v), ((6, 5), (5, 3))),
    "einsum, of data": (lambda h: torch.einsum("bi,bj->bij", h, h), ()),
    "a head by addmm": (
        lambda h, b, w: torch.addmm(b, h, w, beta=0.5, alpha=3.0),
        ((20,), (6, 20)),
    ),
    "a head by matmul": (lambda h, w: h @ w, ((6, 20),)),
    "rsub": (lambda h, b: torch.rsub(h, b, alpha=0.5), ((6,),)),
    "stack": (lambda h, b: torch.stack([h, b.expand(h.shape[0], -1)], 1), ((6,),)),
    "instance norm": (
        lambda h, g, b: F.instance_norm(h.view(-1, 2, 3), None, None, g, b, True),
        ((2,), (2,)),
    ),
    "repeat": (lambda h, w: F.linear(h, w.repeat(2, 1)), ((3, 6),)),
    "chunks": (
        lambda h, w: F.linear(h, w.chunk(2)[0]) * F.linear(h, w.chunk(2)[1]),
        ((6, 6),),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_exact_fslrs_of_operations_are_those_of_the_whole_function(name: str) -> None:
    op, shapes = OPERATIONS[name]
    model, x = Op(op, *shapes).double(), features(5, 4).double()
    assert capture(model, x).graph_module is not None
    updates = random_updates(model)
    found = flerm_fx.measure(model, updates, x, method="exact")
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for parameter, update in updates.items():

        def moved(value: Tensor, parameter: str = parameter) -> Tensor:
            return torch.func.functional_call(model, {**values, parameter: value}, (x,))  # type: ignore[no-any-return]

        _, tangent = torch.func.jvp(moved, (values[parameter],), (update,))
        expected = float(tangent.square().mean().sqrt())
        assert found[parameter].value == pytest.approx(expected, rel=1e-10)


@torch.library.custom_op("flerm_fx_tests::cubed", mutates_args=())
def cubed(x: Tensor) -> Tensor:
    return x**3


@cubed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return 3 * x**2 * gradient


cubed.register_autograd(_backward, setup_context=_save)


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient on as if it had not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Between(nn.Module):
    """Two linear layers and a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))  # type: ignore[no-any-return]


def between(function: Callable[[Tensor], Tensor]) -> Between:
    torch.manual_seed(0)
    return Between(function)


def test_an_operation_of_torch_library_keeps_its_tangent() -> None:
    model, x = between(cubed), features(6, 4)
    assert capture(model, x).graph_module is not None
    updates = random_updates(model)
    expected = flerm_fx.measure(between(lambda z: z**3), updates, x, method="exact")
    exact = flerm_fx.measure(model, updates, x, method="exact")
    sampled = flerm_fx.measure(model, updates, x, method="sampled", samples=8)
    for name, estimate in expected.items():
        # A central difference in float32: its step is eps ** (1/3), its error the square of that.
        assert exact[name].value == pytest.approx(estimate.value, rel=1e-3)
        # 18 numbers are drawn: an estimate that is low has a standard error that is low as well.
        relative = sampled[name].stderr / sampled[name].value
        assert sampled[name].value == pytest.approx(estimate.value, rel=4.5 * relative + 1e-3)


def test_a_custom_backward_pass_is_what_is_measured() -> None:
    model, x = between(StraightThrough.apply), features(6, 4)
    updates = random_updates(model)
    with pytest.warns(
        CaptureWarning,
        match=r"StraightThrough is a torch.autograd.Function.*test_operations.py:\d+\)",
    ):
        exact = flerm_fx.measure(model, updates, x, method="exact")
    with pytest.warns(CaptureWarning):
        sampled = flerm_fx.measure(model, updates, x)
    # Straight through: the first layer moves the output as if nothing had been rounded.
    expected = flerm_fx.measure(between(lambda z: z), updates, x, method="exact")
    near = rounding(2 * terms(model))  # forward and tangent
    for name in ("first.weight", "first.bias", "second.bias"):
        assert exact[name].value == pytest.approx(expected[name].value, rel=near)
    noise = near * max(estimate.value for estimate in exact.values())
    for name, estimate in exact.items():
        assert abs(sampled[name].value - estimate.value) <= 4.5 * sampled[name].stderr + noise


class Chooses(nn.Module):
    """Takes one of two layers by the values of its input, without a branch of Python."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, width)
        self.above = nn.Linear(width, width)
        self.below = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = torch.cond(
            hidden.sum() > 0, lambda h: self.above(h), lambda h: self.below(h), (hidden,)
        )
        return self.head(hidden)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # within torch.cond
@pytest.mark.slow
def test_torch_cond_is_measured_on_the_branch_that_is_taken() -> None:
    model, x = Chooses(5), features(6, 4)
    assert capture(model, x).graph_module is not None
    updates = random_updates(model)
    taken = "above" if model.first(x).sum().item() > 0 else "below"
    names = {"0": "first", "1": taken, "2": "head"}
    plain = nn.Sequential(*(model.get_submodule(name) for name in names.values()))
    renamed = {
        f"{i}.{p}": updates[f"{n}.{p}"] for i, n in names.items() for p in ("weight", "bias")
    }
    expected = flerm_fx.measure(plain, renamed, x, method="exact")
    exact = flerm_fx.measure(model, updates, x, method="exact")
    as_written: Any = torch.compile(model, backend="eager")
    within = {f"_orig_mod.{name}": update for name, update in updates.items()}
    found = flerm_fx.measure(as_written, within, x, method="exact")
    assert list(found.values()) == list(exact.values())
    sampled = flerm_fx.measure(model, updates, x, method="sampled", samples=6)
    # Forward and tangent, by differences over eps^(1/3) of the weights; a mean over all outputs.
    step, outputs = torch.finfo(torch.float32).eps ** (1 / 3), 6 * 3
    near = rounding(2 * terms(plain)) / step / math.sqrt(outputs)
    for name, estimate in expected.items():
        own = names[name[0]] + name[1:]
        assert exact[own].value == pytest.approx(estimate.value, rel=near)
        assert abs(sampled[own].value - estimate.value) <= 4.5 * sampled[own].stderr
    other = "below" if taken == "above" else "above"
    assert exact[f"{other}.weight"].value == sampled[f"{other}.weight"].value == 0.0
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    profile = flerm_fx.record(model, torch.optim.Adam(model.parameters()), x, y).profile
    compiled = flerm_fx.compile(Chooses(20), profile, method="exact")
    assert compiled.graph_module is not None
    assert [row.base for row in compiled.assignments] == [
        ((row.parameter, 1.0),) for row in compiled.assignments
    ]
    assert all(check.passed for check in compiled.check())


def test_a_module_called_like_an_attribute_of_graphs_is_named() -> None:
    model = nn.Module()
    model.code = nn.Linear(4, 3)
    model.forward = lambda x: model.code(x)  # type: ignore[method-assign]
    with pytest.warns(CaptureWarning, match="attribute 'code', and a graph module has another"):
        found = flerm_fx.measure(model, random_updates(model), features(5, 4), method="exact")
    assert found["code.weight"].value > 0


class Cache:
    """No tensor, and nothing that a graph could return."""


class WithCache(nn.Module):
    """Returns its logits and a cache, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 6)
        self.head = nn.Linear(6, 17)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        return {"logits": self.head(self.embedding(ids)), "cache": Cache()}


def test_a_cache_in_the_output_does_not_stand_in_the_way() -> None:
    model = WithCache()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured = capture(model, tokens())
    assert captured.graph_module is not None
    output = captured.graph_module(tokens())
    assert output["cache"] is None
    assert_close(output["logits"], model(tokens())["logits"], terms(model))


class Drops(nn.Module):
    """Skips blocks at random, by Python's own branches, so that no run reaches all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            if torch.rand(()) > 0.5:
                h = h + F.gelu(block(h))
        return self.head(h)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::flerm_fx.errors.CaptureWarning")
@pytest.mark.parametrize("seed", range(3))
def test_blocks_that_one_run_skips_keep_their_counterparts(seed: int) -> None:
    small, large = Drops(6), Drops(24)
    x, y = features(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    profile = flerm_fx.record(small, optimizer, x, y).profile
    torch.manual_seed(seed + 10)
    compiled = flerm_fx.compile(large, profile)
    for row in compiled.assignments:
        assert row.base == ((row.parameter, 1.0),)


def test_a_capture_serves_any_copy_of_its_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    x = features(5, 4)
    captured = capture(model, x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    bound = captured.bound(other)
    assert bound.graph_module is not None
    assert bound.probe_module is not None
    before = int(model[1].num_batches_tracked)  # type: ignore[arg-type]
    probed = bound.probe_module(*bound.flat(x))
    count = terms(other) + x.numel()  # a norm sums over the batch
    assert_close(bound.graph_module(x), copy.deepcopy(other)(x), count)
    assert_close(probed, copy.deepcopy(other)(x), count)
    assert int(other[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert int(model[1].num_batches_tracked) == before  # type: ignore[arg-type]
    assert {name: id(p) for name, p in bound.parameters.items()} == {
        name: id(p) for name, p in other.named_parameters()
    }
