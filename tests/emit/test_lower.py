"""Lowering: the function and its gradients stay, and the passes over large tensors go."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import flerm_fx
from flerm_fx.boundary.compat import pytree
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.lower import LowerScales, lowered
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.ops.scale import ScaleNodes, is_scale
from models.transformer import Transformer
from tests.cases import CASES, NORMS_SLOW, features, make, tokens
from tests.rounding import assert_close, terms

TOLERANCE = 1e-12
"""For float64; a few hundred roundings of 1e-16."""


def drawn(model: nn.Module, spread: float = 2.0) -> dict[str, float]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: math.exp(spread * float(torch.randn((), generator=generator)))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def both(
    model: nn.Module, inputs: object, scales: dict[str, float] | None = None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph with scale nodes and its lowered form, on the same parameters."""
    captured = capture(model, inputs)  # type: ignore[arg-type]
    assert captured.graph_module is not None, captured.reason
    nodes = ScaleNodes(drawn(model) if scales is None else scales)(captured.graph_module)
    return nodes.graph_module, lowered(nodes.graph_module)


def floating(output: object) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def loss_and_gradients(
    call: Callable[..., object], model: nn.Module, inputs: object
) -> tuple[Tensor, ...]:
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    torch.manual_seed(5)
    outputs = floating(call(*args))
    generator = torch.Generator().manual_seed(4)
    loss = sum((o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outputs)
    assert isinstance(loss, Tensor)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    outputs = [output.detach() for output in outputs]
    return (*outputs, *(torch.zeros(()) if g is None else g for g in gradients))


def assert_same(model: nn.Module, inputs: object, tolerance: float = TOLERANCE) -> fx.GraphModule:
    """The lowered graph, after its outputs and gradients were compared with the unlowered."""
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    nodes, low = both(model, inputs)
    expected = loss_and_gradients(nodes, model, inputs)
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(state[name])
    found = loss_and_gradients(low, model, inputs)
    largest = max(float(e.norm()) for e in expected)
    for e, f in zip(expected, found, strict=True):
        assert float((e - f).norm()) <= tolerance * max(float(e.norm()), 1e-3 * largest)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, after[name], rtol=1e-12, atol=1e-12)
    return low


def touched(graph_module: fx.GraphModule) -> int:
    """Elements that the scale nodes and the weighted sums of a graph pass over."""
    found = 0.0
    for node in graph_module.graph.nodes:
        if is_scale(node) or node.kwargs.get("alpha", 1) != 1:
            found += math.prod(
                size if isinstance(size, int) else size.node.hint for size in node.meta["val"].shape
            )
    return int(found)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NORMS_SLOW)
def test_outputs_gradients_and_buffers_of_whole_models(name: str, mode: str) -> None:
    model, inputs = make(name)
    model.double().train(mode == "train")
    if inputs.is_floating_point():
        inputs = inputs.double()
    assert_same(model, inputs)


class Op(nn.Module):
    """One operation on inputs and parameters."""

    def __init__(self, op: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.op = op
        generator = torch.Generator().manual_seed(2)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, *self.weights)


def shared_memory(x: Tensor, w: Tensor) -> Tensor:
    y = F.linear(x, w)
    view = y.view(-1, 2, 20)
    view.mul_(2.0)
    return y.relu_() + y


def written_input(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    h = x * 1.5
    half = h[:, :20]
    first = h.sum()
    h.mul_(3.0)
    return first + F.linear(half, w) + F.linear(h, v)


def lora(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w) + 2.0 * F.linear(F.linear(x, a), b)


def merged_lora(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w + b @ a)


def rms(x: Tensor, g: Tensor, w: Tensor) -> Tensor:
    h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return F.linear(g * h, w)


def normed_qkv(x: Tensor, g: Tensor, b: Tensor, *weights: Tensor) -> Tensor:
    h = F.layer_norm(x, (20,), g, b)
    q, k, v = (F.linear(h, w) for w in weights)
    return q * k + v


def two_embeddings(x: Tensor, e: Tensor) -> Tensor:
    index = (x[:, :3].abs() * 3).long()
    return F.embedding(index, e) + F.embedding(index + 1, e) + F.embedding(index + 2, e)


def attention(x: Tensor, *weights: Tensor) -> Tensor:
    """Queries, keys and values with biases, no scale given, an output with a bias, a residual."""
    q, k, v = (
        F.linear(x, w, b).view(x.shape[0], -1, 2, 20).transpose(1, 2)
        for w, b in zip(weights[:3], weights[3:6], strict=True)
    )
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    return x + F.linear(y.reshape(x.shape[0], -1, 40), *weights[6:])


def gated(x: Tensor, gate: Tensor, up: Tensor, b: Tensor, down: Tensor) -> Tensor:
    return x + F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up, b), down)


def relu(x: Tensor, up: Tensor, b: Tensor, down: Tensor, c: Tensor) -> Tensor:
    return x - 0.3 * F.linear(F.relu(F.linear(x, up, b)), down, c)


OPS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    "linear": (F.linear, ((40, 20), (40,)), (3, 20)),
    "linear, wide batch": (F.linear, ((4, 5), (4,)), (90, 5)),
    "linear to few": (F.linear, ((2, 40), (2,)), (3, 40)),
    "mm": (lambda x, w: x.mm(w), ((20, 40),), (3, 20)),
    "mm, from the left": (lambda x, w: w.mm(x.t()).t(), ((40, 20),), (3, 20)),
    "matmul": (lambda x, w: x @ w, ((20, 40),), (3, 2, 20)),
    "bmm": (lambda x, w: x.bmm(w.expand(x.shape[0], -1, -1)), ((20, 40),), (3, 2, 20)),
    "addmm": (lambda x, b, w: torch.addmm(b, x, w), ((40,), (20, 40)), (3, 20)),
    "addmm, weighted": (
        lambda x, b, w: torch.addmm(b, x, w, beta=0.5, alpha=3.0) + x.sum(),
        ((2,), (90, 2)),
        (3, 90),
    ),
    "baddbmm": (
        lambda x, b, w: torch.baddbmm(b, x.expand(2, -1, -1), w).sum(0),
        ((2, 1, 3), (2, 40, 3)),
        (4, 40),
    ),
    "einsum": (lambda x, w: torch.einsum("bi,ij->bj", x, w), ((20, 40),), (3, 20)),
    "conv1d": (F.conv1d, ((40, 20, 3), (40,)), (2, 20, 6)),
    "conv2d": (F.conv2d, ((40, 20, 3, 3), (40,)), (2, 20, 5, 5)),
    "conv3d": (F.conv3d, ((8, 4, 3, 3, 3), (8,)), (2, 4, 4, 4, 4)),
    "conv_transpose2d": (F.conv_transpose2d, ((20, 40, 3, 3), (40,)), (2, 20, 2, 2)),
    "square": (lambda x, w: x @ (w @ w.t()), ((20, 20),), (3, 20)),
    "views": (
        lambda x, w: x @ w.reshape(20, 2, 20)[:, 1].t() + F.linear(x, w.chunk(2, 1)[0]),
        ((20, 40),),
        (3, 20),
    ),
    "two uses": (lambda x, w: F.linear(x, w) @ w, ((40, 20),), (3, 20)),
    "a use that needs the weight": (
        lambda x, w: F.linear(x, w) + w.exp().sum(),
        ((40, 20),),
        (3, 20),
    ),
    "shared memory": (shared_memory, ((40, 20),), (3, 20)),
    "an input that is written to": (written_input, ((40, 20), (40, 20)), (3, 20)),
    "lora": (lora, ((40, 20), (2, 20), (40, 2)), (3, 20)),
    "merged lora": (merged_lora, ((40, 20), (2, 20), (40, 2)), (3, 20)),
    "rms norm by hand": (rms, ((20,), (40, 20)), (3, 20)),
    "rms norm": (
        lambda x, g, w: F.linear(F.rms_norm(x, (20,), g), w),
        ((20,), (40, 20)),
        (3, 20),
    ),
    "group norm": (
        lambda x, g, b, w: F.conv1d(F.group_norm(x, 4, g, b), w),
        ((20,), (20,), (40, 20, 3)),
        (2, 20, 6),
    ),
    "instance norm": (
        lambda x, g, b, w: F.conv1d(F.instance_norm(x, None, None, g, b, True), w),
        ((20,), (20,), (40, 20, 3)),
        (2, 20, 6),
    ),
    "repeat": (lambda x, w: F.linear(x, w.repeat(2, 1)), ((40, 20),), (3, 20)),
    "batch norm": (
        lambda x, g, b, w: F.linear(F.batch_norm(x, None, None, g, b, True), w),
        ((20,), (20,), (40, 20)),
        (3, 20),
    ),
    "q, k, v behind a norm": (normed_qkv, ((20,), (20,), *((40, 20),) * 3), (3, 20)),
    "attention": (
        attention,
        (*((40, 20),) * 3, *((40,),) * 3, (20, 40), (20,)),
        (2, 3, 20),
    ),
    "gated": (gated, ((40, 20), (40, 20), (40,), (20, 40)), (3, 20)),
    "relu": (relu, ((40, 20), (40,), (20, 40), (20,)), (3, 20)),
    "dropout": (
        lambda x, w, v: x @ v.t() + F.dropout(F.linear(x, w), 0.5),
        ((40, 20),) * 2,
        (3, 20),
    ),
    "embeddings": (two_embeddings, ((60, 4),), (3, 20)),
    "division": (lambda x, w: F.linear(x, w) / 3.0, ((40, 20),), (3, 20)),
    "a sum with itself": (lambda x, w: (y := F.linear(x, w)) + y, ((40, 20),), (3, 20)),
    "a broadcast sum": (lambda x, w: x[:, :1] + F.linear(x.sum(0), w), ((40, 20),), (3, 20)),
    "a weighted sum": (
        lambda x, w, v: torch.add(F.linear(x, w), F.linear(x, v), alpha=-0.3),
        ((40, 20),) * 2,
        (3, 20),
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_outputs_and_gradients_of_operations(name: str) -> None:
    op, shapes, inputs = OPS[name]
    assert_same(Op(op, *shapes).double(), features(*inputs).double())


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(6, 5, 2, batch_first=True),
        nn.TransformerEncoderLayer(16, 4, 20, 0.0, batch_first=True),
    ],
    ids=["lstm", "attention"],
)
def test_modules_that_keep_some_of_their_nodes(model: nn.Module) -> None:
    width = 6 if isinstance(model, nn.LSTM) else 16
    assert_same(model.double(), features(3, 4, width).double())


def test_second_derivatives() -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.LayerNorm(30), nn.Linear(30, 9)).double()
    x = features(2, 6).double()
    products = []
    for graph_module in both(model, x):
        p = list(model.parameters())
        gradients = torch.autograd.grad(graph_module(x).square().sum(), p, create_graph=True)
        products.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), p))
    for expected, found in zip(*products, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11 * float(expected.norm()))


def test_a_scale_of_one_needs_no_node() -> None:
    model, x = make("pre-norm")
    nodes, low = both(model, x, {})
    assert any(map(is_scale, nodes.graph.nodes))
    assert not any(map(is_scale, low.graph.nodes))
    assert torch.equal(low(x), model(x))


def test_few_tokens_scale_no_matrix_and_no_table() -> None:
    """GPT-like: norms take their readers' scalars, sums those of what they add."""
    torch.manual_seed(0)
    width, vocabulary = 64, 500

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(vocabulary, width)
            self.norm = nn.LayerNorm(width)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)
            self.last = nn.LayerNorm(width)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.table(tokens)
            x = x + self.down(F.gelu(self.up(self.norm(x))))
            return F.linear(self.last(x), self.table.weight)

    model = Block().double()
    ids = torch.randint(vocabulary, (2, 4))
    low = assert_same(model, ids)
    small = 4 * width + 2 * width + 2 * width + width  # biases and norms
    rows = 2 * 4 * width
    assert touched(low) == small + 2 * rows  # the rows of the table, the sum
    nodes, _ = both(model, ids)
    assert touched(nodes) == sum(p.numel() for p in model.parameters())


def test_matrices_of_a_transformer_cost_nothing() -> None:
    """Scores take the scalars of queries and keys, the branch's own number all others."""
    torch.manual_seed(0)
    model = Transformer(vocab=9, width=16, depth=1, context=4, heads=2)
    _, low = both(model, torch.randint(9, (3, 4)))
    matrices = {n for n, p in model.blocks.named_parameters(prefix="blocks") if p.ndim == 2}
    assert len(matrices) == 6
    kept = {node.meta.get("parameter") for node in low.graph.nodes if is_scale(node)}
    assert not kept & matrices
    assert all(math.prod(n.meta["val"].shape) <= 9 * 16 for n in low.graph.nodes if is_scale(n))


def test_equal_scales_share_a_scaled_input() -> None:
    model = Op(normed_qkv, (20,), (20,), *((40, 20),) * 3).double()
    x = features(3, 20).double()
    scales = {f"weights.{i}": 3.0 for i in range(2, 5)}
    low = both(model, x, scales)[1]
    (norm,) = low.graph.find_nodes(op="call_function", target=torch.ops.aten.layer_norm.default)
    assert {node.args[1] for node in low.graph.nodes if is_scale(node)} == {3.0}
    assert {node.name for node in low.graph.nodes if is_scale(node)} == {
        argument.name for argument in norm.args[2:4]
    }


@pytest.mark.slow
def test_it_never_costs_more_elements_than_the_nodes() -> None:
    for name in CASES:
        model, inputs = make(name)
        nodes, low = both(model, inputs)
        assert touched(low) <= touched(nodes), name


def test_what_is_read_keeps_its_nodes_and_shares_its_parameters() -> None:
    model, x = make("tied")
    compiled = ScaledModel(copy.deepcopy(model), drawn(model))
    graph_module = compiled.graph_for((x,), {})
    assert graph_module is not None
    names = [node.meta["parameter"] for node in graph_module.graph.nodes if is_scale(node)]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    low = lowered(graph_module)
    for name, parameter in low.named_parameters():
        assert parameter is compiled.get_parameter(name)
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in compiled.parameters())


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def exact_and_errors(
    model: nn.Module, x: Tensor, context: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """Relative errors of outputs and gradients with scale nodes and lowered, against float64."""
    nodes, low = both(model, x)
    found = []
    for graph_module in (nodes, low):
        with context():  # type: ignore[attr-defined]
            found.append(loss_and_gradients(graph_module, model, x))
    double = copy.deepcopy(model).double()
    wide = x.double() if x.is_floating_point() else x
    exact = loss_and_gradients(both(double, wide)[0], double, wide)
    assert [f.dtype for f in found[0]] == [f.dtype for f in found[1]]
    errors = [
        [error(f, e) for f, e in zip(each, exact, strict=True) if float(e.norm())] for each in found
    ]
    return errors[0], errors[1]


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
def test_low_precision_is_no_worse(how: str) -> None:
    """Errors against float64 in the mean of the logarithm: at most a quarter more."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 8)
    )
    x = features(4, 64)
    if how == "autocast":
        unlowered, low = exact_and_errors(model, x, lambda: torch.autocast("cpu", torch.bfloat16))
    else:
        dtype = getattr(torch, how)
        model, x = model.to(dtype), x.to(dtype)
        unlowered, low = exact_and_errors(model, x, lambda: torch.autocast("cpu", enabled=False))
    assert all(map(math.isfinite, low))
    ratio = sum(math.log(b / a) for a, b in zip(unlowered, low, strict=True)) / len(low)
    assert ratio < math.log(1.25)


def test_float16_keeps_every_node_but_ones() -> None:
    model = nn.Linear(64, 64).half()
    x = features(2, 64).half()
    nodes, low = both(model, x, {"weight": 2.0**-14})
    kept = [node.meta["parameter"] for node in low.graph.nodes if is_scale(node)]
    assert kept == ["weight"]
    assert torch.equal(nodes(x), low(x))


def test_autocast_to_float16_runs_the_nodes() -> None:
    """Stored weights of 2^20 have no float16, the effective ones have."""
    model = nn.Linear(64, 8, bias=False)
    compiled = ScaledModel(copy.deepcopy(model), {"weight": 2.0**-20})
    x = features(2, 64)
    with torch.autocast("cpu", torch.float16):
        found = compiled(x)
        assert torch.equal(found, model(x))
    assert bool(found.isfinite().all())


def test_scales_beyond_the_range_of_what_lies_between_stay() -> None:
    model = nn.Linear(64, 64, bias=False)
    low = both(model, features(2, 64), {"weight": 2.0**-40})[1]
    (node,) = (node for node in low.graph.nodes if is_scale(node))
    assert node.meta["parameter"] == "weight"


def test_an_emitted_model_compiles() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.Linear(64, 32))
    x = features(4, 16)
    compiled = ScaledModel(copy.deepcopy(model), drawn(model))
    expected = loss_and_gradients(compiled, compiled, x)
    found = loss_and_gradients(torch.compile(compiled, backend="aot_eager"), compiled, x)
    count = 2 * terms(model) + x.numel()  # forward, backward and the sum over the batch
    for e, f in zip(expected, found, strict=True):
        assert_close(f, e, count)


def test_check_measures_what_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering that gets a factor wrong is found by the compiled model's own check."""
    torch.manual_seed(0)
    small, large = (
        nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 3))
        for width in (8, 64)
    )
    x, y = features(16, 4), tokens(16, 1, 3)[:, 0]
    profile = flerm_fx.record(small, torch.optim.SGD(small.parameters(), 1e-3), x, y).profile
    compiled = flerm_fx.compile(large, profile, method="exact")
    assert all(check.passed for check in compiled.check())

    def wrong(graph_module: fx.GraphModule) -> fx.GraphModule:
        low = lowered(graph_module)
        node = next(node for node in low.graph.nodes if is_scale(node))
        node.args = (node.args[0], 2 * node.args[1])
        low.recompile()
        return low

    monkeypatch.setattr("flerm_fx.emit.scaled.lowered", wrong)
    assert not all(check.passed for check in compiled.check())


def test_the_pass_is_idempotent() -> None:
    model, x = make("pre-norm")
    low = both(model, x)[1]
    before = low.code
    LowerScales()(low)
    assert low.code == before
