"""``python -m zoo.drawn``: networks drawn at random, at another depth, with and without names.

Architectures that people published have the forms that people think of. These have a stem, stages
of equal blocks and a head, and what those are made of is drawn: branches, side by side or in turn,
of linear maps, gated ones, attention and convolutions over entries; added to a stream or not; with
norms before, behind or nowhere, and factors that are learned. What the names of modules say is
right. A side *without names* has parameters ``p0``, ``p1`` and so on, in no module.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flerm_fx.align.aligning import Match, align
from flerm_fx.errors import MatchError
from zoo.depth.inputs import entries
from zoo.depth.stack import Depths, captured, expected_shares, held, used
from zoo.verdicts import Verdict, alarms, listed

if TYPE_CHECKING:
    import networkx as nx

Layer = Literal["linear", "mlp", "gated", "attention", "convolution"]
Norm = Literal["layer", "rms"]
Names = Literal["both", "base", "none"]
"""Which sides have names."""

FEATURES = 4
"""Of each entry that :func:`zoo.depth.inputs.entries` has."""

LETTERS = "abc"
"""Stages and branches have these in their names, and blocks numbers."""


@dataclass(frozen=True)
class BlockPlan:
    """What each block of a stage is.

    Attributes:
        branches: in turn, or side by side.
        side_by_side: whether all read the same, and are summed.
        residual: whether they are added to what they read.
        before, behind: whether a branch has a norm there.
        factors: whether a learned factor for each feature stands behind a branch.
    """

    branches: tuple[Layer, ...]
    side_by_side: bool
    residual: bool
    before: bool
    behind: bool
    factors: bool


@dataclass(frozen=True)
class Plan:
    """A network at any depth.

    Attributes:
        stages: the plan of each one's blocks, with its width.
        norm: of all norms.
        activation: of all layers.
        bias: whether linear maps have one.
        stem: linear maps in front, with activations between them.
        positions: whether learned positions are added behind the stem.
        last_norm: whether a norm stands in front of the head.
        mean: whether the head reads the mean over entries.
        head: linear maps at the end.
    """

    stages: tuple[tuple[BlockPlan, int], ...]
    norm: Norm
    activation: Literal["tanh", "relu", "silu"]
    bias: bool
    stem: int
    positions: bool
    last_norm: bool
    mean: bool
    head: int


@dataclass(frozen=True)
class Drawn:
    """One network, and the depths of its stages in base and target."""

    seed: int
    number: int
    plan: Plan
    base: Depths
    target: Depths


def drawn(seed: int, count: int) -> Iterator[Drawn]:
    """Draw so many networks; each depends on the seed and its number alone."""
    for number in range(count):
        rng = random.Random(f"{seed}, {number}")
        plan = _plan(rng)
        base = tuple(rng.randint(2, 3) for _ in plan.stages)
        target = tuple(n + rng.randint(0, 5) for n in base)
        if target == base:
            target = (2 * base[0], *base[1:])
        yield Drawn(seed, number, plan, base, target)


def _plan(rng: random.Random) -> Plan:
    def even() -> bool:
        return rng.random() < 0.5

    def block() -> BlockPlan:
        residual, side_by_side = rng.random() < 0.75, even()
        layers = [rng.choice(get_args(Layer)) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        if not side_by_side and len(set(layers)) == 1:
            del layers[1:]  # as blocks of one layer each: nothing tells where a block begins
        return BlockPlan(
            tuple(layers),
            side_by_side=side_by_side,
            residual=residual,
            before=residual and even(),
            behind=rng.random() < 0.25,
            factors=residual and rng.random() < 0.25,
        )

    return Plan(
        tuple((block(), rng.choice((6, 8))) for _ in range(rng.choice((1, 1, 2, 3)))),
        norm=rng.choice(get_args(Norm)),
        activation=rng.choice(("tanh", "relu", "silu")),
        bias=even(),
        stem=rng.choice((1, 1, 2)),
        positions=rng.random() < 0.25,
        last_norm=even(),
        mean=even(),
        head=rng.choice((1, 1, 2)),
    )


class Branch(nn.Module):
    """One layer of a block."""

    def __init__(self, layer: Layer, plan: Plan, width: int) -> None:
        super().__init__()
        self.layer, self.act = layer, getattr(nn.functional, plan.activation)

        def linear(into: int, out: int) -> nn.Linear:
            return nn.Linear(into, out, plan.bias)

        if layer == "linear":
            self.map: nn.Module = linear(width, width)
        elif layer == "convolution":
            self.map = nn.Conv1d(width, width, 3, padding=1, bias=plan.bias)
        elif layer == "attention":
            self.query, self.key = linear(width, width), linear(width, width)
            self.value, self.out = linear(width, width), linear(width, width)
        else:
            self.up, self.down = linear(width, 2 * width), linear(2 * width, width)
            if layer == "gated":
                self.gate = linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer == "linear":
            return self.act(self.map(x))
        if self.layer == "convolution":
            return self.act(self.map(x.mT).mT)
        if self.layer == "attention":
            heard = nn.functional.scaled_dot_product_attention(
                self.query(x), self.key(x), self.value(x)
            )
            return self.out(heard)
        if self.layer == "gated":
            return self.down(self.act(self.gate(x)) * self.up(x))
        return self.down(self.act(self.up(x)))


class Block(nn.Module):
    """Branches, with what stands around each."""

    def __init__(self, block: BlockPlan, plan: Plan, width: int) -> None:
        super().__init__()
        self.plan = block
        for letter, layer in zip(LETTERS, block.branches, strict=False):
            setattr(self, letter, Branch(layer, plan, width))
            if block.before:
                setattr(self, f"{letter}_before", _norm(plan, width))
            if block.behind:
                setattr(self, f"{letter}_behind", _norm(plan, width))
            if block.factors:
                setattr(self, f"{letter}_factors", nn.Parameter(torch.full((width,), 0.5)))

    def forward(self, x: Tensor) -> Tensor:
        letters = LETTERS[: len(self.plan.branches)]
        if self.plan.side_by_side:
            found = torch.stack([self._branch(letter, x) for letter in letters]).sum(0)
            return x + found if self.plan.residual else found
        for letter in letters:
            found = self._branch(letter, x)
            x = x + found if self.plan.residual else found
        return x

    def _branch(self, letter: str, x: Tensor) -> Tensor:
        if self.plan.before:
            x = getattr(self, f"{letter}_before")(x)
        x = getattr(self, letter)(x)
        if self.plan.behind:
            x = getattr(self, f"{letter}_behind")(x)
        return x * getattr(self, f"{letter}_factors") if self.plan.factors else x


class Network(nn.Module):
    """A plan at some depths."""

    def __init__(self, plan: Plan, depths: Sequence[int]) -> None:
        super().__init__()
        self.plan, self.act = plan, getattr(nn.functional, plan.activation)
        widths = [width for _, width in plan.stages]
        self.stem = nn.Linear(FEATURES, widths[0], plan.bias)
        if plan.stem == 2:
            self.second_stem = nn.Linear(widths[0], widths[0], plan.bias)
        if plan.positions:
            self.positions = nn.Parameter(torch.randn(5, widths[0]) / 10)
        for letter, (block, width), depth in zip(LETTERS, plan.stages, depths, strict=False):
            setattr(self, letter, nn.ModuleList(Block(block, plan, width) for _ in range(depth)))
        for letter, width, after in zip(LETTERS, widths, widths[1:], strict=False):
            setattr(self, f"behind_{letter}", nn.Linear(width, after, plan.bias))
        if plan.last_norm:
            self.last_norm = _norm(plan, widths[-1])
        if plan.head == 2:
            self.first_head = nn.Linear(widths[-1], widths[-1], plan.bias)
        self.head = nn.Linear(widths[-1], 3, plan.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.plan.stem == 2:
            x = self.second_stem(self.act(x))
        if self.plan.positions:
            x = x + self.positions
        stages = LETTERS[: len(self.plan.stages)]
        for letter in stages:
            for block in getattr(self, letter):
                x = block(x)
            if letter != stages[-1]:
                x = getattr(self, f"behind_{letter}")(x)
        if self.plan.last_norm:
            x = self.last_norm(x)
        if self.plan.mean:
            x = x.mean(1)
        if self.plan.head == 2:
            x = self.act(self.first_head(x))
        return self.head(x)


def _norm(plan: Plan, width: int) -> nn.Module:
    return nn.LayerNorm(width) if plan.norm == "layer" else nn.RMSNorm(width)


class Nameless(nn.Module):
    """A network whose parameters are its own, ``p0``, ``p1``, and in no module of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {name: f"p{i}" for i, (name, _) in enumerate(network.named_parameters())}
        for name, parameter in network.named_parameters():
            self.register_parameter(self.names[name], parameter)
        self._network = [network.to_empty(device="meta")]

    def forward(self, x: Tensor) -> Tensor:
        own: dict[str, Tensor] = {name: self.get_parameter(p) for name, p in self.names.items()}
        return functional_call(self._network[0], own, (x,))


def side(one: Drawn, depths: Depths, named: bool) -> tuple["nx.DiGraph", dict[str, str]]:
    """Capture a network's parameter graph; its parameters, and what names of modules call them."""
    torch.manual_seed(0)
    network: nn.Module = Network(one.plan, depths)
    names = {name: name for name, _ in network.named_parameters()}
    if not named:
        network = Nameless(network)
        names = {own: name for name, own in network.names.items()}
    parts = ["drawn", one.seed, one.number, *depths, "named" if named else "nameless"]
    return captured("-".join(map(str, parts)), lambda: network, (entries(),)), names


def outcome(network: Drawn, names: Names) -> tuple[Verdict, str]:
    """Align the two depths, and compare with what the names of modules tell."""
    base, of_base = side(network, network.base, names != "none")
    target, of_target = side(network, network.target, names == "both")
    expected = expected_shares(
        [of_base[n] for n in used(base)], [of_target[n] for n in used(target)], {}
    )
    try:
        matches = align(base, target)
    except MatchError as error:
        return "refused", str(error)
    found = {}
    for own, match in matches.items():
        answers = tuple((of_base[name], share) for name, share in match.base)
        found[of_target[own]] = Match(of_target[own], answers, match.doubt)
    return held(found, expected)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what came of each network that is not matched as built; exit code 1 if any is wrong."""
    parser = argparse.ArgumentParser(prog="python -m zoo.drawn", description=__doc__)
    parser.add_argument("--names", choices=get_args(Names), nargs="+", default=get_args(Names))
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of networks")
    options = parser.parse_args(arguments)
    wrong = 0
    for names in options.names:
        counts: Counter[Verdict] = Counter()
        for network in drawn(options.seed, options.count):
            if options.only and network.number not in options.only:
                continue
            verdict, message = outcome(network, names)
            counts[verdict] += 1
            if verdict != "right":
                depths = f"{network.base} to {network.target}"
                told = message.splitlines()[0][:200]
                print(f"{names} {network.number} {depths} {verdict}: {told}", flush=True)
        print(f"names in {names}: {listed(counts)}; {alarms(counts)}", flush=True)
        wrong += counts["wrong"]
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
