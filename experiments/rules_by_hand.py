"""What each parameter of a foreign model is, and muP's rates, written by hand from that.

The package ``mup`` asks for models written for it. For others its rules have to be applied by
role, as people do: muP's table is table 8 of Yang et al. 2022, arXiv 2203.03466.
"""

from typing import Literal

from torch import nn

from experiments.axes import Axis

Role = Literal["input", "hidden", "vector", "final", "readout"]
"""``input`` is an embedding of tokens, positions or patches, a tied one too; ``hidden`` a matrix of
a block; ``vector`` a norm or bias of a block; ``readout`` the matrix that logits come from; and
``final`` the norm behind the blocks, or the readout's bias."""

Place = Literal["input", "blocks", "final", "readout"]

PLACES: dict[str, dict[str, Place]] = {
    "llama": {
        "model.embed_tokens.": "input",
        "model.layers.": "blocks",
        "model.norm.": "final",
        "lm_head.": "readout",
    },
    "gpt2": {
        "transformer.wte.": "input",
        "transformer.wpe.": "input",
        "transformer.h.": "blocks",
        "transformer.ln_f.": "final",
    },
    "vit": {
        "vit.embeddings.": "input",
        "vit.layers.": "blocks",
        "vit.layernorm.": "final",
        "classifier.": "readout",
    },
    "neox": {
        "gpt_neox.embed_in.": "input",
        "gpt_neox.layers.": "blocks",
        "gpt_neox.final_layer_norm.": "final",
        "lm_head.": "readout",
    },
    "olmo2": {
        "model.embed_tokens.": "input",
        "model.layers.": "blocks",
        "model.norm.": "final",
        "lm_head.": "readout",
    },
}
"""By architecture: where parameters are whose names begin so."""


def roles(axis: Axis, model: nn.Module) -> dict[str, Role]:
    """The role of each parameter of one of the axis's models."""
    return {name: _role(axis, name, p.dim() >= 2) for name, p in model.named_parameters()}


def _role(axis: Axis, name: str, is_matrix: bool) -> Role:
    (place,) = (place for start, place in PLACES[axis.model].items() if name.startswith(start))
    if place == "blocks":
        return "hidden" if is_matrix else "vector"
    if place == "readout":
        return "readout" if is_matrix else "final"
    return place


def mup_rates(axis: Axis, scale: float) -> dict[str, float]:
    """Multipliers that muP's rates come to on a model as it is, its initial weights included.

    What reads a width, a block's matrix or the readout, has the base's rate over the width
    multiplier; all else has the base's. muP has no rule for depth.
    """
    narrow = {"hidden", "readout"}
    found = roles(axis, axis.build(scale))
    return {name: 1 / axis.width(scale) if r in narrow else 1.0 for name, r in found.items()}
