"""A training loop with all that a real one has, and flerm_fx in two lines of it.

    python -m examples.training_loop --steps 200
    python -m examples.training_loop --steps 200 --resume

records a small byte-level transformer, then trains one that is 4 times as wide, matched again every
50 steps, under a warm-up with cosine decay, gradient accumulation, clipping and checkpoints. Stop
the second part whenever you like; with ``--resume`` it goes on where the last checkpoint was.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

import flerm_fx
from examples.corpus import batches, corpus
from flerm_fx.commands.demo.corpus import Corpus
from flerm_fx.commands.demo.language_model import build_language_model

EVERY = 50
ACCUMULATED = 2


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats per byte."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def differentiate(loss: torch.Tensor) -> float:
    """Add the loss's gradients to those there are; returns the loss."""
    torch.autograd.backward(loss)
    return loss.item()


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up over a tenth of the run, then cosine decay."""
    warmup = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_small(text: Corpus, steps: int, path: Path) -> None:
    """Train the base and keep its profile."""
    model = build_language_model(width=32, depth=2, context=64, norm="pre", seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = schedule(optimizer, steps)
    pool = list(batches(text, 21, seed=1))
    with flerm_fx.record(model, optimizer, pool, every=EVERY) as recorder:
        for step, (inputs, targets) in enumerate(batches(text, steps)):
            optimizer.zero_grad()
            loss = differentiate(loss_of(model, inputs, targets))
            optimizer.step()
            scheduler.step()
            if step % EVERY == 0:
                print(f"small {step:5d}  loss {loss:.3f}")
    recorder.profile.save(path)


def train_large(text: Corpus, steps: int, path: Path, checkpoint: Path, resume: bool) -> float:
    """Train the target at the base's learning rate; returns its last loss."""
    model = build_language_model(width=128, depth=2, context=64, norm="pre", seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = schedule(optimizer, steps)
    profile = flerm_fx.BaseProfile.load(path)
    last = math.nan
    with flerm_fx.match(model, optimizer, profile, every=EVERY) as matcher:
        parts: dict[str, Any] = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "flerm": matcher,
        }
        if resume:
            state = torch.load(checkpoint, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            last = state["loss"]
        micro = batches(text, ACCUMULATED * steps)
        for _ in range(ACCUMULATED * matcher.step):  # what the run has seen already
            next(micro)
        while matcher.step < steps:
            optimizer.zero_grad()
            last = sum(
                differentiate(loss_of(model, *next(micro)) / ACCUMULATED)
                for _ in range(ACCUMULATED)
            )
            flerm_fx.clip_grad_norm_(model, 1.0)
            optimizer.step()
            scheduler.step()
            if (matcher.step - 1) % EVERY == 0:
                spread = matcher.multipliers.values()
                print(
                    f"large {matcher.step - 1:5d}  loss {last:.3f}  "
                    f"multipliers {min(spread):.3g} to {max(spread):.3g}"
                )
            if matcher.step % EVERY == 0:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**state, "loss": last}, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
    return last


def main(arguments: list[str] | None = None) -> float:
    """Both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("example-out"))
    parser.add_argument("--resume", action="store_true", help="go on with the large model")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    path, checkpoint = options.folder / "base.safetensors", options.folder / "large.pt"
    text = corpus()
    if not options.resume:
        train_small(text, options.steps, path)
    last = train_large(text, options.steps, path, checkpoint, options.resume)
    print(f"loss of the large model at the small one's learning rate: {last:.3f} nats per byte")
    return last


if __name__ == "__main__":
    main()
