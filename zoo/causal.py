"""Causal language models of ``transformers``: dense transformers."""

from zoo.batches import VOCABULARY
from zoo.huggingface import causal

GQA = {"num_key_value_heads": 1}
HEADS = {"num_key_value_heads": 2}
HEAD_DIM = {"head_dim": 8}
WIDER_HEADS = {"head_dim": 16}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
NO_ROPE = "every other layer is without rotary embeddings"
ALTERNATING_DEEPER = {"layer_types": ["sliding_attention", "full_attention"] * 2}
SHORT_WINDOW = {"sliding_window": 3}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
GPT_WIDER = {"n_embd": 32}
GPT_DEEPER = {"n_layer": 4}
MPT = {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32}
CTRL = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 32}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}
XGLM = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "attention_heads": 2,
    "max_position_embeddings": 32,
}
GPT_NEO = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "max_position_embeddings": 32,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 3,
}

ARCHITECTURES = [
    causal("gpt2", "GPT2", GPT, GPT_WIDER, GPT_DEEPER, model="GPT2LMHeadModel", plain=True),
    causal(
        "gpt2-cache",
        "GPT2",
        {**GPT, "use_cache": True},
        GPT_WIDER,
        GPT_DEEPER,
        model="GPT2LMHeadModel",
        plain=True,
        note="returns its keys and values, as configured by default",
    ),
    causal("gpt_bigcode", "GPTBigCode", GPT, GPT_WIDER, GPT_DEEPER, plain=True),
    causal(
        "gpt_neo",
        "GPTNeo",
        GPT_NEO,
        {"hidden_size": 32, "intermediate_size": 64},
        {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
        plain=True,
    ),
    causal("gpt_neox", "GPTNeoX"),
    causal("gptj", "GPTJ", {**GPT, "rotary_dim": 4}, GPT_WIDER, GPT_DEEPER, plain=True),
    causal(
        "codegen",
        "CodeGen",
        {**GPT, "n_head": 4, "rotary_dim": 4},
        GPT_WIDER,
        GPT_DEEPER,
        plain=True,
    ),
    causal(
        "openai-gpt",
        "OpenAIGPT",
        GPT,
        GPT_WIDER,
        GPT_DEEPER,
        model="OpenAIGPTLMHeadModel",
        plain=True,
    ),
    causal(
        "ctrl",
        "CTRL",
        CTRL,
        {"n_embd": 32, "dff": 64},
        GPT_DEEPER,
        model="CTRLLMHeadModel",
        plain=True,
    ),
    causal(
        "opt",
        "OPT",
        {"ffn_dim": 32, "word_embed_proj_dim": 16},
        {"ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    causal(
        "bloom",
        "Bloom",
        BLOOM,
        {"hidden_size": 32},
        GPT_DEEPER,
        plain=True,
        by_rows=True,
        note="its GELU has a backward pass of its own",
    ),
    causal("mpt", "Mpt", MPT, {"d_model": 32}, {"n_layers": 4}, plain=True),
    causal("falcon", "Falcon"),
    causal("falcon-alibi", "Falcon", {"alibi": True, "multi_query": False}),
    causal("xglm", "XGLM", XGLM, {"d_model": 32, "ffn_dim": 64}, {"num_layers": 4}, plain=True),
    causal("biogpt", "BioGpt"),
    causal("llama", "Llama", GQA),
    causal("llama-cache", "Llama", {**GQA, "use_cache": True}, note="as configured by default"),
    causal("mistral", "Mistral", {**GQA, **SHORT_WINDOW}),
    causal("ministral", "Ministral", {**GQA, **HEAD_DIM, **SHORT_WINDOW}, WIDER_HEADS),
    causal("qwen2", "Qwen2", GQA),
    causal("qwen3", "Qwen3", {**GQA, **HEAD_DIM}, WIDER_HEADS),
    causal("gemma", "Gemma", {**GQA, **HEAD_DIM}, WIDER_HEADS),
    causal(
        "gemma2",
        "Gemma2",
        {**GQA, **HEAD_DIM, **SHORT_WINDOW, **ALTERNATING, "query_pre_attn_scalar": 8},
        {**WIDER_HEADS, "query_pre_attn_scalar": 16},
        ALTERNATING_DEEPER,
    ),
    causal(
        "gemma3",
        "Gemma3",
        {**GQA, **HEAD_DIM, **SHORT_WINDOW, **ALTERNATING, "query_pre_attn_scalar": 8},
        {**WIDER_HEADS, "query_pre_attn_scalar": 16},
        ALTERNATING_DEEPER,
        config="Gemma3TextConfig",
    ),
    causal("phi", "Phi", HEADS),
    causal("phi3", "Phi3", GQA),
    causal("stablelm", "StableLm", GQA),
    causal("starcoder2", "Starcoder2", GQA),
    causal("olmo", "Olmo", HEADS),
    causal("olmo2", "Olmo2", GQA),
    causal("olmo3", "Olmo3", {**GQA, **SHORT_WINDOW, **ALTERNATING}, {}, ALTERNATING_DEEPER),
    causal("cohere", "Cohere", {**GQA, "use_qk_norm": True}),
    causal(
        "cohere2",
        "Cohere2",
        {**GQA, **SHORT_WINDOW, **ALTERNATING},
        {},
        ALTERNATING_DEEPER,
        period=2,
        note=NO_ROPE,
    ),
    causal("granite", "Granite", {**GQA, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    causal("persimmon", "Persimmon"),
    causal(
        "smollm3",
        "SmolLM3",
        {**GQA, "no_rope_layers": [1, 0]},
        {},
        {"no_rope_layers": [1, 0] * 2},
        period=2,
        note=NO_ROPE,
    ),
    causal("glm", "Glm", {**GQA, **HEAD_DIM}, WIDER_HEADS),
    causal("glm4", "Glm4", {**GQA, **HEAD_DIM}, WIDER_HEADS),
    causal("nemotron", "Nemotron", GQA),
    causal("helium", "Helium", {**HEADS, **HEAD_DIM}, WIDER_HEADS),
    causal(
        "exaone4",
        "Exaone4",
        {**GQA, **SHORT_WINDOW, **ALTERNATING},
        {},
        ALTERNATING_DEEPER,
        period=2,
        note=NO_ROPE,
    ),
    causal("arcee", "Arcee", GQA),
    causal("apertus", "Apertus", GQA),
    causal("ernie4_5", "Ernie4_5", {**GQA, **HEAD_DIM}, WIDER_HEADS),
    causal("seed_oss", "SeedOss", {**GQA, **HEAD_DIM}, WIDER_HEADS),
    causal("diffllama", "DiffLlama", HEADS),
]
