"""LoRA as the peft library puts it on models of the transformers library (the extra ``hf``)."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from tests.cases import slow
from tests.rounding import assert_close, terms

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore::DeprecationWarning"
)

TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "v_proj", "down_proj"]}
X = torch.randint(31, (6, 8), generator=torch.Generator().manual_seed(1))
Y = X.roll(1, 1)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def adapted(
    kind: str, rank: int, width: int = 16, modules: list[str] | None = None, **options: Any
) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=31,
                n_positions=8,
                n_embd=width,
                n_layer=1,
                n_head=2,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=31,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=8,
                use_cache=False,
                pad_token_id=0,
            )
        )
    torch.manual_seed(rank)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=8,
        target_modules=modules or TARGETS[kind],
        fan_in_fan_out=kind == "gpt2",
        **options,
    )
    result: nn.Module = peft.get_peft_model(model, config)
    return result.train()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def profile_of(model: nn.Module, lr: float = 1e-3) -> flerm_fx.BaseProfile:
    optimizer = torch.optim.Adam(trained(model), lr=lr)
    return flerm_fx.record(model, optimizer, X, Y, method="exact").profile


def loss_of(model: nn.Module) -> Tensor:
    logits = model(X).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), Y.flatten())


OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"kind": "gpt2"},
    "llama": {"kind": "llama"},
    "wider": {"kind": "llama", "width": 32},
    "rank-stabilised": {"kind": "llama", "use_rslora": True},
    "gaussian": {"kind": "llama", "init_lora_weights": "gaussian"},
    "dora": {"kind": "llama", "use_dora": True},
}


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("llama", "wider", "rank-stabilised", "gaussian", "dora")
        ),
    ],
)
def test_a_and_b_meet_the_bases_fslrs_at_another_rank(name: str) -> None:
    options = dict(OPTIONS[name])
    large = adapted(rank=16, **options)
    options.pop("width", None)
    compiled = flerm_fx.compile(large, profile_of(adapted(rank=4, **options)), method="exact")
    assert compiled.graph_module is not None
    assert len(compiled.assignments) == len(trained(large))
    for row in compiled.assignments:
        assert row.base == ((row.parameter, 1.0),)
        assert row.status == "matched"
        assert row.after == (4 if "lora_A" in row.parameter else 0)
    checks = compiled.check()
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    folded = compiled.fold()
    assert type(folded) is type(large)
    assert folded.state_dict().keys() == large.state_dict().keys()
    assert_close(folded(X).logits, compiled(X).logits, terms(large))
    assert_close(folded(X).logits, large(X).logits, terms(large))


@pytest.mark.parametrize("more,fewer", [slow("target", "base"), slow("base", "target")])
def test_other_targeted_modules_are_named_and_the_common_ones_matched(
    more: str, fewer: str
) -> None:
    modules = {more: ["q_proj", "v_proj", "down_proj"], fewer: ["q_proj", "v_proj"]}
    profile = profile_of(adapted("llama", 4, modules=modules["base"]))
    large = adapted("llama", 16, modules=modules["target"])
    with pytest.raises(flerm_fx.MatchError, match="down_proj.lora_A") as error:
        flerm_fx.compile(large, profile, method="exact")
    left = {"target": 2, "base": 0} if more == "target" else {"target": 0, "base": 2}
    counts = f"{left['target']} target parameters and {left['base']} base parameters"
    assert f"structure leaves {counts}" in str(error.value)
    with pytest.warns(UserWarning, match="have no counterpart"):
        compiled = flerm_fx.compile(large, profile, method="exact", on_unmatched="unit")
    for row in compiled.assignments:
        if "down_proj" in row.parameter:
            assert (row.status, row.multiplier) == ("unmatched", 1.0)
        else:
            assert row.base == ((row.parameter, 1.0),)
    assert all(check.passed for check in compiled.check())


@pytest.mark.parametrize("name", ["gpt2", slow("dora")])
def test_the_base_compiled_against_itself_has_multipliers_of_1(name: str) -> None:
    model = adapted(rank=4, **OPTIONS[name])
    compiled = flerm_fx.compile(model, profile_of(model), method="exact")
    assert set(compiled.multipliers.values()) == {1.0}
    assert {row.status for row in compiled.assignments} == {"matched"}


@pytest.mark.slow
def test_graph_and_parameter_groups_train_alike_and_leave_frozen_weights() -> None:
    large = adapted("llama", 16).double()
    before = copy.deepcopy(large.state_dict())
    compiled = flerm_fx.compile(large, profile_of(adapted("llama", 4).double()), method="exact")
    by_graph = torch.optim.Adam(trained(compiled), lr=1e-3)
    by_groups = torch.optim.Adam(compiled.param_groups(1e-3), lr=1e-3)
    for _ in range(5):
        for module, optimizer in ((compiled, by_graph), (large, by_groups)):
            optimizer.zero_grad()
            loss_of(module).backward()
            optimizer.step()
    folded = compiled.fold().state_dict()
    for name, value in large.state_dict().items():
        if "lora_" in name:
            torch.testing.assert_close(folded[name], value, rtol=1e-6, atol=1e-9)
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name])
            assert torch.equal(folded[name], before[name])


def test_recording_goes_on_through_training() -> None:
    model = adapted("llama", 4)
    optimizer = torch.optim.Adam(trained(model), lr=1e-3)
    with flerm_fx.record(model, optimizer, X, Y, every=1, method="exact") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    course = recorder.profile.trajectory
    assert course.steps == (0, 1, 2)
    for name, estimate in recorder.profile.start.items():
        assert (estimate.value == 0) == ("lora_A" in name)
        assert (course.at(0)[name].value == 0) == ("lora_A" in name)
        assert course.at(2)[name].value > 0
