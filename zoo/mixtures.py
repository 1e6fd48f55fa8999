"""Mixtures of experts of ``transformers``."""

from collections.abc import Mapping
from typing import Any

from zoo.architecture import Architecture
from zoo.batches import VOCABULARY
from zoo.huggingface import causal

GQA = {"num_key_value_heads": 1}
HEADS = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1}
FFN = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
WIDER_FFN = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
WIDER_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 16, "qk_nope_head_dim": 12}


def _mixture(
    name: str,
    prefix: str,
    base: Mapping[str, Any],
    wide: Mapping[str, Any] | None = None,
    deep: Mapping[str, Any] | None = None,
    **marks: Any,
) -> Architecture:
    return causal(name, prefix, {**EXPERTS, **base}, wide, deep, family="mixtures", **marks)


ARCHITECTURES = [
    _mixture("mixtral", "Mixtral", GQA),
    _mixture("qwen2_moe", "Qwen2Moe", {**GQA, **FFN}, WIDER_FFN),
    _mixture("qwen3_moe", "Qwen3Moe", {**GQA, **FFN, "head_dim": 8}, {**WIDER_FFN, "head_dim": 16}),
    _mixture("olmoe", "Olmoe", HEADS),
    _mixture("granitemoe", "GraniteMoe", HEADS),
    _mixture("granitemoeshared", "GraniteMoeShared", {**HEADS, "shared_intermediate_size": 16}),
    _mixture(
        "deepseek_v2",
        "DeepseekV2",
        {**ROUTED, **FFN, **LATENT, **HEADS, "v_head_dim": 8, "first_k_dense_replace": 0},
        {**WIDER_FFN, **WIDER_LATENT},
    ),
    _mixture(
        "deepseek_v3",
        "DeepseekV3",
        {**ROUTED, **FFN, **LATENT, **HEADS, "v_head_dim": 8, "first_k_dense_replace": 0},
        {**WIDER_FFN, **WIDER_LATENT},
    ),
    _mixture(
        "glm4_moe",
        "Glm4Moe",
        {**ROUTED, **FFN, **GQA, "head_dim": 8, "first_k_dense_replace": 0},
        {**WIDER_FFN, "head_dim": 16},
    ),
    _mixture("phimoe", "Phimoe", GQA, by_rows=True, note="routes by a backward pass of its own"),
    _mixture(
        "gpt_oss",
        "GptOss",
        {
            **GQA,
            "head_dim": 8,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"head_dim": 16},
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    _mixture("jetmoe", "JetMoe", {"num_key_value_heads": 1, "kv_channels": 8}, {"kv_channels": 16}),
    causal(
        "dbrx",
        "Dbrx",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "n_heads": 2,
            "n_layers": 2,
            "max_seq_len": 32,
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
        {
            "d_model": 32,
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
        {"n_layers": 4},
        family="mixtures",
        plain=True,
    ),
]
