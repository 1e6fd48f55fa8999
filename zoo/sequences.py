"""Encoders with decoders of ``transformers``."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.architecture import Architecture
from zoo.batches import TIME, VOCABULARY, next_tokens, tokens
from zoo.huggingface import USUAL, sized

BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
BART_WIDER = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
BART_DEEPER = {"encoder_layers": 4, "decoder_layers": 4}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
T5_WIDER = {"d_model": 32, "d_kv": 16, "d_ff": 64}
T5_DEEPER = {"num_layers": 4, "num_decoder_layers": 4}
PROPHET = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "max_position_embeddings": 32,
    "ngram": 2,
    "num_buckets": 8,
    "relative_max_distance": 16,
}


def pair() -> dict[str, Tensor]:
    """A source, and the tokens that the decoder is given."""
    return {"input_ids": tokens(TIME + 2), "decoder_input_ids": tokens()}


def _pair(
    name: str,
    prefix: str,
    base: Mapping[str, Any],
    wide: Mapping[str, Any],
    deep: Mapping[str, Any],
    model: str = "ForConditionalGeneration",
    **marks: Any,
) -> Architecture:
    builder = sized(f"{prefix}Config", prefix + model, {**USUAL, **base}, wide, deep)
    return Architecture(name, "sequences", builder, pair, next_tokens, **marks)


def _bart(
    name: str, prefix: str, model: str = "ForConditionalGeneration", **base: Any
) -> Architecture:
    return _pair(name, prefix, {**BART, **base}, BART_WIDER, BART_DEEPER, model)


ARCHITECTURES = [
    _pair("t5", "T5", T5, T5_WIDER, T5_DEEPER),
    _pair(
        "t5-gated",
        "T5",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        T5_WIDER,
        T5_DEEPER,
    ),
    _pair("umt5", "UMT5", T5, T5_WIDER, T5_DEEPER),
    _pair("longt5", "LongT5", {**T5, "local_radius": 3}, T5_WIDER, T5_DEEPER),
    _pair(
        "switch_transformers",
        "SwitchTransformers",
        {
            **T5,
            "num_experts": 2,
            "expert_capacity": 32,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
        },
        T5_WIDER,
        {**T5_DEEPER, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
        in_step=False,
        by_rows=True,
    ),
    _bart("bart", "Bart"),
    _bart("mbart", "MBart"),
    _bart("pegasus", "Pegasus"),
    _bart("marian", "Marian", "MTModel", decoder_vocab_size=VOCABULARY),
    _bart("m2m_100", "M2M100"),
    _bart("blenderbot", "Blenderbot"),
    _bart("blenderbot_small", "BlenderbotSmall"),
    _bart("bigbird_pegasus", "BigBirdPegasus", attention_type="original_full"),
    _bart("bart-layerdrop", "Bart", encoder_layerdrop=0.5, decoder_layerdrop=0.5),
    _pair(
        "prophetnet",
        "ProphetNet",
        PROPHET,
        {"hidden_size": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
        {"num_encoder_layers": 4, "num_decoder_layers": 4},
    ),
]
