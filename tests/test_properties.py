"""Random small networks: matching and multipliers do not depend on how a model is written down."""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import flerm_fx
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.compiled import CompiledModel
from tests.cases import features, random_updates
from tests.rounding import rounding, terms

BLOCKS = ("plain", "residual", "gated", "branches", "shared")


@dataclass(frozen=True)
class Plan:
    """A network: a body of blocks, repeated in each of its stages as often as ``depths`` says."""

    body: tuple[str, ...]
    depths: tuple[int, ...]
    width: int

    def scaled(self, width: int, depth: int) -> "Plan":
        return Plan(self.body, tuple(depth * d for d in self.depths), self.width * width)


class Network(nn.Module):
    """Builds a plan; its modules can have any names and any order of registration."""

    def __init__(
        self, plan: Plan, name: Callable[[str], str] = str, backwards: bool = False
    ) -> None:
        super().__init__()
        self.plan = plan
        self.parts: dict[str, nn.Module] = {}
        torch.manual_seed(0)
        width = plan.width
        self._make("embed", nn.Linear(6, width))
        for stage, depth in enumerate(plan.depths):
            self._make(f"stages.{stage}.down", nn.Linear(width, width))
            if "shared" in plan.body:
                self._make(f"stages.{stage}.shared", nn.Linear(width, width))
            for index in range(depth):
                for at, kind in enumerate(plan.body):
                    self._make_block(kind, f"stages.{stage}.blocks.{index}.{at}", width)
        self._make("head", nn.Linear(width, 3))
        order = reversed(self.parts.items()) if backwards else self.parts.items()
        for full, part in order:
            self._register(name(full), part)

    def _make(self, name: str, part: nn.Module) -> None:
        self.parts[name] = part

    def _make_block(self, kind: str, name: str, width: int) -> None:
        if kind == "plain":
            self._make(f"{name}.fc", nn.Linear(width, width))
            return
        self._make(f"{name}.norm", nn.LayerNorm(width))
        if kind == "shared":
            return
        self._make(f"{name}.up", nn.Linear(width, width))
        if kind in ("gated", "branches"):
            self._make(f"{name}.gate", nn.Linear(width, width))
        if kind != "branches":
            self._make(f"{name}.down", nn.Linear(width, width, bias=False))

    def _register(self, path: str, part: nn.Module) -> None:
        *around, last = path.split(".")
        holder: nn.Module = self
        for step in around:
            if not hasattr(holder, step):
                holder.add_module(step, nn.Module())
            holder = getattr(holder, step)
        holder.add_module(last, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["embed"](x)
        for stage, depth in enumerate(self.plan.depths):
            x = self.parts[f"stages.{stage}.down"](x).relu()
            for index in range(depth):
                for at, kind in enumerate(self.plan.body):
                    x = self._block(kind, stage, f"stages.{stage}.blocks.{index}.{at}", x)
        return self.parts["head"](x)

    def _block(self, kind: str, stage: int, name: str, x: Tensor) -> Tensor:
        def part(role: str) -> nn.Module:
            return self.parts[f"{name}.{role}"]

        if kind == "plain":
            return part("fc")(x).tanh()
        h = part("norm")(x)
        if kind == "shared":
            return x + self.parts[f"stages.{stage}.shared"](h)
        if kind == "branches":
            return torch.maximum(part("up")(h), part("gate")(h).sigmoid())
        h = part("up")(h).tanh() * part("gate")(h) if kind == "gated" else part("up")(h).relu()
        return x + part("down")(h)


plans = st.builds(
    Plan,
    body=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3, unique=True).map(tuple),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple),
    width=st.sampled_from([4, 6]),
)
EXAMPLES = features(6, 6)
LABELS = torch.arange(6) % 3


def profile_of(plan: Plan) -> flerm_fx.BaseProfile:
    base = Network(plan)
    # Some of these networks pass on next to nothing; a smaller eps than usual is not in the way.
    optimizer = torch.optim.Adam(base.parameters(), lr=1e-3, eps=1e-25)
    return flerm_fx.record(base, optimizer, EXAMPLES, LABELS, method="exact").profile


def compiled(
    model: nn.Module, profile: flerm_fx.BaseProfile, doubtful: bool = False
) -> CompiledModel:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = flerm_fx.compile(model, profile, method="exact")
    if doubtful and all(issubclass(each.category, flerm_fx.MatchWarning) for each in caught):
        return found
    # A late start that multipliers move without end is warned of, and promises nothing.
    if any("late start did not settle" in str(each.message) for each in caught):
        reject()
    assert not caught, caught[0].message
    return found


def assert_conserved(compiled: CompiledModel, profile: flerm_fx.BaseProfile) -> None:
    given_away: Counter[str] = Counter()
    for match in compiled.matches.values():
        for name, share in match.base:
            given_away[name] += share  # type: ignore[assignment]
    assert given_away.keys() == set(profile.parameters)
    assert all(abs(mass - 1) < 1e-6 for mass in given_away.values())


@pytest.mark.parametrize(
    "examples", [3, pytest.param(40, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_networks(examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,  # a gate that draws anew passes or fails by luck
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plans, st.sampled_from([(1, 1), (3, 1), (1, 2), (2, 3)]))
    def check(plan: Plan, scale: tuple[int, int]) -> None:
        profile = profile_of(plan)
        itself = compiled(Network(plan), profile)
        near = rounding(2 * terms(itself))  # forward and tangent
        assert all(math.isclose(m, 1.0, rel_tol=near) for m in itself.multipliers.values())

        larger = plan.scaled(*scale)
        plain = compiled(Network(larger), profile)
        assert_conserved(plain, profile)
        assert all(check.passed for check in plain.check())

        secret: dict[str, str] = {}

        def flat(name: str) -> str:
            return secret.setdefault(name, f"p{len(secret)}")

        def in_flat(name: str) -> str:
            module, _, last = name.rpartition(".")
            return f"{flat(module)}.{last}"

        for variant, rename in (
            (Network(larger, backwards=True), str),
            (Network(larger, flat), in_flat),
            (nn.Sequential(Network(larger)), "0.".__add__),
        ):
            # Names without a tree may leave a choice, and then say so.
            found = compiled(variant, profile, doubtful=rename is in_flat)
            expected = {rename(name): m for name, m in plain.multipliers.items()}
            if not found.doubts:
                assert found.multipliers == pytest.approx(expected, rel=1e-4)

    check()


@pytest.mark.parametrize(
    "examples", [3, pytest.param(40, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_fslrs_of_random_networks(examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,  # a gate that draws anew passes or fails by luck
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plans)
    def check(plan: Plan) -> None:
        model = Network(plan)
        updates = random_updates(model)
        state = {name: p.detach() for name, p in model.named_parameters()}
        found = flerm_fx.measure(model, updates, EXAMPLES, method="exact")
        for name, update in updates.items():

            def moved(value: Tensor, name: str = name) -> Tensor:
                return torch.func.functional_call(model, {**state, name: value}, (EXAMPLES,))

            _, tangent = torch.func.jvp(moved, (state[name],), (update,))
            expected = float(tangent.square().mean().sqrt())
            assert found[name].value == pytest.approx(expected, rel=1e-4, abs=1e-7)

    check()


def test_a_sequential_flattened() -> None:
    def layers(width: int, depth: int) -> list[nn.Module]:
        torch.manual_seed(0)
        hidden = [[nn.Linear(width, width), nn.LayerNorm(width), nn.Tanh()] for _ in range(depth)]
        return [
            nn.Linear(6, width),
            *(nn.Sequential(*part) for part in hidden),
            nn.Linear(width, 3),
        ]

    def flat(parts: list[nn.Module]) -> nn.Sequential:
        return nn.Sequential(
            *(m for part in parts for m in (part if isinstance(part, nn.Sequential) else [part]))
        )

    base = nn.Sequential(*layers(4, 2))
    optimizer = torch.optim.Adam(base.parameters(), lr=1e-3)
    profile = flerm_fx.record(base, optimizer, EXAMPLES, LABELS, method="exact").profile
    nested = compiled(nn.Sequential(*layers(8, 3)), profile).multipliers
    flattened = compiled(flat(layers(8, 3)), profile).multipliers
    assert list(flattened.values()) == pytest.approx(list(nested.values()), rel=1e-5)


def test_the_graph_of_a_random_network_is_the_same_at_any_width() -> None:
    plan = Plan(("gated", "residual"), (2, 1), 4)
    one, other = (capture_graph(capture(Network(p), EXAMPLES)) for p in (plan, plan.scaled(3, 1)))
    assert dict(one.nodes(data=True)) == dict(other.nodes(data=True))
