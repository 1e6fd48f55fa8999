import functools
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from flerm_fx.align.aligning import Match, align, unanswered
from flerm_fx.align.parameter_graph import (
    capture_graph,
    chain,
    from_json,
    parameter_graph,
    parameters,
    to_json,
)
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import InputError, MatchError
from models.convnet import ConvNet
from models.resmlp import ResMLP
from models.transformer import Transformer
from tests.cases import features, tokens

DEPTHS = [(2, 2), (2, 4), (2, 8), (4, 2), (2, 3), (1, 4), (3, 1), (5, 3)]
ATEN = torch.ops.aten


def assert_conserved(matches: dict[str, Match], base: nx.DiGraph) -> None:
    """Every used base parameter gives all its mass away, and no more."""
    given_away: Counter[str] = Counter()
    for match in matches.values():
        for name, share in match.base:
            assert share > 0
            given_away[name] += share  # type: ignore[assignment]
    used = {name for name in parameters(base) if base.nodes[name]["op"]}
    assert given_away.keys() == used
    assert all(abs(mass - 1) < 1e-9 for mass in given_away.values())


def overlap(i: int, n: int, j: int, m: int) -> float:
    return max(0.0, n * (min((i + 1) / n, (j + 1) / m) - max(i / n, j / m)))


def assert_in_place(base: nx.DiGraph, target: nx.DiGraph, block: str = r"blocks\.(\d+)\.") -> None:
    """Each parameter answers to its own role: outside of blocks by itself, in them by overlap."""
    matches = align(base, target)
    assert list(matches) == parameters(target)
    assert_conserved(matches, base)
    n, m = (
        1 + max(int(found[1]) for name in parameters(pg) if (found := re.search(block, name)))
        for pg in (base, target)
    )
    for name, match in matches.items():
        found = re.search(block, name)
        if found is None:
            assert match == Match(name, ((name, 1.0),))
            continue
        shares = {
            name[: found.start(1)] + str(i) + name[found.end(1) :]: overlap(i, n, int(found[1]), m)
            for i in range(n)
        }
        assert dict(match.base) == pytest.approx({k: s for k, s in shares.items() if s > 1e-12})


# Graphs written by hand, so that many can be tried in little time.


class Net:
    """Writes a captured graph; ``rename`` and ``shuffle`` disguise it."""

    def __init__(self, rename: Callable[[str], str] = str) -> None:
        self.graph = fx.Graph()
        self.rename = rename
        self.input = self.graph.placeholder("x")
        self.weights: dict[str, fx.Node] = {}

    def weight(self, name: str, rank: int) -> fx.Node:
        name = self.rename(name)
        if name not in self.weights:
            node = self.weights[name] = self.graph.create_node("get_attr", name)
            node.meta = {"parameter": name, "val": torch.empty((1,) * rank)}
        return self.weights[name]

    def call(self, op: Any, *args: Any, name: str = "", module: str = "Block") -> fx.Node:
        node = self.graph.call_function(op, args)
        path = self.rename(f"{name}.weight").rpartition(".")[0]
        node.meta["nn_module_stack"] = {"m": (path, f"torch.nn.{module}")}
        return node

    def layer(self, kind: str, x: fx.Node, name: str) -> fx.Node:
        if kind == "linear":
            w, b = self.weight(f"{name}.weight", 2), self.weight(f"{name}.bias", 1)
            return self.call(ATEN.linear.default, x, w, b, name=name, module="Linear")
        if kind == "norm":
            w, b = self.weight(f"{name}.weight", 1), self.weight(f"{name}.bias", 1)
            return self.call(ATEN.layer_norm.default, x, [4], w, b, name=name, module="LayerNorm")
        if kind == "attention":
            q, k, v = (
                self.call(
                    ATEN.linear.default,
                    x,
                    self.weight(f"{name}.{role}.weight", 2),
                    name=f"{name}.{role}",
                    module="Linear",
                )
                for role in "qkv"
            )
            mixed = self.call(ATEN.scaled_dot_product_attention.default, q, k, v)
            return self.layer("linear", mixed, f"{name}.o")
        if kind == "latent":  # keys and values from a bottleneck, a part of it turned by rotary
            q, c = (self.layer("linear", x, f"{name}.{role}") for role in ("q", "down"))
            kv = self.layer("linear", self.layer("norm", c, f"{name}.norm"), f"{name}.up")
            k = self.call(ATEN.cat.default, [kv, self.call(ATEN.mul.Tensor, c, c)])
            mixed = self.call(ATEN.scaled_dot_product_attention.default, q, k, kv)
            return self.layer("linear", mixed, f"{name}.o")
        if kind == "factor":
            return self.call(ATEN.mul.Tensor, x, self.weight(f"{name}.factor", 1), name=name)
        assert kind == "gated"
        gate, up = (self.layer("linear", x, f"{name}.{role}") for role in ("gate", "up"))
        gate = self.call(ATEN.silu.default, gate)
        return self.layer("linear", self.call(ATEN.mul.Tensor, gate, up), f"{name}.down")

    def residual(self, kinds: list[str], x: fx.Node, name: str) -> fx.Node:
        h = x
        for index, kind in enumerate(kinds):
            h = self.layer(kind, h, f"{name}.{index}")
        return self.call(ATEN.add.Tensor, x, h)

    def finish(self, x: fx.Node, shuffle: random.Random | None = None) -> nx.DiGraph:
        self.graph.output((x,))
        if shuffle is not None:  # the order of registration
            weights = list(self.graph.find_nodes(op="get_attr"))
            shuffle.shuffle(weights)
            for node in weights:
                self.input.append(node)
        return parameter_graph(self.graph)


Body = list[list[str]]


def network(
    body: Body,
    depth: int,
    *,
    post: bool = False,
    norms: tuple[bool, bool] = (False, True),
    rename: Callable[[str], str] = str,
    shuffle: random.Random | None = None,
) -> nx.DiGraph:
    """Embedding, norm, blocks of residual branches (with a norm after each), norm, head."""
    net = Net(rename)
    x = net.layer("linear", net.input, "embed")
    x = net.layer("norm", x, "first") if norms[0] else x
    for index, branch in itertools.product(range(depth), range(len(body))):
        x = net.residual(body[branch], x, f"blocks.{index}.{branch}")
        x = net.layer("norm", x, f"blocks.{index}.{branch}.norm") if post else x
    x = net.layer("norm", x, "last") if norms[1] else x
    return net.finish(net.layer("linear", x, "head"), shuffle)


kinds = st.sampled_from(["linear", "norm", "attention", "latent", "factor", "gated"])
branches = st.lists(kinds, min_size=1, max_size=4)
# Branches that differ, so that the blocks are not repeats of something smaller.
bodies = st.lists(branches, min_size=1, max_size=3, unique_by=lambda b: tuple(dict.fromkeys(b)))
small = st.integers(1, 7)
booleans = st.booleans()


@settings(max_examples=60, deadline=None)
@given(bodies, small, small, booleans, st.tuples(booleans, booleans))
def test_random_blocks(body: Body, n: int, m: int, post: bool, norms: tuple[bool, bool]) -> None:
    base, target = (network(body, depth, post=post, norms=norms) for depth in (n, m))
    assert_in_place(base, target)


@settings(max_examples=20, deadline=None)
@given(bodies, small, small, booleans, st.tuples(booleans, booleans), st.randoms())
def test_names_wrapping_and_registration_change_nothing(
    body: Body, n: int, m: int, post: bool, norms: tuple[bool, bool], rng: random.Random
) -> None:
    secret: dict[str, str] = {}

    def flat(name: str) -> str:
        return secret.setdefault(name, f"p{len(secret)}")

    base = network(body, n, post=post, norms=norms)
    plain = align(base, network(body, m, post=post, norms=norms))
    wrapped = align(base, network(body, m, post=post, norms=norms, rename="module.".__add__))
    assert {f"module.{name}": match.base for name, match in plain.items()} == {
        name: match.base for name, match in wrapped.items()
    }
    other = align(base, network(body, m, post=post, norms=norms, rename=flat, shuffle=rng))
    in_doubt = any(match.doubt for match in other.values())  # without a tree, flow may not decide
    assert in_doubt or {flat(name): match.base for name, match in plain.items()} == {
        name: match.base for name, match in other.items()
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["linear", "norm", "factor"]), min_size=1, max_size=3), small, small
)
def test_random_plain_chains(body: list[str], n: int, m: int) -> None:
    graphs = []
    for depth in (n, m):
        net = Net()
        x = net.layer("linear", net.input, "embed")
        for index, (at, kind) in itertools.product(range(depth), enumerate(body)):
            x = net.layer(kind, x, f"blocks.{index}.{at}")
        graphs.append(net.finish(net.layer("linear", x, "head")))
    base, target = graphs
    if len(set(body)) == len(body):
        assert_in_place(base, target)
    else:
        matches = align(base, target)
        assert_conserved(matches, base)
        assert matches["embed.weight"].base == (("embed.weight", 1.0),)


@settings(max_examples=40, deadline=None)
@given(st.lists(small, min_size=1, max_size=4), st.data())
def test_stages(base_counts: list[int], data: Any) -> None:
    counts = [base_counts, [data.draw(small) for _ in base_counts]]

    def stages(numbers: list[int]) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "embed")
        for stage, number in enumerate(numbers):
            x = net.layer("norm", net.layer("linear", x, f"s{stage}.down"), f"s{stage}.norm")
            for index in range(number):
                x = net.residual(["factor", "linear"], x, f"s{stage}.blocks.{index}")
        return net.finish(net.layer("factor", x, "head"))

    base, target = (stages(numbers) for numbers in counts)
    matches = align(base, target)
    assert_conserved(matches, base)
    for name, match in matches.items():
        assert {re.sub(r"blocks\.\d+", "", other) for other, _ in match.base} == {
            re.sub(r"blocks\.\d+", "", name)
        }


def test_alternating_blocks_and_inner_repeats() -> None:
    def alternating(periods: int, inner: int) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "embed")
        for index in range(periods):
            for local in range(inner):
                x = net.residual(["norm", "attention"], x, f"blocks.{index}.local.{local}")
            x = net.residual(["norm", "gated"], x, f"blocks.{index}.global")
        return net.finish(net.layer("linear", x, "head"))

    assert_in_place(alternating(2, 3), alternating(4, 3))
    matches = align(alternating(2, 1), alternating(2, 3))
    name = "blocks.1.local.{}.0.weight"
    assert matches[name.format(2)].base == ((name.format(0), pytest.approx(1 / 3)),)
    matches = align(alternating(1, 2), alternating(4, 3))
    assert dict(matches["blocks.3.local.1.0.weight"].base) == pytest.approx(
        {"blocks.0.local.0.0.weight": 1 / 12, "blocks.0.local.1.0.weight": 1 / 12}
    )


def test_encoder_and_decoder_of_other_depths() -> None:
    def translator(encoder: int, decoder: int) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "source")
        for index in range(encoder):
            x = net.residual(["norm", "attention"], x, f"encoder.{index}.attention")
            x = net.residual(["norm", "linear", "linear"], x, f"encoder.{index}.mlp")
        source = net.layer("norm", x, "encoder_norm")
        x = net.layer("linear", net.input, "embed")
        for index in range(decoder):
            name = f"decoder.{index}"
            x = net.residual(["norm", "attention"], x, f"{name}.attention")
            h = net.layer("norm", x, f"{name}.cross.norm")
            q = net.layer("linear", h, f"{name}.cross.q")
            k, v = (net.layer("linear", source, f"{name}.cross.{role}") for role in "kv")
            h = net.call(ATEN.scaled_dot_product_attention.default, q, k, v)
            x = net.call(ATEN.add.Tensor, x, net.layer("linear", h, f"{name}.cross.o"))
            x = net.residual(["norm", "linear", "linear"], x, f"{name}.mlp")
        return net.finish(net.layer("linear", net.layer("norm", x, "norm"), "head"))

    for n, m in DEPTHS:
        base, target = translator(n, 2), translator(m, 2)
        assert_in_place(base, target, block=r"encoder\.(\d+)\.")
        base, target = translator(2, n), translator(2, m)
        assert_in_place(base, target, block=r"decoder\.(\d+)\.")
    assert_conserved(align(translator(1, 3), translator(4, 2)), translator(1, 3))


def test_parameter_shared_by_all_blocks() -> None:
    def shared(depth: int) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "embed")
        for index in range(depth):
            h = net.layer("norm", x, f"blocks.{index}.norm")
            x = net.call(ATEN.add.Tensor, x, net.layer("linear", h, "shared"))
        return net.finish(net.layer("linear", x, "head"))

    for n, m in DEPTHS:
        assert_in_place(shared(n), shared(m))


def test_which_norm_belongs_to_the_blocks() -> None:
    """``embed (linear norm)* linear head``: only modules tell, and without them, the beginning."""

    def layers(depth: int, cut: int, flat: bool) -> nx.DiGraph:
        net = Net(rename=(lambda name: name.replace(".", "_") + ".weight") if flat else str)
        kinds = ["linear", "norm"]
        x = net.layer("factor", net.input, "embed")
        for position in range(cut, cut + 2 * depth):
            x = net.layer(kinds[position % 2], x, f"blocks.{(position - cut) // 2}.{position % 2}")
        x = net.layer(kinds[cut % 2], x, "last")
        return net.finish(net.layer("factor", x, "head"))

    for cut in (0, 1):
        for n, m in DEPTHS:
            if min(n, m) > 1 or n == m:
                assert_in_place(layers(n, cut, False), layers(m, cut, False))
        assert_conserved(align(layers(2, cut, True), layers(3, cut, False)), layers(2, cut, True))


@pytest.mark.parametrize("depths", [(2, 4), (3, 2), (1, 3)])
def test_attention_to_a_bottleneck_that_forks_again(depths: tuple[int, int]) -> None:
    body = [["norm", "latent"], ["norm", "gated"]]
    assert_in_place(*(network(body, depth) for depth in depths))


def with_global_skip(depth: int) -> nx.DiGraph:
    """Every block reads the embedding again, beside the stream."""
    net = Net()
    x = first = net.layer("linear", net.input, "embed")
    for index in range(depth):
        x = net.residual(["norm", "gated"], x, f"blocks.{index}.plain")
        both = net.call(ATEN.cat.default, [x, first], -1)
        side = net.layer(
            "linear", net.layer("norm", both, f"blocks.{index}.n"), f"blocks.{index}.s"
        )
        x = net.call(ATEN.add.Tensor, x, side)
    return net.finish(net.layer("linear", x, "head"))


@pytest.mark.parametrize("depths", [(2, 4), (3, 2), (1, 3), (2, 2)])
def test_what_all_blocks_read_beside_the_stream(depths: tuple[int, int]) -> None:
    assert_in_place(*map(with_global_skip, depths))


# The models of the project, and others, as exported.


def captured(model: nn.Module, inputs: Any) -> nx.DiGraph:
    return capture_graph(capture(model, inputs))


@functools.cache
def transformer(depth: int, norm: str = "pre", affine: bool = True, tied: bool = False) -> Any:
    """The graph of a model as wide as deep, captured once and frozen, for all tests to share."""
    model: Any = Transformer(
        vocab=17,
        width=16 * depth,
        heads=2,
        context=8,
        depth=depth,
        norm=norm,
        affine=affine,
        tied=tied,
    )
    return nx.freeze(captured(model, tokens()))


@pytest.mark.parametrize("norm", ["pre", "post", "post-pre-residual"])
@pytest.mark.parametrize("options", [{}, {"affine": False, "tied": True}], ids=["affine", "tied"])
@pytest.mark.parametrize(
    "depths",
    [
        pytest.param([(2, 2), (2, 3), (3, 2)], id="two-and-three"),
        pytest.param([d for d in DEPTHS if d != (5, 3)], id="all", marks=pytest.mark.slow),
    ],
)
def test_transformers(norm: str, options: dict[str, bool], depths: list[tuple[int, int]]) -> None:
    for n, m in depths:
        assert_in_place(transformer(n, norm, **options), transformer(m, norm, **options))


def test_resmlp_in_width_depth_and_block_size() -> None:
    def resmlp(**options: Any) -> nx.DiGraph:
        return captured(ResMLP(in_features=12, out_features=5, width=8, **options), features(4, 12))

    base = resmlp(depth=2, block_size=2)
    assert_in_place(base, resmlp(depth=2, block_size=2, width_multiplier=3, init_scale=2.0))
    assert_in_place(base, resmlp(depth=3, block_size=2))
    assert_in_place(base, resmlp(depth=1, block_size=2))
    matches = align(base, resmlp(depth=4, block_size=4))
    assert_conserved(matches, base)
    (answer,) = matches["blocks.3.layers.1.weight"].base
    assert answer == ("blocks.1.layers.0.weight", pytest.approx(1 / 4))


def test_convnet_of_another_width() -> None:
    base = captured(ConvNet(), features(5, 3, 16, 16))
    target = captured(ConvNet(width_multiplier=2), features(5, 3, 16, 16))
    assert {name: match.base for name, match in align(base, target).items()} == {
        name: ((name, 1.0),) for name in parameters(target)
    }


class Attention(nn.Module):
    """Separate projections, registered and executed in the order of ``roles``."""

    def __init__(self, roles: str, width: int = 8) -> None:
        super().__init__()
        self.roles = roles
        for role in roles:
            setattr(self, role, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = {role: getattr(self, role)(x) for role in self.roles}
        return nn.functional.scaled_dot_product_attention(y["q"], y["k"], y["v"])


def test_roles_are_told_by_structure_in_any_order() -> None:
    def stack(roles: str, depth: int) -> nx.DiGraph:
        blocks = nn.ModuleDict({"blocks": nn.Sequential(*(Attention(roles) for _ in range(depth)))})
        return captured(nn.Sequential(nn.Linear(8, 8), blocks["blocks"]), features(2, 3, 8))

    base = stack("qkv", 2)
    for roles, depth in (("vqk", 2), ("kvq", 4), ("kvq", 1)):
        matches = align(base, stack(roles, depth))
        for name, match in matches.items():
            last = name.split(".")[-2:]
            assert {tuple(other.split(".")[-2:]) for other, _ in match.base} == {tuple(last)}


def test_symmetric_branches_pair_as_a_whole() -> None:
    def twins(order: list[int]) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "embed")
        first = [net.layer("linear", x, f"{i}.first") for i in (0, 1)]
        second = {i: net.layer("linear", first[i], f"{i}.second") for i in order}
        return net.finish(net.call(ATEN.maximum.default, second[0], second[1]))

    matches = align(twins([0, 1]), twins([1, 0]))
    assert all(match.base == ((name, 1.0),) for name, match in matches.items())


def test_models_without_a_graph_and_exported_ones_match() -> None:
    def chained(depth: int) -> nx.DiGraph:
        entries = []
        for name in ["tokens", *(f"blocks.{i}" for i in range(depth)), "norm", "logits"]:
            kind = {"tokens": "Embedding", "norm": "LayerNorm"}.get(name, "Linear")
            parts = (
                [
                    *[("norms.0", "LayerNorm"), ("qkv", "Linear"), ("out", "Linear")],
                    *[("norms.1", "LayerNorm"), ("mlp.up", "Linear"), ("mlp.down", "Linear")],
                ]
                if "blocks" in name
                else [("", kind)]
            )
            for part, what in parts:
                module = f"{name}.{part}".rstrip(".")
                entries.append((f"{module}.weight", what, "weight", 1 if "Norm" in what else 2))
        return chain(entries)

    for n, m in DEPTHS:
        assert_in_place(chained(n), chained(m))
    model = transformer(2)
    used = [(name, model.nodes[name]) for name in parameters(model)]
    base = chain((name, a["kind"], a["slot"], a["rank"]) for name, a in used)
    assert_in_place(base, model)
    assert_in_place(base, transformer(4))


def test_profile_keeps_what_matching_needs() -> None:
    base, target = network([["norm", "attention"]], 2), network([["norm", "attention"]], 3)
    assert align(from_json(to_json(base)), target) == align(base, target)


def test_unused_parameter_answers_to_nothing() -> None:
    net = Net()
    net.weight("unused", 1)
    x = net.layer("linear", net.input, "fc")
    matches = align(network([["linear"]], 1), network([["linear"]], 1))
    assert len(matches) == 8
    matches = align(pg := net.finish(x), pg)
    assert matches["unused"] == Match("unused", ())


# Other numbers of blocks than whole repeats of one.


def mass(matches: dict[str, Match], pattern: str) -> dict[str, dict[str, float]]:
    """Matches of the targets whose names match a pattern."""
    return {
        name: {base: round(share, 6) for base, share in match.base}
        for name, match in matches.items()
        if re.search(pattern, name)
    }


def unet(levels: int, resample: bool) -> nx.DiGraph:
    """Each level around the next; ``resample`` has weights of its own between levels."""
    net = Net()

    def inside(x: fx.Node, level: int) -> fx.Node:
        x = net.layer("norm", net.layer("linear", x, f"levels.{level}.down"), f"levels.{level}.n")
        if level < levels:
            h = net.layer("factor", x, f"to.{level}") if resample else x
            h = inside(net.call(ATEN.relu.default, h), level + 1)
            h = net.layer("factor", h, f"from.{level}") if resample else h
            x = net.call(ATEN.cat.default, [h, x], 1)
            x = net.layer("linear", x, f"levels.{level}.up")
        return x

    x = inside(net.layer("linear", net.input, "stem"), 0)
    return net.finish(net.layer("factor", x, "head"))


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 1), (1, 4), (2, 3), (3, 2), (2, 4), (4, 2)])
def test_unets_of_other_depths(resample: bool, n: int, m: int) -> None:
    base, target = unet(n, resample), unet(m, resample)
    matches = align(base, target)
    assert_conserved(matches, base)
    for level in range(m):
        expected = {
            f"levels.{i}.up.weight": round(overlap(i, n, level, m), 6)
            for i in range(n)
            if overlap(i, n, level, m)
        }
        assert mass(matches, rf"^levels\.{level}\.up\.weight$") == {
            f"levels.{level}.up.weight": expected
        }
        if resample:
            between = {name.replace("levels", "to"): share for name, share in expected.items()}
            renamed = {name.replace(".up.weight", ".factor"): s for name, s in between.items()}
            assert mass(matches, rf"^to\.{level}\.") == {f"to.{level}.factor": renamed}
    innermost = f"levels.{m}.n.weight"
    assert mass(matches, rf"^{innermost}$") == {innermost: {f"levels.{n}.n.weight": 1.0}}


def staged(blocks: list[int]) -> nx.DiGraph:
    """A ResNet: the first block of each stage but the first has a shortcut of its own."""
    net = Net()
    x = net.layer("linear", net.input, "stem")
    for stage, number in enumerate(blocks):
        for index in range(number):
            name = f"stages.{stage}.{index}"
            shortcut = net.layer("linear", x, f"{name}.shortcut") if stage and not index else x
            h = net.layer("linear", net.layer("norm", x, f"{name}.norm"), f"{name}.fc")
            x = net.call(ATEN.add.Tensor, h, shortcut)
    return net.finish(net.layer("factor", x, "head"))


def test_one_block_a_stage_and_several() -> None:
    base, target = staged([1, 1, 1, 1]), staged([2, 2, 3, 2])
    matches = align(base, target)
    assert_conserved(matches, base)
    assert mass(matches, r"stages\.2\..\.fc\.weight") == {
        f"stages.2.{index}.fc.weight": {"stages.2.0.fc.weight": pytest.approx(1 / 3, abs=1e-6)}
        for index in range(3)
    }
    assert mass(matches, r"stages\.0\..\.fc\.weight") == {
        f"stages.0.{index}.fc.weight": {"stages.0.0.fc.weight": 0.5} for index in range(2)
    }
    shortcut = "stages.3.0.shortcut.weight"
    assert mass(matches, shortcut) == {shortcut: {shortcut: 1.0}}
    # And back: the one block of a stage takes all of it.
    matches = align(target, base)
    assert_conserved(matches, target)
    assert mass(matches, r"stages\.1\.0\.fc\.bias") == {
        "stages.1.0.fc.bias": {"stages.1.0.fc.bias": 1.0, "stages.1.1.fc.bias": 1.0}
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(small, min_size=4, max_size=4), st.lists(small, min_size=4, max_size=4))
def test_stages_with_shortcuts(base_blocks: list[int], target_blocks: list[int]) -> None:
    base, target = staged(base_blocks), staged(target_blocks)
    matches = align(base, target)
    assert_conserved(matches, base)
    for numbers in (base_blocks, target_blocks):
        if min(numbers[1:]) == 1 < max(numbers[1:]):
            return  # where a stage starts is then a guess
    for name, match in matches.items():
        part = re.sub(r"(stages\.\d)\.\d+", r"\1", name)
        assert {re.sub(r"(stages\.\d)\.\d+", r"\1", other) for other, _ in match.base} == {part}


def alternating_pattern(pattern: str) -> nx.DiGraph:
    net = Net()
    x = net.layer("linear", net.input, "embed")
    for index, kind in enumerate(pattern):
        body = {"l": ["norm", "attention"], "g": ["norm", "gated"]}[kind]
        x = net.residual(body, x, f"{kind}.{pattern[:index].count(kind)}")
    return net.finish(net.layer("linear", x, "head"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("llgl", "llgllg"), ("llgllg", "llgl"), ("llg", "llgll"), ("lgl", "lglg"), ("lglg", "lglgl")],
)
def test_a_pattern_that_does_not_divide_the_blocks(one: str, other: str) -> None:
    base, target = alternating_pattern(one), alternating_pattern(other)
    matches = align(base, target)
    assert_conserved(matches, base)
    for name, match in matches.items():
        kind = name.split(".")[0]
        assert {base_name.split(".")[0] for base_name, _ in match.base} == {kind}
    if (one, other) == ("llgl", "llgllg"):
        assert mass(matches, r"l\..\.0\.bias") == {
            f"l.{j}.0.bias": {
                f"l.{i}.0.bias": round(overlap(i, 3, j, 4), 6)
                for i in range(3)
                if overlap(i, 3, j, 4)
            }
            for j in range(4)
        }


def test_other_numbers_of_parallel_branches() -> None:
    def parallel(branches: int) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "embed")
        experts = [net.layer("gated", x, f"experts.{i}") for i in range(branches)]
        return net.finish(net.layer("linear", net.call(ATEN.cat.default, experts, 1), "head"))

    base, target = parallel(2), parallel(6)
    matches = align(base, target)
    assert_conserved(matches, base)
    assert matches["experts.2.up.weight"].base == (("experts.0.up.weight", pytest.approx(1 / 3)),)
    assert matches["experts.3.up.weight"].base == (("experts.1.up.weight", pytest.approx(1 / 3)),)
    assert_conserved(align(target, base), target)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, width: int, layers: int, **options: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(17, width)
        self.core = kind(width, width, layers, batch_first=True, **options)
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 17)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.tokens(tokens))[0])


@pytest.mark.parametrize(
    "kind,options",
    [
        (nn.GRU, {"bias": False}),
        (nn.RNN, {}),
        *(
            pytest.param(kind, options, marks=pytest.mark.slow)
            for kind in (nn.LSTM, nn.GRU, nn.RNN)
            for options in ({}, {"bidirectional": True}, {"bias": False})
        ),
    ],
)
def test_recurrent_networks_of_other_depths(kind: Any, options: dict[str, bool]) -> None:
    base = captured(Recurrent(kind, 8, 2, **options), tokens())
    for layers in (1, 4):
        target = captured(Recurrent(kind, 12, layers, **options), tokens())
        matches = align(base, target)
        assert_conserved(matches, base)
        for name, match in matches.items():
            found = re.fullmatch(r"(core\..*_l)(\d)(.*)", name)
            if found is None:
                assert match.base == ((name, 1.0),)
                continue
            assert match.base == tuple(
                (f"{found[1]}{i}{found[3]}", pytest.approx(overlap(i, 2, int(found[2]), layers)))
                for i in range(2)
                if overlap(i, 2, int(found[2]), layers)
            )


def test_tied_and_untied_readouts_share_mass() -> None:
    matches = align(transformer(2, tied=True), transformer(2))
    tied = "tokens.weight"
    assert matches["tokens.weight"].base == ((tied, 0.5),)
    assert matches["logits.weight"].base == ((tied, 0.5),)
    matches = align(transformer(2), transformer(2, tied=True))
    assert dict(matches[tied].base) == {"tokens.weight": 1.0, "logits.weight": 1.0}


# Parameters that only one side has.


def test_biases_on_one_side_only() -> None:
    def mlp(bias: bool, depth: int) -> nx.DiGraph:
        layers = [nn.Linear(8, 8, bias=bias) for _ in range(depth)]
        return captured(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), *layers, nn.ReLU(), nn.Linear(8, 3)),
            features(4, 8),
        )

    base, target = mlp(False, 1), mlp(True, 1)
    with pytest.raises(MatchError, match="1 target parameter and 0 base parameters") as error:
        align(base, target)
    assert "target '2.bias' (aten.linear bias, rank 1 in Linear)" in str(error.value)
    assert 'on_unmatched="unit"' in str(error.value)
    matches = align(base, target, on_unmatched="unit")
    assert matches.pop("2.bias") == Match("2.bias", ())
    assert all(match.base == ((name, 1.0),) for name, match in matches.items())
    matches = align(target, base, on_unmatched="unit")
    assert all(match.base == ((name, 1.0),) for name, match in matches.items())
    assert unanswered(target, matches.values()) == ["2.bias"]


def test_partial_matches_in_blocks_of_another_number() -> None:
    base, target = with_extra(False), with_extra(True, depth=6)
    matches = align(base, target, on_unmatched="unit")
    for name, match in matches.items():
        assert bool(match.base) == ("gain" not in name)
    assert matches["blocks.5.1.weight"].base == (("blocks.1.1.weight", pytest.approx(1 / 3)),)
    matches = align(target, base, on_unmatched="unit")
    assert unanswered(target, matches.values()) == [f"blocks.{i}.gain.factor" for i in range(6)]
    assert sum(share for _, share in matches["blocks.0.1.weight"].base) == pytest.approx(3.0)


def test_an_added_head() -> None:
    def heads(number: int) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "embed")
        x = net.residual(["norm", "attention"], x, "block")
        outputs = [net.layer(kind, x, kind) for kind in ["linear", "gated"][:number]]
        net.graph.output(tuple(outputs))
        return parameter_graph(net.graph)

    matches = align(heads(1), heads(2), on_unmatched="unit")
    assert {name for name, match in matches.items() if not match.base} == {
        f"gated.{role}.{part}" for role in ("gate", "up", "down") for part in ("weight", "bias")
    }
    assert matches["linear.weight"].base == (("linear.weight", 1.0),)


def test_unknown_on_unmatched() -> None:
    with pytest.raises(InputError, match="unknown on_unmatched 'skip'; expected one of"):
        align(with_extra(False), with_extra(True), on_unmatched="skip")  # type: ignore[arg-type]


# What does not match.


def with_extra(extra: bool, depth: int = 2) -> nx.DiGraph:
    net = Net()
    x = net.layer("linear", net.input, "embed")
    for index in range(depth):
        x = net.residual(["norm", "linear"], x, f"blocks.{index}")
        x = net.layer("factor", x, f"blocks.{index}.gain") if extra else x
    return net.finish(net.layer("linear", x, "head"))


def test_error_names_every_unmatched_parameter_and_the_nearest() -> None:
    with pytest.raises(MatchError) as error:
        align(with_extra(False), with_extra(True, depth=3))
    message = str(error.value)
    assert "structure leaves 3 target parameters and 0 base parameters" in message
    for index in range(3):
        assert f"target 'blocks.{index}.gain.factor' (aten.mul other, rank 1 in Block)" in message
    assert len(re.findall(r"nearest in the base: '.+', '.+', '.+'\n", message)) == 3
    assert "mapping={'blocks.0.gain.factor': 'base name', ...}" in message
    with pytest.raises(MatchError) as error:
        align(with_extra(True), with_extra(False))
    assert "base 'blocks.1.gain.factor' (aten.mul other, rank 1 in Block)" in str(error.value)


def test_a_doubt_of_other_connections() -> None:
    def wired(parallel: bool) -> nx.DiGraph:
        net = Net()
        x = net.layer("linear", net.input, "embed")
        a = net.layer("linear", x, "a")
        b = net.layer("linear", x if parallel else a, "b")
        return net.finish(net.layer("linear", net.call(ATEN.add.Tensor, a, b), "head"))

    matches = align(wired(False), wired(True))
    assert all(match.base == ((name, 1.0),) for name, match in matches.items())
    doubt = matches["a.weight"].doubt
    assert doubt is not None
    assert doubt.reason == "the data flow around the two differs"


def test_no_block_in_the_base() -> None:
    with pytest.raises(MatchError, match=r"^pass mapping={'blocks\.0\.0\.weight'") as error:
        align(with_extra(False, 0), with_extra(False, 5))
    text = str(error.value)
    assert text.count("\n  target ") == 5
    assert "\n  and 15 more of the target\n" in text


def test_mapping_settles_it() -> None:
    base, target = with_extra(True), with_extra(False)
    names = {name: name for name in parameters(target)}
    matches = align(base, target, names)
    assert all(match.base == ((name, 1.0),) for name, match in matches.items())
    # Two swapped by hand, the rest by structure.
    base, target = with_extra(False, 2), with_extra(False, 4)
    matches = align(base, target, {"embed.weight": "embed.bias", "embed.bias": "embed.weight"})
    assert matches["embed.weight"].base == (("embed.bias", 1.0),)
    assert matches["blocks.3.0.weight"].base == (("blocks.1.0.weight", 0.5),)
    assert_conserved(matches, base)


def test_mapping_as_a_function_splits_equally() -> None:
    base, target = with_extra(False, 1), with_extra(True, 3)

    def mapping(name: str) -> str | None:
        return re.sub(r"blocks\.\d", "blocks.0", name).replace("gain.factor", "0.weight")

    matches = align(base, target, mapping)
    assert matches["blocks.2.1.weight"].base == (("blocks.0.1.weight", pytest.approx(1 / 3)),)
    assert matches["blocks.2.gain.factor"].base == (("blocks.0.0.weight", pytest.approx(1 / 6)),)
    assert_conserved(matches, base)
    assert align(base, with_extra(False, 1), lambda name: None)["head.bias"].base == (
        ("head.bias", 1.0),
    )


def test_mapping_of_a_part_that_only_one_side_has() -> None:
    base, target = with_extra(True, 1), with_extra(True, 1)
    target.nodes["blocks.0.gain.factor"]["rank"] = 3
    with pytest.raises(MatchError, match=r"target 'blocks\.0\.gain\.factor'.*rank 3"):
        align(base, target)
    name = "blocks.0.gain.factor"
    assert align(base, target, {name: name})["head.bias"].base == (("head.bias", 1.0),)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"nothing": "embed.bias"}, "target parameter 'nothing'"),
        ({"embed.bias": "nothing"}, r"base parameter 'nothing' \(for 'embed.bias'\)"),
        ({"embed.bias": 3}, r"base parameter 3 \(for 'embed.bias'\)"),
    ],
)
def test_mapping_of_unknown_names(mapping: Any, message: str) -> None:
    with pytest.raises(MatchError, match=f"mapping names {message}"):
        align(with_extra(False), with_extra(False), mapping)


def test_five_thousand_parameters_in_seconds() -> None:
    body = [["norm", "attention"], ["norm", "gated"]]
    graphs = [network(body, depth) for depth in (170, 340)]
    assert len(parameters(graphs[1])) > 5000
    started = time.process_time()
    assert_conserved(align(graphs[0], graphs[1]), graphs[0])
    assert_conserved(align(graphs[1], graphs[1]), graphs[1])
    assert time.process_time() - started < 60  # some 5 s on an idle core


class Parallel(nn.Module):
    """Attention and MLP side by side on one norm that reads the stream twice; two kinds in turn."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(depth + 1))
        self.queries = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.ups = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, out in enumerate(self.outs):
            h = self.norm(x, i)
            q = self.queries[i](h)
            mixed = q.sin() * q if i % 2 else q.tanh()
            x = x + out(mixed) + self.ups[i](h).relu()
        return self.head(self.norm(x, -1))  # type: ignore[no-any-return]

    def norm(self, x: Tensor, i: int) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        return self.gains[i] * (centred * (spread + 1e-5).rsqrt())


def test_blocks_of_parallel_branches_alternate_in_step() -> None:
    base, target = Parallel(6, 2), Parallel(6, 4)
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    matches = align(*(capture_graph(capture(model, x)) for model in (base, target)))
    for kind in ("queries", "outs", "ups"):
        for i in range(4):
            assert matches[f"{kind}.{i}.weight"].base == ((f"{kind}.{i % 2}.weight", 0.5),)
