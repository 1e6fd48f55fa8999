"""The transformer."""

import math
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from models.transformer import Block, Transformer
from tests.models.checks import assert_exports, assert_gradients_reach_all, assert_normal
from tests.rounding import assert_close, rounding, terms

NORMS = get_args(get_type_hints(Transformer.__init__)["norm"])


def small(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**({"vocab": 17, "width": 32, "context": 8} | changes))


def tokens(examples: int = 3, time: int = 8, vocab: int = 17) -> Tensor:
    return torch.randint(vocab, (examples, time), generator=torch.Generator().manual_seed(1))


def test_there_are_three_schemes() -> None:
    assert NORMS == ("pre", "post", "post-pre-residual")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("time", [1, 5, 8])
def test_outputs_are_logits_for_each_token(norm: str, tied: bool, time: int) -> None:
    assert small(norm=norm, tied=tied)(tokens(time=time)).shape == (3, time, 17)


@pytest.mark.parametrize("norm", NORMS)
def test_logits_depend_on_no_later_token(norm: str) -> None:
    model, first = small(norm=norm), tokens()
    second = first.clone()
    second[:, 5] = (second[:, 5] + 1) % 17
    one, other = model(first).detach(), model(second).detach()
    noise = rounding(terms(model), size=float(one.abs().max()))
    same = (one - other).abs().amax(dim=(0, 2)) < noise
    assert same.tolist() == [True] * 5 + [False] * 3


def test_logits_depend_on_the_position() -> None:
    logits = small()(torch.zeros(2, 8, dtype=torch.long))
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 0.1


# Each scheme by what it leaves unchanged


def branch_of(norm: str, x: Tensor, **changes: Any) -> tuple[Block, Tensor]:
    """A block, and what its feed-forward branch makes of x (B, T, C)."""
    block = small(norm=norm, **changes).blocks[0]
    assert isinstance(block, Block)
    return block, block.residual(x, block.feed_forward, block.feed_forward_norm)


def test_pre_norm_adds_a_branch_that_ignores_the_scale_of_its_input() -> None:
    x = torch.randn(3, 8, 32)
    _, y = branch_of("pre", x)
    _, larger = branch_of("pre", 10 * x)
    torch.testing.assert_close(larger - 10 * x, y - x, rtol=1e-3, atol=1e-4)


def test_post_norm_leaves_a_normalised_stream() -> None:
    _, y = branch_of("post", torch.randn(3, 8, 32))
    assert_close(y.mean(-1), torch.zeros(3, 8), 2 * 32, size=1.0)  # a norm's mean, and its mean
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(3, 8), rtol=0, atol=1e-4)


@pytest.mark.parametrize("init_scale", [1.0, 3.0])
def test_post_norm_with_pre_residual_adds_a_normalised_branch(init_scale: float) -> None:
    x = torch.randn(3, 8, 32)
    _, y = branch_of("post-pre-residual", x, init_scale=init_scale, depth_multiplier=4)
    variance = (y - x).var(-1, correction=0)
    torch.testing.assert_close(variance, torch.full((3, 8), 0.25), rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_branches_shrink_with_the_root_of_the_depth_multiplier(norm: str) -> None:
    model = small(norm=norm, depth=2, depth_multiplier=9)
    assert len(model.blocks) == 18
    assert all(block.branch_scale == pytest.approx(1 / 3) for block in model.blocks)


# Sizes


def test_wider_models_have_more_heads_of_the_same_width() -> None:
    for width, heads in [(8, 1), (16, 1), (64, 4), (256, 16)]:
        assert small(width=width).blocks[0].attention.heads == heads
    multiplied = small(width=64, heads=2, width_multiplier=4).blocks[0].attention
    assert multiplied.heads == 8
    assert multiplied.query.weight.shape == (256, 256)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_layer_norms_have_parameters_only_where_affine(affine: bool, qk_norm: bool) -> None:
    model = small(depth=1, affine=affine, qk_norm=qk_norm)
    names = {n for n, _ in model.named_parameters() if "norm" in n}
    norms = ["norm", "blocks.0.attention_norm", "blocks.0.feed_forward_norm"]
    if qk_norm:
        norms += ["blocks.0.attention.query_norm", "blocks.0.attention.key_norm"]
    expected = {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    expected.discard("blocks.0.attention.key_norm.bias")  # softmax would take it out again
    assert names == (expected if affine else set())


def test_normalised_queries_and_keys_ignore_their_scale() -> None:
    model, x = small(qk_norm=True), tokens()
    before = model(x)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.query.weight.mul_(10)
            block.attention.key.weight.mul_(10)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)


# Tied embeddings


def test_tied_embeddings_are_one_parameter() -> None:
    model, untied = small(tied=True), small()
    assert model.logits.weight is model.tokens.weight
    assert "logits.weight" not in dict(model.named_parameters())
    sizes = [sum(p.numel() for p in m.parameters()) for m in (untied, model)]
    assert sizes[0] - sizes[1] == 17 * 32


def test_untied_embeddings_are_two_parameters() -> None:
    model = small()
    assert model.logits.weight is not model.tokens.weight


# Initialisation


@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_initial_weights(width: int, qk_norm: bool) -> None:
    model = small(vocab=200, width=width, context=100, init_scale=0.5, qk_norm=qk_norm)
    assert_normal(model.tokens.weight, 1)
    assert_normal(model.positions.weight, 1)
    assert_normal(model.logits.weight, width**-0.5)
    for block in model.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        scale = 0.5 if qk_norm else 1
        assert_normal(attention.query.weight, scale * width**-0.5)
        assert_normal(attention.key.weight, scale * width**-0.5)
        assert_normal(attention.value.weight, 0.5 * width**-0.5)
        assert_normal(attention.output.weight, 0.5 * width**-0.5)
        assert_normal(feed_forward.hidden.weight, 0.5 * width**-0.5)
        assert_normal(feed_forward.output.weight, 0.5 * math.sqrt(2 / (4 * width)))


def test_initial_tied_embeddings_suit_the_logits() -> None:
    model = small(vocab=200, context=100, tied=True)
    assert_normal(model.tokens.weight, 32**-0.5)
    assert_normal(model.positions.weight, 32**-0.5)


def test_biases_start_at_zero_and_norms_at_one() -> None:
    for name, parameter in small(affine=True, qk_norm=True).named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", [16, 64])
def test_logits_start_at_unit_scale_for_every_width(norm: str, width: int) -> None:
    # At one position the final norm leaves ‖x‖² = width, so that logits are independent and normal
    # with variance 1.
    model = small(norm=norm, width=width, vocab=5000)
    assert_normal(model(tokens(1, vocab=5000))[0, -1], 1)


# Modes, gradients, export


def test_dropout_acts_in_training_alone() -> None:
    model, x = small(dropout=0.5), tokens()
    assert not torch.equal(model(x), model(x))
    model.eval()
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    assert_close(model(x), small(dropout=0.0)(x), terms(model))


def test_without_dropout_both_modes_are_the_same() -> None:
    model, x = small(), tokens()
    torch.testing.assert_close(model(x), model.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_gradients_reach_all_parameters(norm: str, tied: bool, qk_norm: bool) -> None:
    model = small(norm=norm, tied=tied, affine=True, qk_norm=qk_norm)
    assert_gradients_reach_all(model, tokens())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_exports(norm: str, tied: bool) -> None:
    assert_exports(small(norm=norm, tied=tied, qk_norm=tied), tokens(3), tokens(5))


# Messages


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match=r"^norm is 'batch'; it must be 'pre', 'post' or 'post-pr"):
        small(norm="batch")


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"^width 32 is not a multiple of 5, the number of heads"):
        small(heads=5)


def test_a_sequence_longer_than_the_context() -> None:
    with pytest.raises(ValueError, match=r"^the sequence has 9 tokens; the context holds 8$"):
        small()(tokens(time=9))
