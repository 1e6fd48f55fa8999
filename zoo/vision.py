"""Image classifiers of ``transformers``."""

from collections.abc import Mapping
from typing import Any

from zoo.architecture import Architecture
from zoo.batches import images
from zoo.huggingface import classifier

VIT = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VIT_WIDER = {"hidden_size": 32, "intermediate_size": 64}
VIT_DEEPER = {"num_hidden_layers": 4}
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
}
SWIN_WIDER = {"embed_dim": 16}
CONVNEXT = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
WIDER = {"hidden_sizes": [16, 32]}
DEEPER = {"depths": [2, 2]}
PYRAMID = {
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "num_attention_heads": [1, 2],
    "sr_ratios": [2, 1],
    "mlp_ratios": [2, 2],
}


def _vision(
    name: str,
    prefix: str,
    base: Mapping[str, Any],
    wide: Mapping[str, Any],
    deep: Mapping[str, Any] | None,
    *,
    size: int = 16,
    **marks: Any,
) -> Architecture:
    if deep is None:
        marks["sizes"] = ("base", "wide")
    return classifier(
        name,
        prefix,
        base,
        wide,
        deep,
        family="vision",
        model=f"{prefix}ForImageClassification",
        plain=True,
        inputs=lambda: {"pixel_values": images(size)},
        **marks,
    )


BATCH_STATISTICS = "smaller images leave BatchNorm three numbers to normalise, and rounding decides"

ARCHITECTURES = [
    _vision("vit", "ViT", VIT, VIT_WIDER, VIT_DEEPER),
    _vision("deit", "DeiT", VIT, VIT_WIDER, VIT_DEEPER),
    _vision("beit", "Beit", {**VIT, "use_relative_position_bias": True}, VIT_WIDER, VIT_DEEPER),
    _vision("data2vec-vision", "Data2VecVision", VIT, VIT_WIDER, VIT_DEEPER),
    _vision("dinov2", "Dinov2", {**VIT, "mlp_ratio": 2}, VIT_WIDER, VIT_DEEPER),
    _vision(
        "dinov2-registers", "Dinov2WithRegisters", {**VIT, "mlp_ratio": 2}, VIT_WIDER, VIT_DEEPER
    ),
    _vision("ijepa", "IJepa", VIT, VIT_WIDER, VIT_DEEPER),
    _vision("swin", "Swin", SWIN, SWIN_WIDER, DEEPER),
    _vision(
        "swinv2",
        "Swinv2",
        SWIN,
        SWIN_WIDER,
        DEEPER,
        by_rows=True,
        note="a relu is at exactly 0, where differences take half of it",
    ),
    _vision("convnext", "ConvNext", CONVNEXT, WIDER, DEEPER),
    _vision("convnextv2", "ConvNextV2", CONVNEXT, WIDER, DEEPER),
    _vision(
        "resnet",
        "ResNet",
        {**RESNET, "depths": [2, 2]},
        {"embedding_size": 16, **WIDER},
        {"depths": [4, 4]},
        in_step=False,
    ),
    _vision(
        "resnet-bottleneck",
        "ResNet",
        {**RESNET, "layer_type": "bottleneck"},
        {"embedding_size": 16, **WIDER},
        {"depths": [2, 2]},
        in_step=False,
        note="the base has a block with a shortcut of its own in each stage, and no other",
    ),
    _vision(
        "regnet",
        "RegNet",
        {**RESNET, "layer_type": "y", "groups_width": 4},
        {"embedding_size": 16, **WIDER},
        DEEPER,
        in_step=False,
    ),
    _vision(
        "mobilenet_v1",
        "MobileNetV1",
        {"depth_multiplier": 0.125, "min_depth": 4, "image_size": 96},
        {"depth_multiplier": 0.25},
        None,
        size=96,
        note=BATCH_STATISTICS,
    ),
    _vision(
        "mobilenet_v2",
        "MobileNetV2",
        {"depth_multiplier": 0.125, "min_depth": 4, "depth_divisible_by": 4, "image_size": 96},
        {"depth_multiplier": 0.25},
        None,
        size=96,
        by_rows=True,
        note=BATCH_STATISTICS,
    ),
    _vision(
        "segformer",
        "Segformer",
        {**PYRAMID, "num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2]},
        WIDER,
        DEEPER,
    ),
    _vision(
        "pvt",
        "Pvt",
        {
            **PYRAMID,
            "num_encoder_blocks": 2,
            "image_size": 16,
            "patch_sizes": [4, 2],
            "strides": [4, 2],
            "sequence_reduction_ratios": [2, 1],
        },
        WIDER,
        DEEPER,
    ),
    _vision(
        "pvt_v2",
        "PvtV2",
        {
            **PYRAMID,
            "num_encoder_blocks": 2,
            "image_size": 16,
            "patch_sizes": [3, 3],
            "strides": [2, 2],
        },
        WIDER,
        DEEPER,
    ),
    _vision(
        "poolformer",
        "PoolFormer",
        {
            **PYRAMID,
            "num_encoder_blocks": 2,
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "padding": [1, 1],
        },
        WIDER,
        DEEPER,
    ),
    _vision(
        "levit",
        "Levit",
        {
            "image_size": 32,
            "hidden_sizes": [8, 16, 16],
            "num_attention_heads": [1, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [4, 4, 4],
        },
        {"hidden_sizes": [16, 32, 32]},
        {"depths": [2, 2, 2]},
        size=32,
        in_step=False,
    ),
    _vision(
        "efficientnet",
        "EfficientNet",
        {
            "image_size": 96,
            "width_coefficient": 0.125,
            "depth_coefficient": 0.3,
            "depth_divisor": 4,
            "hidden_dim": 160,
        },
        {"width_coefficient": 0.25, "hidden_dim": 320},
        None,
        size=96,
        note=BATCH_STATISTICS,
    ),
    _vision(
        "cvt",
        "Cvt",
        {
            "num_stages": 2,
            "patch_sizes": [3, 3],
            "patch_stride": [2, 2],
            "patch_padding": [1, 1],
            "embed_dim": [8, 16],
            "num_heads": [1, 2],
            "depth": [2, 2],
            "mlp_ratio": [2.0, 2.0],
            "attention_drop_rate": [0.0, 0.0],
            "drop_rate": [0.0, 0.0],
            "drop_path_rate": [0.0, 0.1],
            "qkv_bias": [True, True],
            "cls_token": [False, True],
            "qkv_projection_method": ["dw_bn", "dw_bn"],
            "kernel_qkv": [3, 3],
            "padding_kv": [1, 1],
            "stride_kv": [2, 2],
            "padding_q": [1, 1],
            "stride_q": [1, 1],
        },
        {"embed_dim": [16, 32]},
        {"depth": [4, 4]},
        by_rows=True,
        note="draws its paths in the type of its weights, so that float64 draws others",
    ),
    _vision(
        "bit",
        "Bit",
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_groups": 4,
            "layer_type": "preactivation",
        },
        {"embedding_size": 16, **WIDER},
        DEEPER,
        in_step=False,
    ),
    _vision(
        "focalnet",
        "FocalNet",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "hidden_sizes": [8, 16],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        {"embed_dim": 16, "hidden_sizes": [16, 32]},
        DEEPER,
    ),
    _vision(
        "mobilevit",
        "MobileViT",
        {
            "image_size": 32,
            "hidden_sizes": [8, 12, 16],
            "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16],
            "num_attention_heads": 2,
            "mlp_ratio": 2.0,
        },
        {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32]},
        None,
        size=32,
        by_rows=True,
    ),
    _vision(
        "swiftformer",
        "SwiftFormer",
        {
            "image_size": 32,
            "depths": [1, 1],
            "embed_dims": [8, 16],
            "downsamples": [True, True],
            "mlp_ratio": 2,
        },
        {"embed_dims": [16, 32]},
        None,
        size=32,
    ),
]
