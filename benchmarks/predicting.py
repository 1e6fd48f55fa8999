"""What it takes to predict the multipliers of a Llama of 70 billion parameters, never run.

``python -m benchmarks.predicting`` prints time and memory; ``--quick`` has 2 layers in place of 80.
"""

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Sequence

import torch
from torch import nn

import flerm_fx

HIDDEN = 8192
INNER = 28_672
HEADS = 64
"""Of Llama 2 70B, with 8 heads of keys and values, 80 layers and 32,000 words."""


def llama(width: int = 64, words: int = 256, layers: int = 2) -> nn.Module:
    """A Llama of that shape: a small one has fewer and smaller heads in the same proportion."""
    from transformers import LlamaConfig, LlamaForCausalLM

    whole = width == HIDDEN
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=width * INNER // HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=HEADS if whole else HEADS // 8,
            num_key_value_heads=8 if whole else 1,
            use_cache=False,
        )
    )


def law() -> flerm_fx.ScalingLaw:
    """Fitted to widths and vocabularies of 2 and 3, and of 2 and 4 times the base's."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(256, (2, 4, 32), generator=generator)
    profile = flerm_fx.record_seeds(
        llama,
        lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
        inputs,
        targets,
        seeds=2,
        settle=0,
    )
    sizes = {"width": [128, 192], "words": [512, 1024]}
    return flerm_fx.scaling_law(llama, sizes, profile, seeds=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit a law, predict, and print what that took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predicting", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 layers, to see that all runs")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    fitted = law()
    print(f"law of {len(fitted.roles)} roles: {time.monotonic() - began:.0f} s")
    with torch.device("meta"):
        model = llama(HIDDEN, 32_000, 2 if options.quick else 80)
    before, began, began_cpu = _peak(), time.monotonic(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the law and of the depth
        compiled = flerm_fx.compile(model, fitted, emit="param_groups")
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    print(
        f"{billions:.1f} billion parameters, {len(compiled.multipliers)} multipliers: "
        f"{time.monotonic() - began:.0f} s ({time.process_time() - began_cpu:.0f} s of a CPU), "
        f"{_peak() - before:.2f} GB beyond {before:.2f}"
    )


def _peak() -> float:
    """The most memory that the process has had, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
