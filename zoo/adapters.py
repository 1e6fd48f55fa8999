"""Adapters of ``peft`` on frozen language models of ``transformers``."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.architecture import Architecture, Size
from zoo.batches import next_tokens, tokens
from zoo.causal import GPT, GPT_DEEPER, GPT_WIDER, GQA
from zoo.huggingface import DEEPER, HIDDEN, USUAL, WIDER, build

VIRTUAL = 3
"""Virtual tokens of prompt tuning, which have outputs of their own."""

PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
LLAMA: dict[Size, Mapping[str, Any]] = {
    "base": {**USUAL, **HIDDEN, **GQA},
    "wide": {**USUAL, **HIDDEN, **GQA, **WIDER},
    "deep": {**USUAL, **HIDDEN, **GQA, **DEEPER},
}


def _llama(size: Size) -> nn.Module:
    return build("LlamaConfig", "LlamaForCausalLM", LLAMA[size])


def _adapted(model: nn.Module, config: str, settings: Mapping[str, Any]) -> nn.Module:
    peft = importlib.import_module("peft")
    made = getattr(peft, config)(task_type="CAUSAL_LM", **settings)
    adapted: nn.Module = peft.get_peft_model(model, made)
    return adapted


def _adapter(
    name: str,
    config: str = "LoraConfig",
    *,
    wide: Mapping[str, Any] | None = None,
    by_rows: bool = False,
    **settings: Any,
) -> Architecture:
    """An adapter of each size of a Llama; ``wide`` changes the adapter of a Llama of equal size."""
    settings.setdefault("target_modules", PROJECTIONS)

    def builder(size: Size) -> nn.Module:
        if size == "wide" and wide is not None:
            return _adapted(_llama("base"), config, {**settings, **wide})
        return _adapted(_llama(size), config, settings)

    return Architecture(name, "adapters", builder, _inputs, next_tokens, by_rows=by_rows)


def _prompt(name: str, config: str, **settings: Any) -> Architecture:
    def builder(size: Size) -> nn.Module:
        return _adapted(_llama(size), config, {"num_virtual_tokens": VIRTUAL, **settings})

    return Architecture(
        name, "adapters", builder, _inputs, next_tokens, output_fn=_after_the_prompt, in_step=False
    )


def _inputs() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def _after_the_prompt(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits[:, -tokens().shape[1] :]


def _gpt2(size: Size) -> nn.Module:
    changes: dict[Size, Mapping[str, Any]] = {"base": {}, "wide": GPT_WIDER, "deep": GPT_DEEPER}
    model = build("GPT2Config", "GPT2LMHeadModel", {**USUAL, **GPT, **changes[size]})
    return _adapted(
        model, "LoraConfig", {"r": 2, "target_modules": ["c_attn"], "lora_dropout": 0.1}
    )


RANDOM: dict[str, Any] = {"init_lora_weights": False}
"""Random weights instead of a zero B, so that A has an FSLR."""

ARCHITECTURES = [
    _adapter("lora", r=2, lora_alpha=4),
    _adapter("lora-random", r=2, lora_alpha=4, **RANDOM),
    _adapter("lora-wider-rank", r=2, lora_alpha=4, wide={"r": 8}, **RANDOM),
    Architecture("lora-gpt2", "adapters", _gpt2, _inputs, next_tokens),
    _adapter("rslora", r=2, use_rslora=True, **RANDOM),
    _adapter("dora", by_rows=True, r=2, use_dora=True, **RANDOM),
    _adapter("lora-bias", r=2, lora_bias=True, **RANDOM),
    _adapter("lora-and-head", r=2, modules_to_save=["lm_head"], **RANDOM),
    _adapter("adalora", "AdaLoraConfig", init_r=4, target_r=2, total_step=10, **RANDOM),
    _adapter("vera", "VeraConfig", r=4, target_modules=["q_proj", "o_proj"], d_initial=0.3),
    _adapter("loha", "LoHaConfig", by_rows=True, r=2, init_weights=False),
    _adapter("lokr", "LoKrConfig", r=1, init_weights=False),
    _adapter("ia3", "IA3Config", feedforward_modules=["down_proj"]),
    _adapter(
        "oft", "OFTConfig", r=0, oft_block_size=4, target_modules=["q_proj"], init_weights=False
    ),
    _adapter(
        "boft", "BOFTConfig", boft_block_size=4, target_modules=["q_proj"], init_weights=False
    ),
    _adapter("hra", "HRAConfig", r=2, target_modules=["q_proj"], init_weights=False),
    _adapter("ln_tuning", "LNTuningConfig", target_modules=["input_layernorm"]),
    _prompt("prompt_tuning", "PromptTuningConfig"),
    _prompt("prefix_tuning", "PrefixTuningConfig"),
    _prompt("p_tuning", "PromptEncoderConfig", encoder_hidden_size=8),
]
