"""Hugging Face's Trainer: record a small GPT-2 on real text, then train a wider one matched to it.

python -m examples.transformers_trainer --steps 60
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import flerm_fx
from examples.corpus import CONTEXT, corpus
from flerm_fx.integrations.transformers import MatchCallback, RecordCallback

EVERY = 20


def gpt2(width: int) -> GPT2LMHeadModel:
    """Over bytes, 2 blocks deep, with random weights."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256,
            n_positions=CONTEXT,
            n_embd=width,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def windows(count: int) -> list[dict[str, torch.Tensor]]:
    """Pieces of text, each its own label."""
    text = corpus().train[: count * CONTEXT].long().reshape(count, CONTEXT)
    return [{"input_ids": row, "labels": row} for row in text]


def main(arguments: list[str] | None = None) -> tuple[float, MatchCallback]:
    """Returns the large model's last logged loss, and its callback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("example-out"))
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "gpt2.safetensors"
    data = windows(512)

    def arguments_for(name: str) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(options.folder / name),
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            warmup_steps=options.steps // 10,
            logging_steps=EVERY,
            save_steps=EVERY,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        )

    def train(model: GPT2LMHeadModel, name: str, callback: Any, resume: bool = False) -> float:
        trainer = Trainer(model, arguments_for(name), train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return float(next(log["loss"] for log in trainer.state.log_history[::-1] if "loss" in log))

    if not options.resume:
        train(gpt2(32), "small", RecordCallback(path=path, every=EVERY))
    matched = MatchCallback(flerm_fx.BaseProfile.load(path), every=EVERY)
    loss = train(gpt2(128), "large", matched, options.resume)
    multipliers = matched.matcher.multipliers
    print(f"loss {loss:.3f}; multipliers {min(multipliers.values()):.3g} to", end=" ")
    print(f"{max(multipliers.values()):.3g}")
    return loss, matched


if __name__ == "__main__":
    main()
