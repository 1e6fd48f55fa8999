"""The demo's model is a decoder-only transformer over bytes."""

import importlib

import torch
from torch import nn

VOCABULARY = 256


def build_language_model(width: int, depth: int, context: int, norm: str, seed: int) -> nn.Module:
    """Return a transformer with weights drawn from ``seed``: tokens (B, T) -> logits (B, T, 256).

    Raises:
        ImportError: if neither the installed package nor the checkout has the model.

    >>> model = build_language_model(width=16, depth=1, context=8, norm="pre", seed=0)
    >>> model(torch.zeros(2, 8, dtype=torch.long)).shape
    torch.Size([2, 8, 256])
    """
    try:
        models = importlib.import_module("flerm_fx.models.transformer")
    except ModuleNotFoundError:
        # A wheel carries the models inside the package; in a checkout they lie beside it.
        models = importlib.import_module("models.transformer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.Transformer(
            vocab=VOCABULARY, width=width, depth=depth, context=context, norm=norm
        )
    assert isinstance(model, nn.Module)
    return model
