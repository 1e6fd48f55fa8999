import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.align.aligning import align
from flerm_fx.align.doubts import Doubt, doubts_of, paragraph
from flerm_fx.align.parameter_graph import capture_graph, chain
from flerm_fx.capture.tracing import capture


class Wired(nn.Module):
    """Two layers in a row or side by side."""

    def __init__(self, parallel: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        a = self.a(x)
        return self.head(a + self.b(x if self.parallel else a))


@pytest.fixture
def profile() -> flerm_fx.BaseProfile:
    torch.manual_seed(0)
    base = Wired(False)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
    with flerm_fx.record(base, optimizer, x, y, settle=0) as recorder:
        return recorder.profile


def test_compile_warns_of_a_match_in_doubt(profile: flerm_fx.BaseProfile) -> None:
    with pytest.warns(flerm_fx.MatchWarning, match=r"'a\.weight' answers to 'a\.weight': the data"):
        compiled = flerm_fx.compile(Wired(True), profile)
    assert {doubt.target for doubt in compiled.doubts} >= {"a.weight", "a.bias"}


def test_strict_refuses_before_anything_changes(profile: flerm_fx.BaseProfile) -> None:
    target = Wired(True)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(flerm_fx.MatchError, match=r"strict=True refuses .*\n  'a\.weight' answers"):
        flerm_fx.compile(target, profile, strict=True, emit="module")
    after = target.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(flerm_fx.InputError, match="strict must be True or False"):
        flerm_fx.compile(target, profile, strict="yes")  # type: ignore[arg-type]


def test_strict_takes_what_is_certain(profile: flerm_fx.BaseProfile) -> None:
    compiled = flerm_fx.compile(Wired(False), profile, strict=True)
    assert compiled.doubts == ()


def test_names_that_cross_are_in_doubt() -> None:
    """Structure pairs in order; each side knows both names."""
    base, target = (
        chain((f"{name}.weight", "Linear", "weight", 2) for name in names)
        for names in (("in", "one", "two", "out"), ("in", "two", "one", "out"))
    )
    base.graph["complete"] = target.graph["complete"] = True
    matches = align(base, target)
    doubt = matches["two.weight"].doubt
    assert doubt == Doubt(
        "two.weight",
        ("one.weight",),
        "their names differ in more than the places of blocks",
        ("two.weight",),
    )
    assert {doubt.target for doubt in doubts_of(matches)} == {"one.weight", "two.weight"}


def stack(kinds: str, blocks: int, lists: bool) -> nx.DiGraph:
    """A parameter graph of layers (L) and residual blocks (R) of which some go round.

    What is in brackets is repeated, in a list where ``lists`` says so.
    """
    before, _, rest = kinds.partition("[")
    body, _, behind = rest.partition("]")
    steps = before + body * blocks + behind

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            made = [nn.Linear(4, 4) for _ in steps]
            ends = len(before), len(before) + len(body) * blocks
            inside = made[ends[0] : ends[1]]
            if lists:
                self.before, self.behind = nn.Module(), nn.Module()
                for at, layer in enumerate(made[: ends[0]]):
                    self.before.add_module("abc"[at], layer)
                for at, layer in enumerate(made[ends[1] :]):
                    self.behind.add_module("abc"[at], layer)
                self.blocks = nn.ModuleList(
                    nn.ModuleList(inside[at : at + len(body)])
                    for at in range(0, len(inside), len(body))
                )
            else:
                for at, layer in enumerate(made):
                    self.add_module(f"p{at}", layer)
            self.made = tuple(made)

        def forward(self, x: Tensor) -> Tensor:
            for kind, layer in zip(steps, self.made, strict=True):
                h = layer(x)
                x = x + h.tanh() if kind == "R" else h.relu()
            return x

    return capture_graph(capture(Stack(), torch.randn(3, 4)))


@pytest.mark.parametrize("kinds", ["LL[LR]L", "L[RL]L", "LL[LRR]L"])
@pytest.mark.parametrize("lists", [True, False])
def test_a_readout_is_no_layer_of_a_block(kinds: str, lists: bool) -> None:
    """Without a tree in the target's names, a layer at the end could pass for one of a block."""
    matches = align(stack(kinds, 1, lists), stack(kinds, 3, False))
    first, body = kinds.index("["), kinds.index("]") - kinds.index("[") - 1
    shares = [dict(match.base) for name, match in matches.items() if name.endswith("weight")]
    alone = [set(row.values()) == {1.0} for row in shares]
    inside = [not (first <= at < first + 3 * body) for at in range(len(shares))]
    assert alone == inside


@pytest.mark.parametrize("kinds", ["L[L]L", "[R]R"])
def test_what_flow_alone_cannot_tell_is_in_doubt(kinds: str) -> None:
    matches = align(stack(kinds, 2, False), stack(kinds, 4, False))
    reasons = {doubt.reason for doubt in doubts_of(matches)}
    assert any("one may be another layer" in why or "an end of" in why for why in reasons)


def test_a_long_list_of_doubts_is_cut() -> None:
    doubts = [Doubt(f"{i}.weight", ("b.weight",), "their names differ") for i in range(12)]
    text = paragraph(doubts)
    assert text.startswith("12 matches are in doubt:\n  '0.weight' answers to 'b.weight': their")
    assert "\n  … and 2 more\n" in text
    assert "mapping={'0.weight': 'base name', ...}" in text
