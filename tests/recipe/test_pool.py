"""The probe pool: what people hold in their hands becomes batches, and nothing else moves."""

import itertools
import random
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import flerm_fx
from flerm_fx.model.inputs import batch_size
from flerm_fx.recipe.pool import BATCHES, probe_batch, probe_pool
from tests.cases import features

X, Y = features(96, 6), torch.arange(96) % 3


def drawn(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


def net(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return drawn(width)


class Takes(nn.Module):
    """A net whose ``forward`` is one of several that people write."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = net(width)


class LossFirst(Takes):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.net(x)
        return nn.functional.cross_entropy(z, y), z


class LossIfTargets(Takes):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        z = self.net(x)
        return z, None if targets is None else nn.functional.cross_entropy(z, targets)


class Masked(Takes):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        z: Tensor = self.net(x)
        return z if mask is None else z * mask[:, None]


class Anything(Takes):
    def forward(self, *args: Any) -> Tensor:
        return self.net(*args)  # type: ignore[no-any-return]


class Labelled(Takes):
    """As a model of transformers."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        z = self.net(x)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(z, labels)}
        return {**loss, "logits": z}


def loader(shuffle: bool = False, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=shuffle, **options)


def record(model: nn.Module, *pool: Any, **options: Any) -> flerm_fx.BaseProfile:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return flerm_fx.record(model, optimizer, *pool, settle=2, method="exact", **options).profile


def same(one: flerm_fx.BaseProfile, other: flerm_fx.BaseProfile) -> bool:
    return one.loss == other.loss and list(one.start.values()) == list(other.start.values())


def separate() -> tuple[list[Tensor], list[Tensor]]:
    return list(X.split(16)), list(Y.split(16))


@pytest.mark.parametrize(
    "pool",
    [
        loader,
        lambda: list(loader()),
        lambda: list(zip(*separate(), strict=True)),
        lambda: zip(*separate(), strict=True),
        lambda: [{"input": x, "labels": y} for x, y in loader()],
        lambda: [UserDict({"input": x, "labels": y}) for x, y in loader()],
    ],
    ids=["DataLoader", "lists", "pairs", "iterator", "dicts", "mappings"],
)
def test_pairs_are_recorded_as_separate_inputs_and_targets_are(pool: Any, tmp_path: Any) -> None:
    expected = record(net(), *separate())
    found = record(net(), pool())
    assert same(found, expected)
    assert len(found.pool) == 6
    found.save(tmp_path / "base.safetensors")
    assert len(flerm_fx.BaseProfile.load(tmp_path / "base.safetensors").pool) == 6


def test_one_batch_may_be_a_pair_or_a_mapping() -> None:
    expected = record(net(), X[:16], Y[:16])
    assert same(record(net(), (X[:16], Y[:16])), expected)
    assert same(record(net(), UserDict({"input": X[:16]}), Y[:16]), expected)
    assert same(record(net(), {"input": X[:16], "labels": Y[:16]}), expected)
    assert batch_size(UserDict({"x": X, "nested": UserDict({"y": Y})})) == 96  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LossFirst, LossIfTargets, Labelled])
def test_a_model_that_takes_its_targets_returns_its_own_loss(kind: type[Takes]) -> None:
    """Pairs are its arguments; what it returns without dimensions is a loss, and no output."""
    expected = record(net(), *separate())
    found = record(kind(), loader())
    assert found.loss == "output.loss"
    assert list(found.start.values()) == list(expected.start.values())


def test_dicts_go_whole_to_a_model_that_takes_labels() -> None:
    found = record(Labelled(), [{"x": x, "labels": y} for x, y in loader()])
    assert found.loss == "output.loss"
    assert set(found.pool[0][0]) == {"x", "labels"}
    assert list(found.start.values()) == list(record(net(), *separate()).start.values())


def test_pairs_that_may_be_either_are_asked_for_apart() -> None:
    masks = torch.ones(96)
    for model in (Masked(), Anything()):
        with pytest.raises(flerm_fx.InputError, match=r"batch 0 of inputs holds 2 .*forward\(.*ta"):
            record(model, DataLoader(TensorDataset(X, masks), batch_size=16))
    found = record(Anything(), *separate())
    assert list(found.start.values()) == list(record(net(), *separate()).start.values())


@pytest.mark.parametrize(
    "pool,message",
    [
        (TensorDataset(X, Y), "got TensorDataset; a Dataset holds single examples: pass a DataLo"),
        (X.numpy(), "inputs is a ndarray; expected torch's tensors"),
        (None, "inputs must be a tensor, .* a DataLoader or another iterable, got NoneType"),
        ("abc", "got str"),
        ([], "the list of inputs is empty; pass at least one batch"),
        (iter(()), "is empty; pass at least one batch"),
        ([(X, Y, Y)], r"holds 3 values \(a Tensor\), which Sequential.forward\(input\) does"),
        (
            [(X.numpy(), Y.numpy())],
            r"batch 0 of inputs holds 2 values \(a ndarray\).*expected its arguments as tensors",
        ),
        ([(X, Y), X], "batch 1 of inputs has no targets, and others have"),
        (
            [{"input": X, "labels": Y, "text": "a"}],
            "batch 0 of inputs has 'text', which Sequ",
        ),
        ([{"x": X}], r"batch 0 of inputs has 'x', which Sequential.forward\(input\) does not take"),
        ([{"input": [[1, 2]]}], "hold no tensor; .* rows of a dataset go through a DataLoader"),
        ([(X, Y[:5])], r"targets of shape \(5,\) do not go with a batch of 96"),
    ],
)
def test_what_is_no_pool_is_named(pool: Any, message: str) -> None:
    model = net()
    before = torch.get_rng_state()
    with pytest.raises(flerm_fx.InputError, match=message):
        record(model, pool)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_batch_is_warned_of_unless_the_first_step_is_meant(
    recwarn: pytest.WarningsRecorder,
) -> None:
    model = net()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match="single batch, .* some 20 batches, .* or settle=0 if"):
        assert flerm_fx.record(model, adam, X, Y, method="exact").profile.settle == 0
    flerm_fx.record(model, adam, X, Y, settle=0, method="exact")
    assert flerm_fx.record(model, adam, loader(), method="exact").profile.settle == 25
    assert not recwarn.list
    with pytest.warns(UserWarning, match="single batch") as warned:
        flerm_fx.record_seeds(
            drawn,
            lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
            X,
            Y,
            seeds=2,
            method="exact",
        )
    assert len(warned) == 1


def test_as_many_targets_as_batches_are_asked_for() -> None:
    inputs, targets = separate()
    with pytest.raises(flerm_fx.InputError, match="inputs holds 6 batches, so .* of as many .*t 5"):
        record(net(), inputs, targets[:5])
    with pytest.raises(flerm_fx.InputError, match="so targets must be .*, got Tensor"):
        record(net(), inputs, Y)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Counts the examples that are taken."""

    taken = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in itertools.count():
            self.taken += 1
            yield X[index % 96], Y[index % 96]


def test_an_endless_loader_is_read_once_and_no_further_than_is_used() -> None:
    data = Endless()
    pool = probe_pool(net(), DataLoader(data, batch_size=4))
    assert len(pool) == BATCHES == 21
    assert data.taken == 4 * 21
    batches = iter(DataLoader(Endless(), batch_size=4))
    probe_pool(net(), batches)
    # An iterator goes on behind them.
    assert torch.equal(next(batches)[0], X[84:88])


@pytest.mark.parametrize("own", [False, True])
def test_shuffling_leaves_the_random_state_as_it_was(own: bool) -> None:
    generator = torch.Generator().manual_seed(5) if own else None
    data, model = loader(shuffle=True, generator=generator), net()
    torch.manual_seed(7)
    before = torch.get_rng_state(), generator and generator.get_state()
    pool = probe_pool(model, data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert generator is None or torch.equal(generator.get_state(), before[1])
    # So that the run's first epoch is the one that it would have been.
    assert all(torch.equal(a[0], b[0]) for a, b in zip(pool, data, strict=True))
    assert not torch.equal(pool[0][0], X[:16])


def test_a_loader_of_accelerate_is_read_beneath_its_wrapper() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(loader(shuffle=True))
    assert len(probe_pool(net(), prepared)) == 6
    assert not accelerator.gradient_state.in_dataloader
    assert probe_pool(net(), prepared)[0][0].shape == (16, 6)


def test_a_loop_around_reading_goes_on_where_it_was() -> None:
    data = loader(num_workers=1, persistent_workers=True)
    seen = []
    for x, _ in data:
        seen.append(x)
        if len(seen) == 2:
            assert len(probe_pool(net(), data)) == 6
    assert torch.equal(torch.cat(seen), X)


def test_batches_in_reused_memory_are_kept_apart() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        buffer = torch.zeros(16, 6)
        for x, y in loader():
            yield buffer.copy_(x), y

    assert torch.equal(torch.cat([x for x, _ in probe_pool(net(), batches())]), X)


def test_one_batch_of_what_has_several_is_the_first() -> None:
    plain, several = X[:16], (loader(), list(loader()), iter(loader()), [X[:16], X[16:32]])
    assert all(torch.equal(probe_batch(net(), pool), plain) for pool in several)  # type: ignore[arg-type]
    model = net()
    updates = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    expected = flerm_fx.measure(model, updates, plain, method="exact")
    for pool in (loader(), UserDict({"input": plain}), (plain, Y[:16])):
        assert flerm_fx.measure(model, updates, pool, method="exact") == expected
    assert flerm_fx.instrument(model, loader()).code == flerm_fx.instrument(model, plain).code


def test_compile_and_match_take_the_same() -> None:
    small, optimizer = net(), None
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    with flerm_fx.record(small, optimizer, *separate(), every=1, settle=2) as recorder:
        nn.functional.cross_entropy(small(X), Y).backward()
        optimizer.step()
    profile = recorder.profile
    inputs, targets = separate()
    expected = flerm_fx.compile(net(32), profile, inputs=inputs, targets=targets).multipliers
    assert flerm_fx.compile(net(32), profile, inputs=loader()).multipliers == expected
    found = []
    for pool in (X[:16], loader(), iter(loader()), {"input": X[:16]}):
        large = net(32)
        adam = torch.optim.Adam(large.parameters(), lr=1e-2)
        with flerm_fx.match(large, adam, profile, pool) as matcher:
            nn.functional.cross_entropy(large(X), Y).backward()
            adam.step()
        found.append(matcher.multipliers)
    assert all(multipliers == found[0] for multipliers in found)
    assert set(found[0].values()) != {1.0}


def test_a_loss_is_no_output() -> None:
    model = LossFirst()
    updates = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    plain = {name.removeprefix("net."): update for name, update in updates.items()}
    expected = flerm_fx.measure(model.net, plain, X, method="exact")
    found = flerm_fx.measure(model, updates, (X, Y), method="exact")
    for name, estimate in expected.items():
        assert found[f"net.{name}"].value == pytest.approx(estimate.value, rel=1e-5)

    class LossAlone(LossFirst):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, y)[0]

    with pytest.raises(flerm_fx.InputError, match="no floating tensor, batch first, got a "):
        flerm_fx.measure(LossAlone(), updates, (X, Y))


def test_a_sparse_tensor_is_refused_by_name() -> None:
    sparse = torch.eye(6).to_sparse()
    with pytest.raises(flerm_fx.InputError, match=r"inputs has the layout torch\.sparse_coo"):
        record(net(), sparse, Y[:6])


def test_reading_leaves_pythons_own_random_state() -> None:
    state = random.getstate()
    probe_pool(net(), loader(shuffle=True))
    assert random.getstate() == state


def test_a_dict_of_inputs_and_targets_by_other_names_is_told_how_to_become_pairs() -> None:
    model = net()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    with pytest.raises(flerm_fx.InputError, match=r"pairs, \[\(batch\['input'\], batch\['y'\]\) "):
        flerm_fx.record(model, adam, [{"input": X, "y": Y}] * 2)
