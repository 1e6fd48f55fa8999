"""Measuring leaves no trace: plain attributes and random state are as they were."""

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.model.randomness import preserved_rng, rng_state, seed_all
from flerm_fx.model.untouched import untouched
from tests.cases import features

X, Y = features(8, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


class Meter:
    def __init__(self) -> None:
        self.total, self.values = 0.0, []  # type: ignore[var-annotated]


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Keeps(nn.Module):
    """Writes to attributes of many kinds as it runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.calls = 0
        self.last: Tensor | None = None
        self.seen, self.recent = [0], deque([0], maxlen=4)
        self.kinds, self.count = {"a"}, Counter("a")
        self.nested: dict[str, list[int]] = {"a": []}
        self.plain, self.array = torch.zeros(2), np.zeros(2)
        self.meter, self.slotted = Meter(), Slotted()
        self.generator, self.random = torch.Generator().manual_seed(0), random.Random(0)
        self.numpy = np.random.default_rng(0)
        self.hidden = [nn.BatchNorm1d(5, affine=False)]

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        self.calls += 1
        self.last = z
        self.seen.append(1)
        self.recent.append(1)
        self.kinds.add("b")
        self.count["b"] += 1
        self.nested["a"].append(1)
        self.nested["b"] = []
        self.plain += 1
        self.array += 1
        self.meter.total += 1
        self.meter.values.append(1)
        self.slotted.n += 1
        torch.rand(1, generator=self.generator)
        self.random.random()
        self.numpy.random()
        self.added = True
        self.hidden[0](z)
        return self.head(z)  # type: ignore[no-any-return]

    def kept(self) -> list[Any]:
        return [
            self.calls,
            self.last,
            list(self.seen),
            list(self.recent),
            set(self.kinds),
            Counter(self.count),
            {key: list(value) for key, value in self.nested.items()},
            self.plain.tolist(),
            self.array.tolist(),
            self.meter.total,
            list(self.meter.values),
            self.slotted.n,
            self.generator.get_state().tolist(),
            self.random.getstate(),
            self.numpy.bit_generator.state,
            hasattr(self, "added"),
            self.hidden[0].running_mean.tolist(),
        ]


def test_what_a_run_writes_to_attributes_is_put_back() -> None:
    model = Keeps()
    before, held = model.kept(), (model.seen, model.plain, model.meter)
    with untouched(model):
        model(X)
        model(X)
        assert all(a != b for a, b in zip(model.kept()[2:15], before[2:15], strict=True))
    assert model.kept() == before
    assert all(a is b for a, b in zip((model.seen, model.plain, model.meter), held, strict=True))


def measure(model: nn.Module) -> None:
    flerm_fx.measure(model, {"head.bias": torch.ones(3)}, X)


def record(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with flerm_fx.record(model, optimizer, X, Y, every=1):
        inner, head = model.inner, model.head
        nn.functional.cross_entropy(head(inner(X)), Y).backward()  # type: ignore[operator]
        optimizer.step()


@pytest.mark.parametrize("call", [measure, record], ids=["measure", "record"])
@pytest.mark.filterwarnings("ignore::flerm_fx.CaptureWarning")
def test_so_measuring_leaves_them(call: Callable[[nn.Module], None]) -> None:
    model = Keeps()
    before = model.kept()
    call(model)
    assert model.kept() == before


class Draws(nn.Module):
    """Scales its output by draws from outside of torch."""

    def __init__(self, width: int, source: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        draw = random.random() if self.source == "random" else float(np.random.rand())
        return self.head(self.inner(x).relu() * (1 + 0.1 * draw))  # type: ignore[no-any-return]


SOURCES = {"random": "Python's random", "numpy": "numpy.random"}


@pytest.mark.parametrize("source", SOURCES)
def test_recording_a_model_that_draws_outside_of_torch_leaves_training_as_it_was(
    source: str,
) -> None:
    def trained(recorded: bool) -> tuple[Tensor, Any]:
        random.seed(3)
        np.random.seed(3)
        model = Draws(5, source)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        recorder = None
        if recorded:
            with pytest.warns(flerm_fx.CaptureWarning, match=f"draws from {SOURCES[source]}"):
                recorder = flerm_fx.record(model, optimizer, X, Y, every=1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
        if recorder is not None:
            recorder.close()
        state = random.getstate() if source == "random" else np.random.get_state()[1].tolist()
        return torch.cat([p.detach().flatten() for p in model.parameters()]), state

    with preserved_rng():
        (plain, state), (recorded, after) = trained(False), trained(True)
    assert torch.equal(plain, recorded)
    assert state == after


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.filterwarnings("ignore::flerm_fx.CaptureWarning")
def test_the_start_of_a_model_that_draws_repeats(source: str) -> None:
    starts = []
    for seed in (1, 2):
        with preserved_rng():
            random.seed(seed)
            np.random.seed(seed)
            model = Draws(5, source)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            pool, targets = [X, X.flip(0)], [Y, Y.flip(0)]
            recorder = flerm_fx.record(model, optimizer, pool, targets, settle=4)
            starts.append(recorder.profile.output_rms)
    assert starts[0] == starts[1]


def test_a_graph_does_not_hold_one_draw_for_good() -> None:
    with preserved_rng(), pytest.warns(flerm_fx.CaptureWarning, match="one draw for good"):
        assert capture(Draws(5, "random"), X).graph_module is None


def test_random_states_are_told_apart_and_gone_back_to() -> None:
    with preserved_rng():
        before = rng_state()
        seed_all(5)
        one = (torch.rand(2), random.random(), np.random.rand())
        seed_all(5)
        two = (torch.rand(2), random.random(), np.random.rand())
        assert torch.equal(one[0], two[0]) and one[1:] == two[1:]
        assert not before.same(rng_state())
    assert before.same(rng_state())
    with preserved_rng():
        np.random.randn()  # draws two, and keeps one
        assert before.foreign(rng_state()) == "numpy.random"


def test_a_tensor_whose_memory_is_freed_has_nothing_to_keep() -> None:
    """As FSDP2 keeps what it gathered; to read it ends the process."""
    model = nn.Linear(3, 2)
    model.gathered = torch.ones(100, 100)
    model.gathered.untyped_storage().resize_(0)
    with untouched(model):
        model.gathered.untyped_storage().resize_(4 * 100 * 100)
        model.gathered.fill_(2.0)
    assert model.gathered[0, 0] == 2.0
