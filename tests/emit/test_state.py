"""State dicts: right wherever they are loaded, and bit for bit where they go on."""

import copy
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.emit.module import ModuleEmitter, put_scales
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.emit.state import effective, packed_units, restored
from tests.cases import features

X, Y = features(8, 4), torch.arange(8) % 3


class Net(nn.Module):
    """Two layers with one weight, and one that is frozen."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(4, width)
        self.tied = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.tied[1].weight = self.tied[0].weight  # type: ignore[union-attr]
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.tied:
            x = layer(x.tanh())
        return self.head(self.frozen(x))  # type: ignore[no-any-return]


SCALES = {
    "first.weight": 0.3,
    "first.bias": 1.7,
    "tied.0.weight": 1 / 3,
    "tied.0.bias": 72.0,
    "tied.1.bias": 1.0,
    "head.weight": 0.0123,
    "head.bias": 5.1,
}
OTHERS = {name: 1.3 * s for name, s in SCALES.items()}


def forms(scales: dict[str, float], seed: int) -> Iterator[tuple[str, nn.Module]]:
    """A model with scales in each form, and without."""
    yield "graph", ScaledModel(Net(5, seed), scales)
    yield "module", ScaledModel(Net(5, seed), scales, ModuleEmitter)
    own = Net(5, seed)
    put_scales(own, scales)
    yield "own module", own
    yield "plain", Net(5, seed)


def form(name: str, scales: dict[str, float], seed: int = 0) -> nn.Module:
    return dict(forms(scales, seed))[name]


def old_state(name: str) -> dict[str, Any]:
    """As version 0.1.0 wrote it: stored weights, and scales in a dict or in scalars."""
    plain, state = Net(5).state_dict(), {}
    for key, value in plain.items():
        s = SCALES.get(key.replace("tied.1.weight", "tied.0.weight"))
        stored = value if s is None else value / s
        if name == "own module" and s is not None:
            path, _, leaf = key.rpartition(".")
            held = f"{path}.parametrizations.{leaf}"
            state[f"{held}.original"] = stored
            state[f"{held}.0._extra_state"] = torch.tensor(s, dtype=torch.float64)
        else:
            state[key] = stored
    if name != "own module":
        state["_extra_state"] = {"scales": dict(SCALES)}  # type: ignore[assignment]
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("s", [1.0, 0.5, 1 / 3, 72.01, 1e-4])
def test_stored_weights_come_back_bit_for_bit(dtype: torch.dtype, s: float) -> None:
    stored = torch.randn(10_001, dtype=dtype, generator=torch.Generator().manual_seed(0))
    stored[:3] = torch.tensor([0.0, -0.0, math.inf])
    weight = effective(stored, s)
    found = restored(weight, s, packed_units(stored, s))
    assert torch.equal(found, stored)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(restored(weight, s), stored, rtol=4 * eps, atol=0)


def test_units_of_other_weights_are_no_more_than_rounding() -> None:
    """Whoever edits the weights of a state dict gets those weights."""
    stored = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    units = packed_units(stored, 0.3)
    for weight in (torch.zeros(1000), stored.flip(0), torch.full((1000,), 3e38), 1e-44 * stored):
        found = restored(weight, 0.3, units)
        torch.testing.assert_close(found, weight / 0.3, rtol=16 * 2**-23, atol=1e-44)


@pytest.mark.parametrize("source", ["graph", "module", "own module"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_plain_model_loads_the_function_or_refuses(source: str, strict: bool) -> None:
    scaled, plain = form(source, SCALES), Net(5, seed=1)
    if strict:
        with pytest.raises(RuntimeError, match="_extra_state"):
            plain.load_state_dict(scaled.state_dict())
    missing, unexpected = plain.load_state_dict(scaled.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("_extra_state") for key in unexpected)
    torch.testing.assert_close(plain(X), Net(5)(X))


@pytest.mark.parametrize("source", ["graph", "module", "own module", "plain", "old", "old own"])
@pytest.mark.parametrize("into", ["graph", "module", "own module"])
def test_every_form_loads_every_form(source: str, into: str) -> None:
    if source.startswith("old"):
        state = old_state("own module" if source == "old own" else "graph")
    else:
        state = form(source, SCALES).state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    keys = set(state)
    model = form(into, OTHERS, seed=1)
    model.load_state_dict(state)
    assert set(state) == keys
    torch.testing.assert_close(model(X), Net(5)(X))
    if source != "plain":  # stored weights and scales are those that were saved
        expected = form(into, SCALES)
        for a, b in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(model(X), expected(X))


@pytest.mark.parametrize("name", ["graph", "module", "own module"])
def test_inside_of_another_module_and_moved(name: str) -> None:
    whole = nn.ModuleDict({"net": form(name, SCALES), "other": nn.Linear(2, 2)})
    again = nn.ModuleDict({"net": form(name, OTHERS, seed=1), "other": nn.Linear(2, 2)})
    again.load_state_dict(copy.deepcopy(whole).state_dict(), assign=True)
    torch.testing.assert_close(again["net"](X), Net(5)(X))
    double = {key: 2 * value for key, value in whole.state_dict().items()}
    again.load_state_dict(double)
    for (key, value), old in zip(
        again.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        if not key.endswith("_extra_state"):
            torch.testing.assert_close(value, 2 * old)


@pytest.mark.parametrize("name", ["graph", "module", "own module"])
def test_what_is_not_loaded_keeps_its_function(name: str) -> None:
    state = form(name, SCALES).state_dict()
    for key in ("head.weight", "first.bias"):
        del state[key]
    state["tied.0.bias"] = torch.zeros(7)
    model, before = form(name, OTHERS, seed=1), Net(5, seed=1).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state, strict=False)
    plain, loaded = Net(5, seed=2), Net(5).state_dict()
    plain.load_state_dict(model.state_dict(), strict=False)
    for key, value in plain.state_dict().items():
        kept = key in ("head.weight", "first.bias", "tied.0.bias")
        torch.testing.assert_close(value, (before if kept else loaded)[key])


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0, math.inf])
@pytest.mark.parametrize("name", ["graph", "module", "own module", "old", "old own"])
def test_scales_that_are_none_are_refused_by_name(name: str, bad: float) -> None:
    new = not name.startswith("old")
    state = (
        form(name, SCALES).state_dict()
        if new
        else old_state("own module" if name == "old own" else "graph")
    )
    if name == "old":
        state["_extra_state"]["scales"]["head.weight"] = bad
    elif name in ("own module", "old own"):
        extra = state["head.parametrizations.weight.0._extra_state"]
        extra[... if extra.ndim == 0 else 2] = bad
    else:
        state["_extra_state"][3 + sorted(SCALES).index("head.weight")] = bad
    into = "own module" if "own" in name else "graph" if name == "old" else name
    model = form(into, OTHERS, seed=1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(flerm_fx.InputError, match=r"the scale of 'head\.weight' .* above 0"):
        model.load_state_dict(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def compiled(emit: Any = "graph", width: int = 6) -> tuple[nn.Module, flerm_fx.CompiledModel]:
    small, model = Net(4), Net(width, seed=1)
    trainable = [p for p in small.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trainable, lr=1e-2)
    profile = flerm_fx.record(small, adam, X, Y, method="exact").profile
    return model, flerm_fx.compile(model, profile, emit=emit, method="exact")


def test_multipliers_that_are_none_are_refused_by_name() -> None:
    _, model = compiled()
    scales = dict(model.scales)
    for bad in (math.nan, 0.0, -1.0):
        old = {"scales": scales, "multipliers": {**model.multipliers, "head.bias": bad}}
        new = model.get_extra_state().clone()
        new[3 + len(scales) + sorted(scales).index("head.bias")] = bad
        for extra in (old, new):
            state = {**model.state_dict(), "_extra_state": extra}
            for load in (
                lambda s: model.load_state_dict(s),
                lambda s: model.set_extra_state(s["_extra_state"]),
            ):
                with pytest.raises(flerm_fx.InputError, match=r"multiplier of 'head\.bias'"):
                    load(state)
    assert model.scales == scales


def test_extra_state_of_another_model_is_refused() -> None:
    _, model = compiled()
    other = ScaledModel(nn.Linear(4, 3), {"weight": 2.0, "bias": 0.5}).state_dict()
    for state in (other, {"_extra_state": torch.zeros(3)}):
        with pytest.raises(flerm_fx.InputError, match=r"fold\(\)\.state_dict\(\)"):
            model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_tensors_that_safetensors_saves(emit: str, tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    model, scaled = compiled(emit)
    source = scaled if emit == "graph" else model
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    plain = Net(6, seed=2)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    torch.testing.assert_close(plain(X), scaled(X))
    _, again = compiled(emit)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(X), scaled(X))
