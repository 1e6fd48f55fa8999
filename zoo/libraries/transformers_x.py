"""Variants of ``x-transformers``: attention and feed-forward layers alternate in one list."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.depth.stack import Depths, Stack
from zoo.libraries.library import batch, module, stack

WHOLE = [((1,), (2,)), ((2,), (4,)), ((1,), (3,)), ((3,), (6,))]


def _in_step(around: str, layers: int) -> dict[str, str]:
    """A block is a number of layers of a list: copies of blocks, and not of layers, answer."""
    block = f"{layers} * (i // {layers} * n // m) + i % {layers}"
    return {f"{around}.{{i}}": f"{around}.{{{block}}}"}


def _words() -> Tensor:
    return torch.randint(0, 16, (3, 8), generator=torch.Generator().manual_seed(1))


def _language(
    name: str,
    kind: str = "Decoder",
    layers: int = 2,
    rule: Mapping[str, str] | None = None,
    **settings: Any,
) -> Stack:
    wrapper = {
        key: settings.pop(key) for key in [*settings] if key in ("num_memory_tokens", "emb_dim")
    }

    def build(depths: Depths) -> nn.Module:
        m = module("x_transformers")
        inside = getattr(m, kind)(dim=16, depth=depths[0], heads=2, attn_dim_head=8, **settings)
        return cast(
            nn.Module,
            m.TransformerWrapper(num_tokens=16, max_seq_len=8, attn_layers=inside, **wrapper),
        )

    rule = rule or _in_step("attn_layers.layers", layers)
    return stack(name, "x_transformers", build, _words, WHOLE, rule)


def _continuous(depths: Depths) -> nn.Module:
    m = module("x_transformers")
    return m.ContinuousTransformerWrapper(  # type: ignore[no-any-return]
        dim_in=4,
        dim_out=3,
        max_seq_len=8,
        attn_layers=m.Encoder(dim=16, depth=depths[0], heads=2, attn_dim_head=8),
    )


def _vision(depths: Depths) -> nn.Module:
    m = module("x_transformers")
    return m.ViTransformerWrapper(  # type: ignore[no-any-return]
        image_size=16,
        patch_size=8,
        num_classes=3,
        attn_layers=m.Encoder(dim=16, depth=depths[0], heads=2, attn_dim_head=8),
    )


STACKS = [
    _language("decoder"),
    _language("encoder", "Encoder"),
    _language(
        "rotary-rmsnorm-glu", use_rmsnorm=True, rotary_pos_emb=True, ff_glu=True, ff_no_bias=True
    ),
    _language("sandwich-norm", sandwich_norm=True),
    _language("post-norm", pre_norm=False),
    _language("macaron", layers=3, macaron=True),
    _language("qk-norm", attn_qk_norm=True, attn_qk_norm_dim_scale=True),
    _language("gated-residual", gate_residual=True),
    _language("hyper-connections", num_residual_streams=3),
    _language("talking-heads", attn_pre_talking_heads=True),
    _language("memory-tokens", num_memory_tokens=2),
    _language("layer-scale", use_layerscale=True),
    _language("dynamic-tanh", use_dynamic_tanh=True),
    _language("relative-bias", rel_pos_bias=True),
    _language("attention-gates", attn_gate_values=True),
    _language("residual-attention", residual_attn=True),
    stack(
        "continuous",
        "x_transformers",
        _continuous,
        lambda: batch(6, 4),
        WHOLE,
        _in_step("attn_layers.layers", 2),
    ),
    stack(
        "vision",
        "x_transformers",
        _vision,
        lambda: batch(3, 16, 16),
        WHOLE,
        _in_step("attn_layers.layers", 2),
    ),
]
