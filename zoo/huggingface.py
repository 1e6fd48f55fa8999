"""Models of ``transformers`` from tiny configurations; nothing is downloaded."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from zoo.architecture import SIZES, Architecture, Size
from zoo.batches import CLASSES, VOCABULARY, classes, next_tokens, tokens

Settings = Mapping[str, Any]

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

USUAL = {"initializer_range": 0.2, "init_std": 0.2, "use_cache": False, **SPECIAL}
"""Settings of all models. The range is about 1/sqrt(width) at these widths: at the usual 0.02
attention is flat, and the FSLRs of queries and keys are lost in the rounding of float32, where a
wrong one would not show."""

HIDDEN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
WIDER = {"hidden_size": 32, "intermediate_size": 64}
DEEPER = {"num_hidden_layers": 4}


def build(config: str, model: str, settings: Settings) -> nn.Module:
    """A model of a class, from a configuration class and settings."""
    transformers = importlib.import_module("transformers")
    made = getattr(transformers, config)(**settings)
    module: nn.Module = getattr(transformers, model)(made)
    return module


def sized(
    config: str, model: str, base: Settings, wide: Settings, deep: Settings | None
) -> Callable[[Size], nn.Module]:
    """A builder from the settings of the base and what other sizes change in them."""
    changes: dict[Size, Settings] = {"base": {}, "wide": wide, "deep": deep or {}}
    return lambda size: build(config, model, {**base, **changes[size]})


def causal(
    name: str,
    prefix: str,
    base: Settings | None = None,
    wide: Settings | None = None,
    deep: Settings | None = None,
    *,
    family: str = "causal",
    model: str | None = None,
    config: str | None = None,
    plain: bool = False,
    **marks: Any,
) -> Architecture:
    """A causal language model.

    Args:
        name: of the architecture.
        prefix: of its classes' names.
        base: settings beside the usual ones (:data:`HIDDEN`).
        wide: settings of the wide model beside :data:`WIDER`.
        deep: settings of the deep model beside :data:`DEEPER`.
        family: of the architecture.
        model: the model class, if not ``<prefix>ForCausalLM``.
        config: the configuration class, if not ``<prefix>Config``.
        plain: whether the given settings are all, as where sizes have other names.
        marks: other fields of :class:`Architecture`.
    """
    usual = {} if plain else HIDDEN
    return Architecture(
        name,
        family,
        sized(
            config or f"{prefix}Config",
            model or f"{prefix}ForCausalLM",
            {**USUAL, **usual, **(base or {})},
            {**({} if plain else WIDER), **(wide or {})},
            {**({} if plain else DEEPER), **(deep or {})},
        ),
        tokens,
        next_tokens,
        **marks,
    )


def classifier(
    name: str,
    prefix: str,
    base: Settings | None = None,
    wide: Settings | None = None,
    deep: Settings | None = None,
    *,
    family: str = "encoders",
    model: str | None = None,
    config: str | None = None,
    plain: bool = False,
    inputs: Callable[[], Any] = tokens,
    **marks: Any,
) -> Architecture:
    """A classifier of sequences or images; arguments as for :func:`causal`."""
    usual = {} if plain else HIDDEN
    marks.setdefault("sizes", SIZES)
    return Architecture(
        name,
        family,
        sized(
            config or f"{prefix}Config",
            model or f"{prefix}ForSequenceClassification",
            {**USUAL, "num_labels": CLASSES, **usual, **(base or {})},
            {**({} if plain else WIDER), **(wide or {})},
            {**({} if plain else DEEPER), **(deep or {})},
        ),
        inputs,
        classes,
        **marks,
    )
