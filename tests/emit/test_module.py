"""Scale nodes on the model itself: every way into it sees them, and they come off again."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.emit.module import put_scales, scales_of, take_scales
from flerm_fx.emit.scaled import ScaledModel
from tests.cases import CASES, features, make
from tests.rounding import assert_close, rounding, terms


def random_scales(model: nn.Module) -> dict[str, float]:
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    return {n: 2.0 ** ((7 * i) % 5 - 2.5) for i, n in enumerate(names)}


def logits(output: Any) -> torch.Tensor:
    return output["logits"] if isinstance(output, dict) else output  # type: ignore[no-any-return]


def recorded(model: nn.Module, x: Any, y: torch.Tensor) -> flerm_fx.BaseProfile:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return flerm_fx.record(model, optimizer, x, y, method="exact").profile


def mlp(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


X, Y = features(8, 4), torch.arange(8) % 3


@pytest.mark.parametrize("name", CASES)
def test_the_function_and_the_parameters_identities_are_kept_and_it_comes_off(name: str) -> None:
    model, inputs = make(name)
    before = copy.deepcopy(model)
    expected = logits(model(inputs)).detach()
    model.load_state_dict(before.state_dict())  # running statistics
    held = {id(p) for p in model.parameters()}
    scales = random_scales(model)
    put_scales(model, scales)
    assert {id(p) for p in model.parameters()} == held
    assert scales_of(model) == scales
    found = logits(model(inputs))
    count = terms(before) + inputs.numel()  # norms also sum over the batch
    assert (found - expected).norm() <= rounding(count) * expected.norm()
    take_scales(model)
    assert not scales_of(model)
    assert {id(p) for p in model.parameters()} == held
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    after = dict(model.named_parameters())
    for n, parameter in before.named_parameters():
        assert torch.allclose(after.pop(n), parameter, rtol=rounding(2), atol=0), n
    assert not after


class PassesOn(nn.Module):
    """Has every attribute of the module in it, as the wrappers of peft do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_wrapper_that_passes_attributes_on_has_no_scales_of_its_own() -> None:
    model = nn.Sequential(PassesOn(nn.Linear(4, 3)))
    scales = {"0.inner.weight": 2.0, "0.inner.bias": 0.5}
    put_scales(model, scales)
    assert scales_of(model) == scales
    take_scales(model)
    assert {n for n, _ in model.named_parameters()} == set(scales)


def test_taking_them_off_a_copy_leaves_the_original() -> None:
    model = mlp(5)
    put_scales(model, random_scales(model))
    twin = copy.deepcopy(model)
    take_scales(twin)
    assert_close(twin(X), model(X), terms(twin))
    assert scales_of(model)


def test_a_compiled_module_trains_as_the_graph_does_and_checks() -> None:
    profile = recorded(mlp(6), X, Y)
    weights = []
    for emit in ("module", "graph"):
        model = mlp(24)
        compiled = flerm_fx.compile(model, profile, emit=emit, method="exact")  # type: ignore[arg-type]
        assert all(check.passed for check in compiled.check())
        assert compiled.graph_module is not None
        assert "scale(" in compiled.graph_module.code
        trained = model if emit == "module" else compiled
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(X), Y).backward()
            optimizer.step()
        assert_close(compiled(X), trained(X), terms(trained))
        weights.append(dict(compiled.fold().named_parameters()))
        assert type(compiled.fold()[0]) is nn.Linear  # type: ignore[index]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-4, atol=1e-6), name


def test_a_gpt2_generates_and_is_saved_as_before(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")

    def gpt2(width: int) -> Any:
        torch.manual_seed(width)
        config = transformers.GPT2Config(
            vocab_size=31,
            n_positions=16,
            n_embd=width,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return transformers.GPT2LMHeadModel(config)

    tokens = torch.randint(31, (4, 8), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "labels": tokens, "use_cache": False}
    small = gpt2(8)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    profile = flerm_fx.record(small, optimizer, inputs).profile
    model = gpt2(16)
    plain = copy.deepcopy(model).eval()
    compiled = flerm_fx.compile(model, profile, emit="module")
    model.eval()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = model.generate(tokens[:, :3], **options)
    assert torch.equal(found, plain.generate(tokens[:, :3], **options))
    # Tied: one stored weight, which both its readers see.
    assert model.lm_head.parametrizations.weight.original is (
        model.transformer.wte.parametrizations.weight.original
    )
    compiled.fold().save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    found, expected = again.transformer.wte.weight, plain.transformer.wte.weight
    assert torch.allclose(found, expected, rtol=rounding(2), atol=0)


def compiled_forms() -> Iterator[tuple[str, flerm_fx.CompiledModel, nn.Module]]:
    profile = recorded(mlp(6), X, Y)
    for emit in ("graph", "module", "param_groups"):
        model = mlp(24)
        yield emit, flerm_fx.compile(model, profile, emit=emit), model  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["graph", "module", "param_groups", "own module", "plain"])
def test_state_dicts_load_across_forms(source: str) -> None:
    torch.manual_seed(9)
    weights = {n: torch.randn_like(p) for n, p in mlp(24).named_parameters()}
    plain = mlp(24)
    plain.load_state_dict(weights)
    states = {"plain": plain.state_dict()}
    for emit, compiled, model in compiled_forms():
        compiled.load_state_dict(weights)
        assert_close(compiled(X), plain(X), terms(plain))
        states[emit] = compiled.state_dict()
        if emit == "module":
            states["own module"] = model.state_dict()
    assert set(states["module"]) == {*weights, "_extra_state"}
    for emit, compiled, _ in compiled_forms():
        compiled.load_state_dict(states[source])
        assert_close(compiled(X), plain(X), terms(plain))
        folded = compiled.fold()
        for name, value in weights.items():
            found = folded.state_dict()[name]
            assert torch.allclose(found, value, rtol=rounding(4), atol=0), (emit, name)


def test_weights_that_are_assigned_are_effective() -> None:
    model = mlp(5)
    put_scales(model, random_scales(model))
    wanted = torch.randn(5, 4)
    model[0].weight = wanted  # type: ignore[index]
    assert torch.allclose(model[0].weight, wanted, rtol=rounding(2), atol=0)  # type: ignore[index]


def test_a_scale_of_1_costs_nothing_and_casting_rounds_no_scale() -> None:
    model = mlp(5)
    put_scales(model, dict.fromkeys(random_scales(model), 1.0))
    assert model[0].weight is model[0].parametrizations.weight.original  # type: ignore[index]
    model = mlp(5)
    scales = dict.fromkeys(random_scales(model), 1.0 + 2.0 ** (-20))
    put_scales(model, scales)
    model.to(torch.bfloat16)
    assert scales_of(model) == scales


class Iterates(nn.Module):
    """Takes its weight by iterating over parameters, past what parametrizations change."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.first = nn.Linear(4, width)
        self.second = nn.Linear(width, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x).tanh() @ next(self.second.parameters()).T


def test_a_module_that_passes_its_attributes_by_is_refused_as_it_was() -> None:
    profile = recorded(Iterates(6), X, Y)
    model = Iterates(24)
    before, types = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with pytest.raises(flerm_fx.InputError, match="does not read its weights as attributes"):
        flerm_fx.compile(model, profile, emit="module")
    assert [type(m) for m in model.modules()] == types
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.allclose(value, before[name], rtol=rounding(2), atol=0)


def test_recurrent_networks() -> None:
    class Recurrent(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(width)
            self.lstm = nn.LSTM(4, width, batch_first=True)
            self.head = nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]

    x = features(8, 5, 4)
    profile = recorded(Recurrent(6), x, Y)
    model = Recurrent(12)
    expected = model(x).detach()
    compiled = flerm_fx.compile(model, profile, emit="module")
    assert_close(model(x), expected, x.shape[1] * terms(compiled))
    model(x).sum().backward()
    assert all(p.grad is not None for p in compiled.parameters())


def test_what_has_scales_is_not_compiled_again_and_has_no_groups() -> None:
    profile = recorded(mlp(6), X, Y)
    model = mlp(24)
    compiled = flerm_fx.compile(model, profile, emit="module")
    with pytest.raises(flerm_fx.InputError, match=r"scale nodes now: train it with base_groups"):
        compiled.param_groups(1e-2)
    for again in (model, compiled):
        with pytest.raises(flerm_fx.InputError, match="has scale nodes already"):
            flerm_fx.compile(again, profile)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_clipping_in_effective_units(norm_type: float) -> None:
    plain = mlp(24)
    scaled = ScaledModel(mlp(24), random_scales(plain))
    module = mlp(24)
    put_scales(module, random_scales(module))
    updates = []
    for model in (plain, scaled, module):
        (100 * nn.functional.cross_entropy(model(X), Y)).backward()
        found = flerm_fx.clip_grad_norm_(model, 0.5, norm_type)
        scales = random_scales(plain) if model is not plain else {}
        names = dict(plain.named_parameters())
        stored = dict(scaled.named_parameters()) if model is not module else {}
        grads = {}
        for name in names:
            p = stored.get(name, names[name]) if model is scaled else names[name]
            if model is module:
                path, _, leaf = name.rpartition(".")
                p = module.get_submodule(path).parametrizations[leaf].original  # type: ignore[union-attr, index]
            grads[name] = p.grad / scales.get(name, 1.0)  # type: ignore[operator]
        updates.append((found, grads))
    reference = mlp(24)
    (100 * nn.functional.cross_entropy(reference(X), Y)).backward()
    total = nn.utils.clip_grad_norm_(reference.parameters(), 0.5, norm_type)
    for found, grads in updates:
        assert float(found) == pytest.approx(float(total), rel=1e-4)
        for name, parameter in reference.named_parameters():
            assert torch.allclose(grads[name], parameter.grad, rtol=1e-3, atol=1e-6), name
    with pytest.raises(flerm_fx.InputError, match="max_norm must be a number above 0, got 0"):
        flerm_fx.clip_grad_norm_(plain, 0.0)
