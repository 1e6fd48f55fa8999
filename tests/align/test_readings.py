"""Depths of which repeats in one stream alone do not decide: a name rule says what is expected."""

import itertools
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flerm_fx.align.aligning import align
from flerm_fx.align.apart import apart, knows_nonlinearities
from flerm_fx.align.doubts import doubts_of
from flerm_fx.align.mass import Shares
from flerm_fx.align.parameter_graph import capture_graph, chain
from flerm_fx.align.rounds import out_of_round
from flerm_fx.align.torn import torn
from flerm_fx.align.uneven import uneven
from flerm_fx.capture.tracing import capture

Answers = dict[str, dict[str, float]]
LIST = re.compile(r"(?<=\.)\d+(?=\.|$)")


def answers(base: nn.Module, target: nn.Module, inputs: Any) -> Answers:
    """Shares by target parameter, of which none is in doubt."""
    one, other = (capture_graph(capture(model, inputs)) for model in (base, target))
    matches = align(one, other)
    assert doubts_of(matches) == ()
    return {name: dict(match.base) for name, match in matches.items()}


def by_name(base: nn.Module, target: nn.Module, used: Callable[[str], bool]) -> Answers:
    """What names say of models with one level of lists: copy i of n overlaps with copy j of m."""
    copies: tuple[defaultdict[str, list[str]], ...] = defaultdict(list), defaultdict(list)
    for side, model in zip(copies, (base, target), strict=True):
        for name, _ in model.named_parameters():
            if used(name):
                side[LIST.sub("#", name)].append(name)
    found: Answers = {}
    for pattern, theirs in copies[1].items():
        ours = copies[0][pattern]
        n, m = len(ours), len(theirs)
        for j, name in enumerate(theirs):
            parts = {i: min((i + 1) / n, (j + 1) / m) - max(i / n, j / m) for i in range(n)}
            found[name] = {ours[i]: n * part for i, part in parts.items() if part > 1e-9}
    return found


def assert_by_name(
    build: Callable[[int], nn.Module],
    n: int,
    m: int,
    inputs: Any,
    used: Callable[[str], bool] = lambda name: True,
) -> None:
    base, target = build(n), build(m)
    found = answers(base, target, inputs)
    expected = by_name(base, target, used)
    assert {name: row for name, row in found.items() if row} == {
        name: pytest.approx(row) for name, row in expected.items()
    }


class Block(nn.Module):
    """Two streams in, two out; neither is a meeting point of all that goes on."""

    def __init__(self, both: bool = True) -> None:
        super().__init__()
        self.u, self.w = nn.Linear(4, 4), nn.Linear(4, 4)
        self.v = nn.Linear(4, 4) if both else None

    def forward(self, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tanh(self.w(e))
        return h + self.u(h) * a, e + self.v(a) if self.v is not None else e


class Streams(nn.Module):
    def __init__(self, depth: int, joined: bool, lacking: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(Block(not lacking or i < depth - 1) for i in range(depth))
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        h, e = self.first(x), self.second(x)
        for block in self.blocks:
            h, e = block(h, e)
        return self.out(h + e if self.joined else h)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 2)])
def test_several_streams_between_blocks(n: int, m: int) -> None:
    assert_by_name(lambda depth: Streams(depth, True), n, m, torch.randn(5, 4))


@pytest.mark.parametrize("lacking", [False, True], ids=["unused", "absent"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 2)])
def test_a_last_block_lacks_what_nobody_reads(n: int, m: int, lacking: bool) -> None:
    last = re.compile(rf"blocks\.({n - 1}|{m - 1})\.v")
    base, target = (Streams(depth, False, lacking) for depth in (n, m))
    found = answers(base, target, torch.randn(5, 4))
    for name, row in found.items():
        assert all(LIST.sub("#", b) == LIST.sub("#", name) for b in row)
        assert row or last.match(name)
    j = m - 1
    assert found[f"blocks.{j}.u.weight"].keys() >= {f"blocks.{n - 1}.u.weight"}
    assert sum(sum(row.values()) for row in found.values()) == pytest.approx(6 + 6 * n - 2)


class Stage(nn.Module):
    """A pre-norm block; the first of a stage widens by a shortcut from its norm."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(inside), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(inside, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.shortcut = nn.Linear(inside, width) if inside != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = self.qkv(y).chunk(3, -1)
        x = x if self.shortcut is None else self.shortcut(y)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def staged(depths: tuple[int, ...]) -> nn.Module:
    model = nn.Module()
    model.embed = nn.Linear(3, 4)
    widths = [4, 4, 8, 16]
    model.stages = nn.ModuleList(
        nn.ModuleList(
            Stage(widths[i] if j == 0 else widths[i + 1], widths[i + 1]) for j in range(depth)
        )
        for i, depth in enumerate(depths)
    )
    model.head = nn.Linear(widths[len(depths)], 2)

    def forward(x: Tensor) -> Tensor:
        x = model.embed(x)
        for stage in model.stages:
            for block in stage:
                x = block(x)
        return model.head(x)

    model.forward = forward
    return model


@pytest.mark.parametrize(
    "counts",
    [
        ((1,), (2,)),
        pytest.param(((1, 1), (1, 3)), marks=pytest.mark.slow),
        pytest.param(((1, 2, 1), (3, 1, 2)), marks=pytest.mark.slow),
        pytest.param(((3, 1), (1, 2)), marks=pytest.mark.slow),
    ],
)
def test_stages_of_any_depths(counts: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    found = answers(*map(staged, counts), torch.randn(2, 5, 3))
    for name, row in found.items():
        place = re.match(r"stages\.(\d+)\.(\d+)\.(.*)", name)
        if place is None or "shortcut" in name:
            assert row == {name: 1.0}
            continue
        i, j, part = int(place[1]), int(place[2]), place[3]
        n, m = counts[0][i], counts[1][i]
        assert row == {
            f"stages.{i}.{k}.{part}": pytest.approx(overlap)
            for k in range(n)
            if (overlap := n * (min((k + 1) / n, (j + 1) / m) - max(k / n, j / m))) > 1e-9
        }


class Ends(nn.Module):
    """Embeddings in front of layers of two branches, with one that reads the input again."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in range(3))
        self.entrance, self.readout = self._layer(12, 4), self._layer(4, 2)
        self.hidden = nn.ModuleList(self._layer(4, 4) for _ in range(depth))

    @staticmethod
    def _layer(inside: int, outside: int) -> nn.ModuleDict:
        parts = {"plain": nn.Linear(inside, outside), "wave": nn.Linear(2 * inside, outside)}
        return nn.ModuleDict(parts)

    def forward(self, i: Tensor) -> Tensor:
        x = torch.cat([table(i[:, k]) for k, table in enumerate(self.tables)], 1)
        for layer in (self.entrance, *self.hidden, self.readout):
            assert isinstance(layer, nn.ModuleDict)
            x = layer["plain"](F.silu(x)) + layer["wave"](torch.cat([x.cos(), x.sin()], 1))
        return x


@pytest.mark.parametrize(("n", "m"), [(1, 3), (3, 2)])
def test_ends_of_chains_keep_their_mass(n: int, m: int) -> None:
    assert_by_name(Ends, n, m, torch.randint(9, (5, 3)))


class Cells(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(4, 4) for _ in range(depth))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = [torch.zeros_like(x[:, 0]) for _ in self.cells]
        for y in x.unbind(1):
            for i, cell in enumerate(self.cells):
                y = states[i] = cell(y, states[i])
        return self.out(states[-1])


@pytest.mark.parametrize("steps", [2, 3])
def test_the_number_of_time_steps_says_nothing_of_depth(steps: int) -> None:
    assert_by_name(Cells, 2, 4, torch.randn(3, steps, 4))


class Towers(nn.Module):
    """Two towers that exchange features at each level."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.left, self.right = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(depth)) for _ in range(2)
        )
        self.mix = nn.ParameterList(nn.Parameter(torch.eye(2)) for _ in range(depth))
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        g, h = self.first(x), self.second(x)
        for left, right, mix in zip(self.left, self.right, self.mix, strict=True):
            g, h = left(g).relu(), right(h).relu()
            g, h = mix[0, 0] * g + mix[0, 1] * h, mix[1, 0] * g + mix[1, 1] * h
        return self.out(torch.cat([g, h], 1))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 2)])
def test_towers_that_exchange_features(n: int, m: int) -> None:
    assert_by_name(Towers, n, m, torch.randn(5, 4))


class Woven(nn.Module):
    """Random blocks: each stream adds a function of some of the streams as they were before.

    Attributes:
        reads: for each stream, those that its update reads.
        out: the streams that the output reads.
    """

    def __init__(
        self, depths: Sequence[int], reads: tuple[tuple[int, ...], ...], out: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.reads, self.used = reads, out
        self.inputs = nn.ModuleDict({f"in{k}": nn.Linear(4, 4) for k in range(len(reads))})
        self.stages = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleDict({f"to{k}": nn.Linear(4 * len(r), 4) for k, r in enumerate(reads)})
                for _ in range(depth)
            )
            for depth in depths
        )
        self.between = nn.ModuleList(nn.Linear(4, 4) for _ in depths[1:])
        self.out = nn.Linear(4 * len(out), 2)

    def forward(self, x: Tensor) -> Tensor:
        streams = [self.inputs[f"in{k}"](x) for k in range(len(self.reads))]
        for at, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            if at:
                streams = [self.between[at - 1](s).relu() for s in streams]
            for block in stage:
                assert isinstance(block, nn.ModuleDict)
                read = [torch.cat([streams[i] for i in r], 1) for r in self.reads]
                streams = [s + torch.tanh(block[f"to{k}"](read[k])) for k, s in enumerate(streams)]
        return self.out(torch.cat([streams[k] for k in self.used], 1))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.data())
def test_random_streams(data: st.DataObject) -> None:
    number = data.draw(st.integers(2, 3))
    some = st.lists(st.integers(0, number - 1), min_size=1, max_size=number, unique=True).map(
        lambda found: tuple(sorted(found))
    )
    reads = tuple(data.draw(some) for _ in range(number))
    out = data.draw(some)
    stages = data.draw(st.integers(1, 2))
    depths = st.lists(st.integers(2, 3), min_size=stages, max_size=stages)
    models = [Woven(data.draw(depths), reads, out) for _ in range(2)]
    found = answers(*models, torch.randn(3, 4))
    given: defaultdict[str, float] = defaultdict(float)
    for name, row in found.items():
        for base, share in row.items():
            assert LIST.sub("#", base) == LIST.sub("#", name)
            given[base] += share
    assert given == pytest.approx(dict.fromkeys(given, 1.0))
    assert _in_order(found)


def _in_order(found: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether deeper copies answer to deeper ones."""
    last: defaultdict[str, list[int]] = defaultdict(list)
    for name, row in found.items():
        for base in row:
            number = [int(place) for place in LIST.findall(base)]
            if number < last[LIST.sub("#", name)]:
                return False
            last[LIST.sub("#", name)] = number
    return True


def test_renaming_changes_nothing_where_the_tree_stays() -> None:
    class Renamed(nn.Module):
        def __init__(self, model: Streams) -> None:
            super().__init__()
            self.entry_b, self.entry_a, self.exit = model.second, model.first, model.out
            self.body = nn.ModuleList(
                nn.ModuleDict({"x": b.u, "y": b.w, "z": b.v}) for b in model.blocks
            )

        def forward(self, x: Tensor) -> Tensor:
            h, e = self.entry_a(x), self.entry_b(x)
            for b in self.body:
                a = torch.tanh(b["y"](e))
                h, e = h + b["x"](h) * a, e + b["z"](a)
            return self.exit(h + e)

    x = torch.randn(5, 4)
    plain = answers(Streams(2, True), Streams(4, True), x)
    renamed = answers(Streams(2, True), Renamed(Streams(4, True)), x)
    words = {"first": "entry_a", "second": "entry_b", "out": "exit", "blocks": "body"}
    words |= {"u": "x", "w": "y", "v": "z"}
    expected = {
        ".".join(words.get(part, part) for part in name.split(".")): row
        for name, row in plain.items()
    }
    assert renamed == expected


class Normed(nn.Module):
    """Attention or a feed-forward layer with its norm; its shortcut may be projected."""

    def __init__(self, kind: str, projected: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleDict({"out": nn.Linear(4, 4)})
        if kind == "attention":
            self.layers["gate"] = nn.Linear(4, 4)
        if projected:
            self.layers["shortcut"] = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = torch.sin(self.layers["gate"](h)) * h if "gate" in self.layers else h.relu()
        kept = self.layers["shortcut"](x) if "shortcut" in self.layers else x
        return kept + self.layers["out"](h)


class InOneList(nn.Module):
    """Blocks one behind the other, with an entrance and a head."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.entrance, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entrance(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def staged_in_one_list(depths: Sequence[int]) -> nn.Module:
    return InOneList(
        [
            Normed("attention", projected=stage > 0 and at == 0)
            for stage, depth in enumerate(depths)
            for at in range(depth)
        ]
    )


@pytest.mark.parametrize("depths", [(1, 2), (2, 3)])
def test_stages_in_one_list_stay_apart(depths: tuple[int, int]) -> None:
    found = answers(staged_in_one_list((1, 1)), staged_in_one_list(depths), torch.randn(3, 4))
    for at in range(sum(depths)):
        stage = int(at >= depths[0])
        row = found[f"blocks.{at}.norm.weight"]
        assert row == {f"blocks.{stage}.norm.weight": pytest.approx(1 / depths[stage])}


def test_a_block_of_several_items_is_not_counted_item_by_item() -> None:
    kinds = ("feed-forward", "attention", "feed-forward")
    models = [InOneList([Normed(kind) for kind in kinds * depth]) for depth in (1, 2)]
    x = torch.randn(3, 4)
    matches = align(*(capture_graph(capture(model, x)) for model in models))
    for at in range(6):
        match = matches[f"blocks.{at}.norm.weight"]
        right = match.base == ((f"blocks.{at % 3}.norm.weight", 0.5),)
        assert right or match.doubt is not None


def test_equal_blocks_with_unequal_shares_speak_against_a_matching() -> None:
    half = Fraction(1, 2)
    odd = {
        "b.0.fc.w": {"h.0.fc.w": Fraction(1)},
        "b.1.fc.w": {"h.1.fc.w": half, "h.2.fc.w": half},
    }

    def never(names: Collection[str]) -> bool:
        return False

    assert uneven(odd, never, never) == {"h.0.fc.w", "h.1.fc.w", "h.2.fc.w"}
    # What reads the input is another layer, although it holds the same.
    assert not uneven(odd, lambda names: "h.0.fc.w" in names, never)


def test_single_layers_with_unequal_shares_speak_against_a_matching_if_they_are_alike() -> None:
    half = Fraction(1, 2)
    odd = {"b.0.w": {"h.0.w": Fraction(1)}, "b.1.w": {"h.1.w": half, "h.2.w": half}}
    assert uneven(odd, lambda names: False, lambda names: True) == {"h.0.w", "h.1.w", "h.2.w"}
    assert not uneven(odd, lambda names: False, lambda names: False)


def test_stages_that_answer_to_others_are_torn() -> None:
    def name(stage: int, block: int, part: str) -> str:
        return f"stages.{stage}.blocks.{block}.{part}.w"

    laid: Shares = {}
    for part in ("x", "y"):
        laid[name(0, 0, part)] = {name(0, 0, part): Fraction(1)}
        laid[name(1, 0, part)] = {
            name(stage, block, part): Fraction(1, 2) for stage, block in ((0, 1), (1, 0))
        }
    assert name(0, 1, "x") in torn(laid)


class OnInput(nn.Module):
    """Layers of one size in a list, right on the input; ``how`` says what meets the input."""

    def __init__(self, depth: int, how: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self._layer(how) for _ in range(depth))
        self.head = nn.Linear(4, 3)
        self.how = how

    @staticmethod
    def _layer(how: str) -> nn.Module:
        if how == "low rank":
            parts = {"down": nn.Linear(4, 2, bias=False), "up": nn.Linear(2, 4)}
            return nn.Sequential(OrderedDict(parts))
        if how == "normed":
            parts = {"norm": nn.LayerNorm(4), "up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}
            return nn.Sequential(OrderedDict(parts))
        return nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for at, layer in enumerate(self.layers):
            if self.how in ("crossed", "low rank"):
                x = first * layer(x) + x
            elif self.how == "mixed":
                x = torch.lerp(x, layer(x), 0.5)
            elif self.how == "residual" or at or self.how == "normed":
                x = x + layer(x)
            else:
                x = layer(x).tanh()
        return self.head(x)


@pytest.mark.parametrize("how", ["residual", "crossed", "low rank", "normed", "mixed"])
@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 3), (3, 2)])
def test_a_first_block_that_the_input_goes_past_is_a_copy(n: int, m: int, how: str) -> None:
    assert_by_name(lambda depth: OnInput(depth, how), n, m, torch.randn(5, 4))


def test_a_first_layer_that_the_input_does_not_go_past_is_an_entrance() -> None:
    found = answers(OnInput(2, "projected"), OnInput(4, "projected"), torch.randn(5, 4))
    assert found["layers.0.weight"] == {"layers.0.weight": 1.0}
    assert found["layers.3.weight"] == {"layers.1.weight": pytest.approx(1 / 3)}


class Radiance(nn.Module):
    """NeRF: the layer in the middle of the list reads the input again."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.again = depth // 2
        self.layers = nn.ModuleList(
            nn.Linear(4 * (at > 0) + 3 * (at in (0, self.again)), 4) for at in range(depth)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for at, layer in enumerate(self.layers):
            h = layer(torch.cat([h, x], -1) if at == self.again else h).relu()
        return self.head(h)


def test_a_layer_that_reads_the_input_again_is_no_copy_of_its_neighbours() -> None:
    found = answers(Radiance(4), Radiance(8), torch.randn(5, 3))
    answer = {at: found[f"layers.{at}.weight"] for at in range(8)}
    assert answer[0] == {"layers.0.weight": 1.0}
    assert answer[4] == {"layers.2.weight": 1.0}
    for inside, base in (((1, 2, 3), 1), ((5, 6, 7), 3)):
        for at in inside:
            assert answer[at] == {f"layers.{base}.weight": pytest.approx(1 / 3)}


class Splines(nn.Module):
    """KAN in one list: each layer has two branches, the first and the last have other sizes."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        sizes = [3, *[4] * (depth + 1), 2]
        self.layers = nn.ModuleList(
            nn.ModuleDict({"plain": nn.Linear(a, b), "wave": nn.Linear(a, b, bias=False)})
            for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = layer["plain"](F.silu(x)) + layer["wave"](x.sin())
        return x


@pytest.mark.parametrize(("n", "m"), [(1, 3), (3, 2)])
def test_a_last_layer_of_two_branches_is_a_readout(n: int, m: int) -> None:
    found = answers(Splines(n), Splines(m), torch.randn(5, 3))
    assert found["layers.0.plain.weight"] == {"layers.0.plain.weight": 1.0}
    last = f"layers.{m + 1}.wave.weight"
    assert found[last] == {f"layers.{n + 1}.wave.weight": 1.0}
    inside = [sum(found[f"layers.{at}.wave.weight"].values()) for at in range(1, m + 1)]
    assert inside == pytest.approx([n / m] * m)


class Product(nn.Module):
    """Two perceptrons whose last layers meet in the output, with a bias of its own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.left, self.right = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(depth + 2)) for _ in range(2)
        )
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        ends = []
        for layers in (self.left, self.right):
            h = x
            for layer in layers[:-1]:
                h = layer(h).relu()
            ends.append(layers[-1](h))
        return ends[0] * ends[1] + self.bias


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3)])
def test_last_layers_that_meet_in_the_output_are_no_hidden_ones(n: int, m: int) -> None:
    found = answers(Product(n), Product(m), torch.randn(3, 4))
    for side in ("left", "right"):
        assert found[f"{side}.0.weight"] == {f"{side}.0.weight": 1.0}
        assert found[f"{side}.{m + 1}.weight"] == {f"{side}.{n + 1}.weight": 1.0}
        hidden = [sum(found[f"{side}.{j}.weight"].values()) for j in range(1, m + 1)]
        assert hidden == pytest.approx([n / m] * m)


def test_kinds_that_take_turns_are_not_crossed() -> None:
    half = Fraction(1, 2)
    common = {"h.0.fc.w": {"b.0.fc.w": half, "b.2.fc.w": half}}
    own = {"h.1.x.w": {"b.1.x.w": half, "b.3.x.w": half}}
    wrong = {"h.1.fc.w": {"b.1.fc.w": half, "b.3.fc.w": half, "b.2.fc.w": half}}
    right = {"h.1.fc.w": {"b.1.fc.w": half, "b.3.fc.w": half}}
    laid: list[Shares] = []
    for rows in (right, wrong):
        laid.append(defaultdict(dict))
        for target, row in {**common, **own, **rows}.items():
            for name, share in row.items():
                laid[-1][name][target] = share
    assert [sorted(out_of_round(each)) for each in laid] == [[], ["h.1.fc.w"]]


def test_a_part_that_the_block_of_its_siblings_lacks_is_not_torn() -> None:
    one, both = Fraction(1), ("u", "v")
    laid: Shares = {f"b.0.0.{p}.w": {f"h.{j}.0.{p}.w": one / 2 for j in (0, 1)} for p in both}
    laid |= {f"b.1.0.{p}.w": {f"h.{j}.0.{p}.w": one / 2 for j in (2, 3)} for p in both}
    laid["b.0.0.tail.w"] = {f"h.{j}.0.tail.w": one / 3 for j in (0, 1, 2)}
    assert torn(laid) == set()
    laid["b.1.0.tail.w"] = {"h.3.0.tail.w": one}
    assert torn(laid) == {f"h.2.0.{p}.w" for p in (*both, "tail")}


def test_a_block_of_layers_in_a_row_that_reads_the_input_is_apart_as_a_whole() -> None:
    class Encoder(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            blocks = (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(depth))
            self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks(x))

    found = answers(Encoder(2), Encoder(3), torch.randn(3, 4))
    for part in ("0.weight", "1.weight"):
        assert found[f"blocks.0.{part}"] == {f"blocks.0.{part}": 1.0}
        assert found[f"blocks.2.{part}"] == {f"blocks.1.{part}": pytest.approx(0.5)}


def _without_graph(names: Sequence[str]) -> Any:
    return chain((name, "Linear", "weight", 1 + ("fc" in name)) for name in names)


CONVOLUTION = ("convs.{}.eps", "convs.{}.mlp.fc", "norms.{}.weight")


def _convolutions(depth: int, before: str, behind: str) -> Any:
    lists = [part.format(i) for i in range(depth) for part in CONVOLUTION]
    return _without_graph([*filter(None, [before]), *lists, *filter(None, [behind])])


def test_without_a_graph_lists_beside_a_list_of_blocks_are_matched_by_their_numbers() -> None:
    found = align(_convolutions(2, "embed.fc", "head.fc"), _convolutions(3, "embed.fc", "head.fc"))
    assert doubts_of(found) == ()
    for part in CONVOLUTION:
        row = dict(found[part.format(1)].base)
        assert row == {part.format(i): pytest.approx(1 / 3) for i in (0, 1)}


@pytest.mark.parametrize("around", [("embed.fc", ""), ("", "head.fc"), ("", "")])
def test_without_a_graph_layers_of_a_list_that_begins_or_ends_the_network_are_in_doubt(
    around: tuple[str, str],
) -> None:
    doubts = doubts_of(align(_convolutions(2, *around), _convolutions(3, *around)))
    assert {doubt.target for doubt in doubts} == {
        part.format(i) for part in CONVOLUTION if "convs" in part for i in range(3)
    }
    assert all("begins or ends the network" in doubt.reason for doubt in doubts)


def test_without_a_graph_blocks_at_an_end_of_the_network_are_in_no_doubt() -> None:
    def blocks(depth: int) -> Any:
        parts = ("blocks.{}.norm.weight", "blocks.{}.fc.weight")
        return _without_graph([part.format(i) for i in range(depth) for part in parts])

    assert doubts_of(align(blocks(2), blocks(4))) == ()


def test_without_a_graph_what_order_alone_tells_is_in_doubt() -> None:
    base, target = (_without_graph([f"{2 * i}.fc" for i in range(depth)]) for depth in (2, 4))
    doubts = doubts_of(align(base, target))
    assert doubts
    assert "the order of modules alone" in doubts[0].reason


class Inner(nn.Module):
    """A perceptron within the network, and what takes what it gives."""

    def __init__(self, depth: int, how: str) -> None:
        super().__init__()
        self.how, self.head, self.learned = how, nn.Linear(4, 2), nn.Parameter(torch.ones(4))
        layers = (m for _ in range(depth + 1) for m in (nn.Linear(4, 4), nn.Tanh()))
        self.inner = nn.Sequential(*layers, nn.Linear(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        given = self.inner(x if self.how == "data" else self.learned)
        matrix = given.unflatten(-1, (4, 4))
        out: Tensor = self.head((matrix @ x[..., None])[..., 0].tanh())
        return out


@pytest.mark.parametrize("how", ["data", "parameters"])
def test_the_last_layer_of_a_perceptron_within_the_network_is_none_of_its_hidden_ones(
    how: str,
) -> None:
    found = answers(Inner(2, how), Inner(4, how), torch.randn(3, 4))
    assert found["inner.10.weight"] == {"inner.6.weight": 1.0}
    assert found["inner.0.bias"] == {"inner.0.bias": 1.0}
    assert found["inner.4.weight"] == {"inner.2.weight": 0.5}


def test_where_the_base_has_no_hidden_layer_a_layer_that_stands_apart_is_in_doubt() -> None:
    one, other = (capture_graph(capture(Inner(n, "data"), torch.randn(3, 4))) for n in (0, 1))
    doubts = doubts_of(align(one, other))
    assert {doubt.target for doubt in doubts} >= {f"inner.{i}.weight" for i in (2, 4)}


def test_a_graph_that_does_not_know_nonlinearities_tells_no_last_layer() -> None:
    pg = capture_graph(capture(Inner(2, "data"), torch.randn(3, 4)))
    assert set(apart(pg).values()) == {"", "closes"}
    assert set(apart(pg, closing=False).values()) == {""}
    assert knows_nonlinearities(pg)
    for _, attributes in pg.nodes(data=True):
        attributes.pop("through", None)
    assert not knows_nonlinearities(pg)


def test_a_first_block_that_lacks_a_part_is_a_copy_unless_either_side_has_its_kind_elsewhere() -> (
    None
):
    def laid(n: int, m: int, lacking: Collection[int]) -> Shares:
        """The first answers to the first, and the others to the others."""
        fc = {"b.0.fc.w": {"h.0.fc.w": Fraction(1)}, "b.0.up.w": {"h.0.up.w": Fraction(1)}}
        rest = {f"b.{i}": [f"h.{j}" for j in range(1, m)] for i in range(1, n)}
        for b, row in rest.items():
            for part in ("fc", "up", "norm"):
                kept = [t for t in row if part != "norm" or int(t[2:]) not in lacking]
                fc[f"{b}.{part}.w"] = {f"{t}.{part}.w": Fraction(1, len(kept)) for t in kept}
        return fc

    never, always = (lambda names: False), (lambda names: True)
    assert uneven(laid(2, 4, ()), is_end=never, alike=always)
    assert not uneven(laid(2, 4, (2,)), is_end=never, alike=always)
