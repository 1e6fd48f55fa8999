"""What trainers save of models with scale nodes: what the plain model loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx

TOKENS = torch.randint(31, (8, 8), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": TOKENS, "labels": TOKENS}


def gpt2(width: int, tied: bool) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(width)
    config: Any = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    config |= {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=31, n_positions=16, n_embd=width, n_layer=1, n_head=2, **config)
    )


def llama(width: int, tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(width)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            use_cache=False,
            tie_word_embeddings=tied,
        )
    )


def trained(model: nn.Module, folder: Path, resume: str | None = None) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data: Any = [{"input_ids": row, "labels": row} for row in TOKENS]
    Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=resume)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("emit", ["module", "graph"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_transformers_trainer(make: Any, tied: bool, emit: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    small = make(8, tied)
    optimizer = torch.optim.AdamW(small.parameters(), lr=5e-3)
    profile = flerm_fx.record(small, optimizer, BATCH).profile

    def build() -> nn.Module:
        large = make(16, tied)
        compiled = flerm_fx.compile(large, profile, emit=emit)
        return large if emit == "module" else compiled

    model = build()
    trained(model, tmp_path / "run")
    expected = model(**BATCH).logits
    again = build()
    trained(again, tmp_path / "run", str(tmp_path / "run" / "checkpoint-2"))
    for parameter, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other)
    folder = tmp_path / "run" / "checkpoint-4"
    if emit == "module":
        model.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
        for path in (folder, tmp_path / "saved"):
            plain = type(small).from_pretrained(path)
            torch.testing.assert_close(plain(**BATCH).logits, expected)
    plain = make(16, tied)
    found = plain.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert set(found.missing_keys) <= ({"lm_head.weight"} if tied else set())
    torch.testing.assert_close(plain(**BATCH).logits, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("emit", ["module", "graph"])
def test_lightning(emit: Any, tmp_path: Path) -> None:
    import lightning as L

    def mlp(width: int) -> nn.Module:
        torch.manual_seed(width)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    small = mlp(6)
    adam = torch.optim.Adam(small.parameters(), lr=1e-2)
    profile = flerm_fx.record(small, adam, x, y, method="exact").profile

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            model = mlp(12)
            compiled = flerm_fx.compile(model, profile, emit=emit, method="exact")
            self.net = model if emit == "module" else compiled

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    def fit(steps: int, resume: Path | None = None) -> Module:
        module = Module()
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
        options: Any = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
        options |= {"enable_checkpointing": False, "enable_model_summary": False}
        trainer = L.Trainer(max_steps=steps, **options)
        trainer.fit(module, data, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module

    whole = fit(4)
    fit(2)
    resumed = fit(4, tmp_path / "2.ckpt")
    for parameter, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, other)
    plain = nn.ModuleDict({"net": mlp(12)})
    state = torch.load(tmp_path / "4.ckpt", weights_only=True)["state_dict"]
    plain.load_state_dict(state, strict=False)
    torch.testing.assert_close(plain["net"](x), whole.net(x))
