"""The models that are measured: each with a batch, a loss, and real updates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.settings import Settings
from flerm_fx.commands.demo.corpus import read_corpus, sample_windows
from flerm_fx.model.inputs import Inputs, to_device
from flerm_fx.recipe.loss import Loss, resolve
from flerm_fx.start.procedure import batch_loss
from models.convnet import ConvNet
from models.resmlp import ResMLP
from models.transformer import Transformer

UPDATE_RATE = 2.0**10
"""Learning rate of the step that the unit updates are taken from: so large that an update is not
lost in the rounding of the weights, and a power of two, which is divided out exactly."""


@dataclass
class Case:
    """A model in its mode, and one batch for it.

    Attributes:
        key, title: for the command line, and for people.
        model: on the device of the run.
        inputs, targets: the batch.
        large: a step takes seconds, so that what can be extrapolated is.
    """

    key: str
    title: str
    model: nn.Module
    inputs: Inputs
    targets: Tensor
    large: bool = False

    @property
    def loss(self) -> Loss:
        """Cross entropy."""
        return resolve(None, self.targets)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters' values."""
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

    def on(self, device: torch.device) -> "Case":
        """The case, moved."""
        self.model.to(device)
        self.inputs = to_device(self.inputs, device)
        self.targets = to_device(self.targets, device)
        return self

    def forward(self) -> None:
        """A forward pass, without gradients."""
        with torch.no_grad():
            batch_loss(self.model, (self.inputs, self.targets), self.loss, None)

    def step(self) -> None:
        """A training step: forward and backward pass of the loss, to all parameters."""
        self.model.zero_grad(set_to_none=True)
        batch_loss(self.model, (self.inputs, self.targets), self.loss, None).backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)

    def unit_updates(self) -> dict[str, Tensor]:
        """Those of Adam's first step on this batch; the weights end as they were."""
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        before = {name: p.detach().clone() for name, p in trainable.items()}
        batch_loss(self.model, (self.inputs, self.targets), self.loss, None).backward()  # type: ignore[no-untyped-call]
        torch.optim.Adam(trainable.values(), lr=UPDATE_RATE).step()
        self.model.zero_grad(set_to_none=True)
        updates = {n: (p.detach() - before[n]) / UPDATE_RATE for n, p in trainable.items()}
        with torch.no_grad():
            for name, p in trainable.items():
                p.copy_(before[name])
        return updates


def text(sequences: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bytes of Python source, and the byte that follows each."""
    corpus = read_corpus(limit=400_000)
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = sample_windows(corpus.train, sequences, length, generator)
    return inputs.contiguous(), targets.contiguous()


def pairs_of_text(sequences: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Pairs of bytes as tokens, so that a large vocabulary is used as unevenly as text uses it."""
    windows, following = text(sequences, 2 * length + 1)
    whole = torch.cat([windows, following[:, -1:]], 1)
    tokens = (whole[:, ::2] * 127 + whole[:, 1::2]) % vocabulary  # (sequences, length + 1)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def labelled(*shape: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Gaussian inputs, and a label that a random linear map gives each: something to learn."""
    inputs = torch.randn(shape)
    features = inputs.flatten(1)
    return inputs, (features @ torch.randn(features.shape[1], classes)).argmax(1)


def _resmlp(quick: bool) -> Case:
    features, width, blocks, examples = (16, 32, 2, 16) if quick else (784, 256, 5, 256)
    inputs, targets = labelled(examples, features)
    title = f"ResMLP, N = {examples}"
    return Case("resmlp", title, ResMLP(features, 10, width, blocks), inputs, targets)


def _transformer(key: str, width: int, depth: int) -> Callable[[bool], Case]:
    def build(quick: bool) -> Case:
        sequences, length = (4, 8) if quick else (20, 64)
        features, blocks = (32, 1) if quick else (width, depth)
        model = Transformer(width=features, depth=blocks, context=64)
        title = f"transformer, {blocks} blocks of width {features}, N = {sequences} × {length}"
        return Case(key, title, model, *text(sequences, length))

    return build


def gpt2(
    sequences: int, length: int, width: int = 768, depth: int = 12, vocabulary: int = 50_257
) -> Case:
    """GPT-2's architecture with random weights and without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=depth,
        n_head=max(1, width // 64),
        n_positions=max(length, 128),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    inputs, targets = pairs_of_text(sequences, length, vocabulary)
    model = GPT2LMHeadModel(config).train()
    title = f"GPT-2, {depth} blocks of width {width}, N = {sequences} × {length}"
    return Case("gpt2", title, model, {"input_ids": inputs}, targets, large=True)


def _gpt2(quick: bool) -> Case:
    return gpt2(2, 16, width=32, depth=1, vocabulary=300) if quick else gpt2(8, 128)


def _convnet(key: str, training: bool) -> Callable[[bool], Case]:
    def build(quick: bool) -> Case:
        examples, side, width = (4, 8, 4) if quick else (64, 32, 16)
        inputs, targets = labelled(examples, 3, side, side)
        model = ConvNet(width=width)
        # Statistics of real data for evaluation mode; in training mode they are not read.
        with torch.no_grad():
            for _ in range(0 if quick else 20):
                model(inputs)
        mode = "training" if training else "evaluation"
        title = f"ConvNet, BatchNorm in {mode} mode, N = {examples}"
        return Case(key, title, model.train(training), inputs, targets)

    return build


_BUILDERS: dict[str, Callable[[bool], Case]] = {
    "resmlp": _resmlp,
    "transformer-2": _transformer("transformer-2", 128, 2),
    "transformer-6": _transformer("transformer-6", 128, 6),
    "convnet-train": _convnet("convnet-train", True),
    "convnet-eval": _convnet("convnet-eval", False),
    "gpt2": _gpt2,
}

KEYS = tuple(_BUILDERS)


def build(key: str, settings: Settings) -> Case:
    """A case by its key, seeded."""
    torch.manual_seed(0)
    return _BUILDERS[key](settings.quick).on(settings.device)


def tensors(model: nn.Module) -> int:
    """Trainable parameter tensors, L."""
    return sum(1 for p in model.parameters() if p.requires_grad)


def numbers(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)
