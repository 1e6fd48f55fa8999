"""Audio models of ``transformers``."""

from collections.abc import Mapping
from typing import Any

from zoo.architecture import Architecture
from zoo.batches import features, next_tokens, tokens
from zoo.huggingface import USUAL, classifier, sized
from zoo.sequences import BART, BART_DEEPER, BART_WIDER

WAVE = {
    "conv_dim": [8, 8],
    "conv_stride": [4, 4],
    "conv_kernel": [8, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "layerdrop": 0.0,
    # Its masks come from numpy's random state, which no seed of torch repeats.
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
}
WAVE_WIDER = {"conv_dim": [16, 16], "classifier_proj_size": 16}


def _wave(
    name: str, prefix: str, base: Mapping[str, Any] | None = None, **marks: Any
) -> Architecture:
    return classifier(
        name,
        prefix,
        {**WAVE, **(base or {})},
        WAVE_WIDER,
        family="audio",
        inputs=lambda: {"input_values": features(160)},
        **marks,
    )


def _speech(
    name: str, prefix: str, base: Mapping[str, Any], time: int, channels_first: bool
) -> Architecture:
    shape = (4, time) if channels_first else (time, 4)
    build = sized(
        f"{prefix}Config",
        f"{prefix}ForConditionalGeneration",
        {**USUAL, **BART, "num_mel_bins": 4, **base},
        BART_WIDER,
        BART_DEEPER,
    )
    return Architecture(
        name,
        "audio",
        build,
        lambda: {"input_features": features(*shape), "decoder_input_ids": tokens()},
        next_tokens,
    )


ARCHITECTURES = [
    _wave("wav2vec2", "Wav2Vec2"),
    _wave(
        "wav2vec2-layer-norm",
        "Wav2Vec2",
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    ),
    _wave("wav2vec2-layerdrop", "Wav2Vec2", {"layerdrop": 0.3}),
    _wave("hubert", "Hubert"),
    _wave("wavlm", "WavLM", {"num_buckets": 8, "max_bucket_distance": 16}),
    _wave("data2vec-audio", "Data2VecAudio", {"conv_pos_kernel_size": 5}),
    _wave("unispeech", "UniSpeech"),
    _wave("wav2vec2-conformer", "Wav2Vec2Conformer", {"conv_depthwise_kernel_size": 3}),
    classifier(
        "audio-spectrogram-transformer",
        "AST",
        {
            "patch_size": 4,
            "time_stride": 4,
            "frequency_stride": 4,
            "max_length": 8,
            "num_mel_bins": 8,
        },
        family="audio",
        model="ASTForAudioClassification",
        inputs=lambda: {"input_values": features(8, 8)},
    ),
    _speech(
        "whisper", "Whisper", {"max_source_positions": 8, "max_target_positions": 32}, 16, True
    ),
    _speech(
        "speech_to_text",
        "Speech2Text",
        {
            "input_feat_per_channel": 4,
            "conv_channels": 8,
            "conv_kernel_sizes": [3, 3],
            "max_source_positions": 32,
            "max_target_positions": 32,
        },
        16,
        False,
    ),
]
