"""State spaces and linear recurrences of ``transformers``, and their mixtures with attention."""

from zoo.batches import VOCABULARY
from zoo.huggingface import causal

GQA = {"num_key_value_heads": 1}
MAMBA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    "expand": 2,
    "time_step_rank": 2,
}
MAMBA_WIDER = {"hidden_size": 32, "time_step_rank": 4}
LAYERS = {"num_hidden_layers": 4}
HYBRID = {"mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_chunk_size": 4}
HYBRID_WIDER = {"mamba_d_head": 16}
ZAMBA = {
    "mamba_d_state": 4,
    "mamba_ngroups": 1,
    "n_mamba_heads": 2,
    "mamba_headdim": 16,
    "chunk_size": 4,
    "num_mem_blocks": 1,
    "adapter_rank": 4,
    "num_key_value_heads": 2,
}

ARCHITECTURES = [
    causal("mamba", "Mamba", MAMBA, MAMBA_WIDER, LAYERS, plain=True, family="recurrent"),
    causal(
        "falcon_mamba", "FalconMamba", MAMBA, MAMBA_WIDER, LAYERS, plain=True, family="recurrent"
    ),
    causal(
        "mamba2",
        "Mamba2",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 2,
            "expand": 2,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 4,
        },
        {"hidden_size": 32, "head_dim": 16},
        LAYERS,
        plain=True,
        family="recurrent",
    ),
    causal(
        "jamba",
        "Jamba",
        {
            **GQA,
            "mamba_d_state": 4,
            "mamba_dt_rank": 2,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        {"mamba_dt_rank": 4},
        family="recurrent",
        in_step=False,
    ),
    causal(
        "bamba",
        "Bamba",
        {**GQA, **HYBRID, "attn_layer_indices": [1]},
        HYBRID_WIDER,
        {"attn_layer_indices": [1, 3]},
        family="recurrent",
        in_step=False,
    ),
    causal(
        "falcon_h1",
        "FalconH1",
        {**GQA, **HYBRID, "mamba_d_ssm": 32, "head_dim": 8},
        {**HYBRID_WIDER, "mamba_d_ssm": 64, "head_dim": 16},
        family="recurrent",
    ),
    causal(
        "recurrent_gemma",
        "RecurrentGemma",
        {
            **GQA,
            "lru_width": 16,
            "attention_window_size": 4,
            "block_types": ["recurrent", "attention"],
        },
        {"lru_width": 32},
        family="recurrent",
        by_rows=True,
        in_step=False,
    ),
    causal(
        "rwkv",
        "Rwkv",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 32},
        {"hidden_size": 32},
        LAYERS,
        plain=True,
        family="recurrent",
    ),
    causal(
        "zamba2",
        "Zamba2",
        {**ZAMBA, "layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
        {"mamba_headdim": 32},
        {"layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
        family="recurrent",
        in_step=False,
    ),
    causal(
        "lfm2",
        "Lfm2",
        {**GQA, "layer_types": ["conv", "full_attention"]},
        {},
        {"layer_types": ["conv", "full_attention"] * 2},
        family="recurrent",
        in_step=False,
    ),
    causal(
        "qwen3_next",
        "Qwen3Next",
        {
            **GQA,
            "head_dim": 8,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 4,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        {"head_dim": 16, "linear_value_head_dim": 8, "moe_intermediate_size": 32},
        family="recurrent",
        sizes=("base", "wide"),
        note="unrolled over a chunk of time; a deeper one takes ten minutes",
    ),
    causal(
        "minimax",
        "MiniMax",
        {
            **GQA,
            "head_dim": 8,
            "block_size": 4,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "layer_types": ["linear_attention", "full_attention"],
        },
        {"head_dim": 16},
        {"layer_types": ["linear_attention", "full_attention"] * 2},
        family="recurrent",
        in_step=False,
    ),
]
