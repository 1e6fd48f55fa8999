"""Diffusion models of ``diffusers`` at other depths."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.depth.stack import Depths, Stack
from zoo.libraries.library import DEEP, ONE, TWO, Picked, batch, module, stack


def _steps() -> Tensor:
    return torch.tensor([1.0, 5.0, 9.0])


def _model(
    name: str,
    kind: str,
    depths: tuple[str, ...],
    inputs: dict[str, Callable[[], Any]],
    pairs: Any,
    rule: dict[str, str] | None = None,
    **settings: Any,
) -> Stack:
    """A class of diffusers with a setting for each depth, called by keywords."""

    def build(own: Depths) -> nn.Module:
        with_depths = dict(zip(depths, own, strict=True))
        model = getattr(module("diffusers"), kind)(**settings, **with_depths)

        def call(model: nn.Module, *values: Any) -> Any:
            return model(**dict(zip(inputs, values, strict=True)), return_dict=False)[0]

        return Picked(model, call)

    return stack(name, "diffusers", build, lambda: tuple(v() for v in inputs.values()), pairs, rule)


def _noise() -> Tensor:
    return batch(3, 16, 16)


def _latent() -> Tensor:
    return batch(4, 8, 8)


SINGLE = [((1,), (2,)), ((1,), (3,))]
"""Where a first block has a shortcut, names do not tell what later ones of a base answer to."""

UNET: dict[str, Any] = {"sample": _noise, "timestep": _steps}
JOINT = {"in_channels": 4, "attention_head_dim": 8, "num_attention_heads": 2}

STACKS = [
    _model(
        "unet",
        "UNet2DModel",
        ("layers_per_block",),
        UNET,
        SINGLE,
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    ),
    _model(
        "unet-conditional",
        "UNet2DConditionModel",
        ("layers_per_block",),
        {
            "sample": lambda: batch(4, 8, 8),
            "timestep": _steps,
            "encoder_hidden_states": lambda: batch(5, 16),
        },
        SINGLE,
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    ),
    _model(
        "unet-transformers",
        "UNet2DConditionModel",
        ("transformer_layers_per_block",),
        {
            "sample": lambda: batch(4, 8, 8),
            "timestep": _steps,
            "encoder_hidden_states": lambda: batch(5, 16),
        },
        ONE,
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    ),
    _model(
        "vae",
        "AutoencoderKL",
        ("layers_per_block",),
        {"sample": _noise},
        ONE,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ),
    _model(
        "dit",
        "DiTTransformer2DModel",
        ("num_layers",),
        {
            "hidden_states": _latent,
            "timestep": lambda: torch.tensor([1, 5, 9]),
            "class_labels": lambda: torch.tensor([0, 1, 2]),
        },
        ONE,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        sample_size=8,
        num_embeds_ada_norm=10,
    ),
    _model(
        "pixart",
        "PixArtTransformer2DModel",
        ("num_layers",),
        {
            "hidden_states": _latent,
            "timestep": lambda: torch.tensor([1, 5, 9]),
            "encoder_hidden_states": lambda: batch(5, 16),
            "added_cond_kwargs": lambda: {"resolution": None, "aspect_ratio": None},
        },
        ONE,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
    ),
    _model(
        "sd3",
        "SD3Transformer2DModel",
        ("num_layers",),
        {
            "hidden_states": _latent,
            "encoder_hidden_states": lambda: batch(5, 16),
            "pooled_projections": lambda: batch(16),
            "timestep": _steps,
        },
        DEEP,
        sample_size=8,
        in_channels=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        out_channels=4,
    ),
    _model(
        "sd3-dual",
        "SD3Transformer2DModel",
        ("num_layers",),
        {
            "hidden_states": _latent,
            "encoder_hidden_states": lambda: batch(5, 16),
            "pooled_projections": lambda: batch(16),
            "timestep": _steps,
        },
        [((2,), (3,)), ((2,), (4,))],
        sample_size=8,
        in_channels=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        out_channels=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    ),
    _model(
        "flux",
        "FluxTransformer2DModel",
        ("num_layers", "num_single_layers"),
        {
            "hidden_states": lambda: batch(6, 4),
            "encoder_hidden_states": lambda: batch(5, 16),
            "pooled_projections": lambda: batch(16),
            "timestep": _steps,
            "img_ids": lambda: torch.zeros(6, 3),
            "txt_ids": lambda: torch.zeros(5, 3),
        },
        [*TWO, ((1, 1), (2, 2)), ((1, 1), (1, 2)), ((2, 2), (4, 4))],
        in_channels=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    ),
    _model(
        "auraflow",
        "AuraFlowTransformer2DModel",
        ("num_mmdit_layers", "num_single_dit_layers"),
        {
            "hidden_states": _latent,
            "encoder_hidden_states": lambda: batch(5, 16),
            "timestep": _steps,
        },
        [*TWO, ((1, 1), (2, 2))],
        sample_size=8,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    ),
    _model(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        ("num_layers",),
        {
            "hidden_states": lambda: batch(1, 4, 8, 8),
            "encoder_hidden_states": lambda: batch(5, 16),
            "timestep": _steps,
        },
        ONE,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        sample_width=8,
        sample_height=8,
        sample_frames=1,
        text_embed_dim=16,
        time_embed_dim=8,
        max_text_seq_length=5,
    ),
    _model(
        "sana",
        "SanaTransformer2DModel",
        ("num_layers",),
        {
            "hidden_states": _latent,
            "encoder_hidden_states": lambda: batch(5, 16),
            "timestep": _steps,
        },
        ONE,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        patch_size=1,
    ),
    _model(
        "lumina2",
        "Lumina2Transformer2DModel",
        ("num_layers", "num_refiner_layers"),
        {
            "hidden_states": _latent,
            "timestep": _steps,
            "encoder_hidden_states": lambda: batch(5, 16),
            "encoder_attention_mask": lambda: torch.ones(3, 5, dtype=torch.bool),
        },
        TWO,
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(16, 16, 16),
        cap_feat_dim=16,
    ),
    _model(
        "ltx",
        "LTXVideoTransformer3DModel",
        ("num_layers",),
        {
            "hidden_states": lambda: batch(8, 4),
            "encoder_hidden_states": lambda: batch(5, 16),
            "timestep": _steps,
            "encoder_attention_mask": lambda: torch.ones(3, 5),
            "num_frames": lambda: 2,
            "height": lambda: 2,
            "width": lambda: 2,
        },
        ONE,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
    ),
    _model(
        "wan",
        "WanTransformer3DModel",
        ("num_layers",),
        {
            "hidden_states": lambda: batch(4, 2, 8, 8),
            "timestep": _steps,
            "encoder_hidden_states": lambda: batch(5, 16),
        },
        ONE,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=8,
        ffn_dim=32,
    ),
    _model(
        "prior",
        "PriorTransformer",
        ("num_layers",),
        {
            "hidden_states": lambda: batch(16),
            "timestep": _steps,
            "proj_embedding": lambda: batch(16),
            "encoder_hidden_states": lambda: batch(5, 16),
        },
        ONE,
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=16,
        num_embeddings=5,
    ),
]
