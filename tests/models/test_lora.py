"""Low-rank adaptation."""

import math

import pytest
import torch
from torch import nn

from models.lora import BRANCHES, LoRALinear, add_lora
from models.transformer import Transformer
from tests.models.checks import assert_exports, assert_gradients_reach_all, assert_normal
from tests.rounding import assert_close, terms


def adapted(rank: int = 2, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    model = Transformer(vocab=17, width=16, depth=2, heads=2, context=8)
    return add_lora(model, rank, **changes)  # type: ignore[arg-type]


def with_random_b(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter)
    return model


def test_a_layer_is_the_formula() -> None:
    torch.manual_seed(0)
    layer, x = LoRALinear(nn.Linear(6, 4), rank=2, alpha=6.0), torch.randn(3, 6)
    nn.init.normal_(layer.lora_b)
    weight = layer.linear.weight + 3 * layer.lora_b @ layer.lora_a
    assert_close(layer(x), x @ weight.T + layer.linear.bias, terms(layer))


def test_the_model_starts_as_the_one_it_adapts() -> None:
    torch.manual_seed(0)
    plain = Transformer(vocab=17, width=16, depth=2, heads=2, context=8)
    tokens = torch.randint(17, (3, 8))
    assert torch.equal(adapted()(tokens), plain(tokens))


@pytest.mark.parametrize("rank", [4, 64])
def test_initial_weights(rank: int) -> None:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(500, 30), rank)
    bound = 1 / math.sqrt(500)
    assert 0.99 * bound < layer.lora_a.abs().max() <= bound
    assert layer.lora_a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert (layer.lora_b == 0).all()
    gaussian = LoRALinear(nn.Linear(500, 30), rank, init="gaussian")
    assert_normal(gaussian.lora_a, 1 / rank)
    assert (gaussian.lora_b == 0).all()


def test_only_the_updates_are_trained() -> None:
    model = adapted()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 6 * 2  # A and B of four maps in attention and two beside it
    assert all(name.endswith(("lora_a", "lora_b")) for name in trained)
    assert set(BRANCHES) == {name.split(".")[-2] for name in trained}


def test_names_are_endings_in_whole_parts() -> None:
    def paths(*names: str) -> list[str]:
        model = adapted(names=names)
        return [path for path, m in model.named_modules() if isinstance(m, LoRALinear)]

    assert paths("attention.output") == [f"blocks.{i}.attention.output" for i in (0, 1)]
    assert paths("logits") == ["logits"]
    for name in ("put", "block", "norm"):
        with pytest.raises(ValueError, match=f"no linear map of the model is called '{name}'"):
            paths("query", name)


def test_gradients_reach_all_once_b_has_moved() -> None:
    model = with_random_b(adapted())
    for parameter in model.parameters():
        parameter.requires_grad_()
    assert_gradients_reach_all(model, torch.randint(17, (3, 8)))


def test_exports() -> None:
    model = with_random_b(adapted())
    assert_exports(model, torch.randint(17, (3, 8)), torch.randint(17, (5, 8)))


def test_unknown_options() -> None:
    with pytest.raises(ValueError, match=r"^init is 'zeros'; it must be 'kaiming' or 'gaussian'"):
        LoRALinear(nn.Linear(2, 2), 1, init="zeros")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^rank is 0; it must be at least 1"):
        adapted(rank=0)
