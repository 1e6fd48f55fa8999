"""Encoders of ``transformers``, as classifiers of sequences."""

from zoo.batches import TIME, VOCABULARY, tokens
from zoo.huggingface import HIDDEN, classifier

EMBEDDING = {"embedding_size": 16}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 16,
    "hidden_dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": 32,
}
XLNET = {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
XLM = {
    "emb_dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_words": VOCABULARY,
    "max_position_embeddings": 32,
}
FUNNEL = {
    "vocab_size": VOCABULARY,
    "block_sizes": [1, 1],
    "num_decoder_layers": 1,
    "d_model": 16,
    "n_head": 2,
    "d_head": 8,
    "d_inner": 32,
}
DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 8,
}


ARCHITECTURES = [
    classifier("bert", "Bert"),
    classifier("roberta", "Roberta"),
    classifier("albert", "Albert", EMBEDDING, in_step=False, note="all layers share parameters"),
    classifier("electra", "Electra", EMBEDDING, {"embedding_size": 32}),
    classifier(
        "distilbert",
        "DistilBert",
        DISTILBERT,
        {"dim": 32, "hidden_dim": 64},
        {"n_layers": 4},
        plain=True,
    ),
    classifier("deberta", "Deberta", DISENTANGLED),
    classifier(
        "deberta_v2",
        "DebertaV2",
        {
            **DISENTANGLED,
            "position_buckets": 4,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    classifier("mpnet", "MPNet", {"relative_attention_num_buckets": 32}),
    classifier("longformer", "Longformer", {"attention_window": 4}, note="branches on data"),
    classifier(
        "funnel",
        "Funnel",
        FUNNEL,
        {"d_model": 32, "d_head": 16, "d_inner": 64},
        {"block_sizes": [2, 2]},
        plain=True,
    ),
    classifier(
        "convbert",
        "ConvBert",
        {**EMBEDDING, "head_ratio": 1, "conv_kernel_size": 3},
        {"embedding_size": 32},
    ),
    classifier("fnet", "FNet"),
    classifier(
        "modernbert",
        "ModernBert",
        {
            "local_attention": 4,
            "global_attn_every_n_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        {},
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        in_step=False,
        note="the first layer has no norm of its own",
    ),
    classifier(
        "nystromformer",
        "Nystromformer",
        {"num_landmarks": 2, "segment_means_seq_len": TIME, "conv_kernel_size": 3},
    ),
    classifier("roformer", "RoFormer", EMBEDDING, {"embedding_size": 32}),
    classifier(
        "squeezebert",
        "SqueezeBert",
        {
            "embedding_size": 16,
            "q_groups": 2,
            "k_groups": 2,
            "v_groups": 2,
            "post_attention_groups": 1,
            "intermediate_groups": 2,
            "output_groups": 2,
        },
        {"embedding_size": 32},
    ),
    classifier("xlnet", "XLNet", XLNET, {"d_model": 32, "d_inner": 64}, {"n_layer": 4}, plain=True),
    classifier("xlm", "XLM", XLM, {"emb_dim": 32}, {"n_layers": 4}, plain=True),
    classifier(
        "mobilebert",
        "MobileBert",
        {"embedding_size": 16, "intra_bottleneck_size": 8, "num_feedforward_networks": 2},
        {"embedding_size": 32, "intra_bottleneck_size": 16},
    ),
    classifier("rembert", "RemBert", {"input_embedding_size": 8, "output_embedding_size": 8}),
    classifier("megatron_bert", "MegatronBert"),
    classifier("big_bird", "BigBird", {"attention_type": "original_full"}),
    classifier(
        "canine",
        "Canine",
        {"local_transformer_stride": 2, "downsampling_rate": 2, "num_hash_buckets": 16},
    ),
    classifier("ibert", "IBert"),
    classifier(
        "esm",
        "Esm",
        {"position_embedding_type": "rotary", "mask_token_id": 3, "hidden_dropout_prob": 0.0},
    ),
    classifier("eurobert", "EuroBert", {"num_key_value_heads": 1}),
    classifier(
        "perceiver",
        "Perceiver",
        {
            **{k: v for k, v in HIDDEN.items() if k in ("vocab_size", "max_position_embeddings")},
            "num_latents": 4,
            "d_latents": 16,
            "d_model": 16,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "qk_channels": 16,
            "v_channels": 16,
        },
        {"d_latents": 32, "d_model": 32, "qk_channels": 32, "v_channels": 32},
        {"num_self_attends_per_block": 4},
        plain=True,
        inputs=lambda: {"inputs": tokens()},
    ),
]
