"""Models of ``transformers`` that pair text and images."""

from collections.abc import Mapping
from typing import Any

import torch

from zoo.architecture import Architecture, Size
from zoo.batches import TIME, features, images, tokens
from zoo.huggingface import HIDDEN, USUAL, build

TEXT = {**USUAL, **HIDDEN, "max_position_embeddings": 8}
VISION = {
    **USUAL,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
CHANGES: dict[Size, Mapping[str, Any]] = {
    "base": {},
    "wide": {"hidden_size": 32, "intermediate_size": 64},
    "deep": {"num_hidden_layers": 4},
}


def _both(name: str, prefix: str, **settings: Any) -> Architecture:
    def builder(size: Size) -> torch.nn.Module:
        return build(
            f"{prefix}Config",
            f"{prefix}Model",
            {
                "text_config": {**TEXT, **CHANGES[size], **settings.get("text", {})},
                "vision_config": {**VISION, **CHANGES[size]},
                "projection_dim": 2 * CHANGES[size].get("hidden_size", 16),
            },
        )

    return Architecture(
        name,
        "pairs",
        builder,
        lambda: {"input_ids": tokens(TIME), "pixel_values": images()},
        lambda: torch.arange(3),
        in_step=True,
        note="its output, similarities within the batch, couples the examples",
    )


def _tower(name: str, part: str) -> Architecture:
    usual = TEXT if part == "Text" else VISION

    def builder(size: Size) -> torch.nn.Module:
        settings = {**usual, **CHANGES[size], "projection_dim": 6}
        return build(f"CLIP{part}Config", f"CLIP{part}ModelWithProjection", settings)

    inputs = (lambda: tokens(TIME)) if part == "Text" else images
    return Architecture(name, "pairs", builder, inputs, lambda: features(6))


ARCHITECTURES = [
    _both("clip", "CLIP"),
    _both("siglip", "Siglip"),
    _both("chinese_clip", "ChineseCLIP"),
    _tower("clip-text", "Text"),
    _tower("clip-vision", "Vision"),
]
