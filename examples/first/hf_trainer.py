"""Hugging Face's Trainer: two callbacks; rates, warm-up and clipping are those of its arguments.

python examples/first/hf_trainer.py
"""

import argparse
import pathlib

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from flerm_fx import BaseProfile
from flerm_fx.integrations.transformers import MatchCallback, RecordCallback

CONTEXT = 32


def gpt2(width: int) -> GPT2LMHeadModel:
    """A language model over bytes, 2 blocks deep."""
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
        )
    )


def main(folder: str = "example-out", steps: int = 100, rows: int = 800) -> float:
    """Returns the wide model's loss, in nats per byte."""
    text = torch.tensor(list(pathlib.Path(argparse.__file__).read_bytes()))
    pieces = text[: rows * CONTEXT].reshape(rows, CONTEXT)
    data = [{"input_ids": piece, "labels": piece} for piece in pieces]
    settings = TrainingArguments(
        folder,
        max_steps=steps,
        learning_rate=5e-3,  # the best of the narrow model
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        weight_decay=0.1,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )

    path = f"{folder}/base.safetensors"
    Trainer(gpt2(32), settings, train_dataset=data, callbacks=[RecordCallback(path=path)]).train()
    matched = MatchCallback(BaseProfile.load(path))
    trainer = Trainer(gpt2(128), settings, train_dataset=data, callbacks=[matched])
    trainer.train()
    return float(next(log["loss"] for log in trainer.state.log_history[::-1] if "loss" in log))


if __name__ == "__main__":
    print(f"loss {main():.2f} nats per byte, at the narrow model's learning rate")
