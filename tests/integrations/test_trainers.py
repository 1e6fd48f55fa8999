"""Recording and matching under the trainers of others, on real text; and the examples."""

import importlib
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from examples import training_loop
from tests.cases import features
from tests.rounding import rounding

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
def test_the_training_loop_resumes_after_a_kill(tmp_path: Path) -> None:
    """SIGKILL at some step; the resumed run ends with the weights of one that was not killed."""
    steps = 130
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training_loop.main(["--steps", str(steps), "--folder", str(whole)])
    command = [sys.executable, "-m", "examples.training_loop", "--steps", str(steps)]
    # The other run has as many threads, so that sums are taken in one order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [*command, "--folder", str(broken)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    while not (broken / "large.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(
        [*command, "--folder", str(broken), "--resume"], cwd=ROOT, env=environment, check=True
    )
    one, other = (torch.load(f / "large.pt", weights_only=True) for f in (whole, broken))
    assert one["flerm"] == other["flerm"]
    assert one["loss"] == other["loss"]
    for name, weight in one["model"].items():
        assert torch.equal(weight, other["model"][name]), name
    profiles = [flerm_fx.BaseProfile.load(f / "base.safetensors") for f in (whole, broken)]
    assert profiles[0].start == profiles[1].start
    assert vars(profiles[0].trajectory) == vars(profiles[1].trajectory)


@pytest.mark.slow
def test_transformers_trainer_records_matches_and_resumes(tmp_path: Path) -> None:
    from examples import transformers_trainer

    arguments = ["--folder", str(tmp_path)]
    loss, callback = transformers_trainer.main(["--steps", "50", *arguments])
    assert loss < 4.0
    # The trainer's warm-up begins at a rate of 0; the first of the base's settling steps is 48.
    assert callback.matcher.trajectory.steps == (1, 20, 40, 48)
    profile = flerm_fx.BaseProfile.load(tmp_path / "gpt2.safetensors")
    assert profile.trajectory.steps == (1, 20, 40)
    assert profile.optimizer.name == "AdamW"
    # The last checkpoint, of step 50, goes; training resumes at step 40.
    for path in sorted((tmp_path / "large").glob("checkpoint-50/*")):
        path.unlink()
    (tmp_path / "large" / "checkpoint-50").rmdir()
    again, resumed = transformers_trainer.main(["--steps", "50", "--resume", *arguments])
    assert resumed.matcher.history == callback.matcher.history
    assert again == pytest.approx(loss, rel=1e-3)
    (tmp_path / "large" / "checkpoint-40" / "flerm_matcher.pt").unlink()
    for path in sorted((tmp_path / "large").glob("checkpoint-50/*")):
        path.unlink()
    (tmp_path / "large" / "checkpoint-50").rmdir()
    with pytest.raises(flerm_fx.InputError, match="flerm_matcher.pt: no such file, although"):
        transformers_trainer.main(["--steps", "50", "--resume", *arguments])


FIRST = ROOT / "examples" / "first"


@pytest.mark.parametrize("program", sorted(path.name for path in FIRST.glob("*.py")))
def test_a_first_program_has_five_lines_of_flerm_fx(program: str) -> None:
    ours = re.compile(r"flerm_fx|RecordCallback|MatchCallback|BaseProfile")
    code = (FIRST / program).read_text(encoding="utf-8").split('"""', 2)[2]
    assert 3 <= sum(bool(ours.search(line)) for line in code.splitlines()) <= 5


@pytest.mark.slow
def test_the_first_programs_run(tmp_path: Path) -> None:
    from examples.first import hf_trainer, lightning_module, plain_loop

    losses = plain_loop.main(steps=300, width=256)
    assert losses["compiled"] < losses["standard"] < 3.0
    for run in (hf_trainer.main, lightning_module.main):
        assert run(str(tmp_path / run.__module__), steps=60) < 4.0


@pytest.mark.slow
def test_reading_the_trainers_own_loader_leaves_the_run_what_it_is(tmp_path: Path) -> None:
    """Its first epoch has the batches, and the last weights are those, of a run without."""
    from transformers import Trainer, TrainingArguments

    from examples.first.hf_trainer import gpt2
    from flerm_fx.integrations.transformers import RecordCallback

    rows = [{"input_ids": row, "labels": row} for row in torch.arange(40 * 8).reshape(40, 8) % 256]
    settings = TrainingArguments(
        str(tmp_path), max_steps=8, report_to="none", save_strategy="no", use_cpu=True
    )
    ends, callback = [], RecordCallback(path=tmp_path / "base.safetensors", at=[3])
    for callbacks in ([], [callback]):
        trainer = Trainer(gpt2(16), settings, train_dataset=rows, callbacks=callbacks)
        trainer.train()
        ends.append(trainer.model.state_dict())
    for name, weight in ends[0].items():
        assert torch.equal(weight, ends[1][name]), name
    assert repr(callback) == f"RecordCallback({callback.recorder!r})"
    profile = callback.recorder.profile
    assert (len(profile.pool), profile.settle, profile.trajectory.steps) == (5, 20, (3,))


@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_a_path_that_cannot_be_written_is_found_out_before_training(
    package: str, tmp_path: Path
) -> None:
    callbacks = importlib.import_module(f"flerm_fx.integrations.{package}")
    model = nn.Linear(6, 3)
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2)]
    loader = [(features(6, 6), torch.arange(6) % 3)] * 2
    (tmp_path / "file").touch()
    callback = callbacks.RecordCallback(path=tmp_path / "file" / "base.safetensors")
    with pytest.raises(flerm_fx.ProfileError, match="cannot be written there .*; nothing was trai"):
        callback.attach(model, optimizers, loader)
    callback = callbacks.RecordCallback(path=tmp_path / "new" / "base.safetensors")
    recorder = callback.attach(model, optimizers, loader)
    recorder.profile.save(tmp_path / "new" / "base.safetensors")
    recorder.close()


@pytest.mark.slow
def test_a_loop_of_accelerate_is_an_ordinary_loop() -> None:
    accelerate = pytest.importorskip("accelerate")
    data = torch.utils.data.TensorDataset(features(48, 6), torch.arange(48) % 3)

    def run(prepare: bool) -> tuple[flerm_fx.BaseProfile, dict[str, float]]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        found: list[Any] = []
        for width in (8, 32):
            torch.manual_seed(0)
            model: Any = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
            optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
            loader: Any = torch.utils.data.DataLoader(data, batch_size=8)
            if prepare:
                model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
            attached: Any = (
                flerm_fx.record(model, optimizer, loader, every=1)
                if not found
                else flerm_fx.match(model, optimizer, found[0].profile, every=1)
            )
            found.append(attached)
            with attached:
                for index, (x, y) in enumerate(loader):
                    with accelerator.accumulate(model):
                        loss = nn.functional.cross_entropy(model(x), y)
                        accelerator.backward(loss)
                        if index % 2:
                            accelerator.clip_grad_norm_(model.parameters(), 1.0)
                        if prepare or index % 2:
                            optimizer.step()
                            optimizer.zero_grad()
        return found[0].profile, found[1].multipliers

    (plain, expected), (prepared, multipliers) = run(prepare=False), run(prepare=True)
    assert prepared.start == plain.start
    assert prepared.trajectory.steps == plain.trajectory.steps == (0, 1, 2)
    assert multipliers == expected
    assert set(multipliers.values()) != {1.0}


@pytest.mark.slow
def test_lightning_records_matches_and_resumes(tmp_path: Path) -> None:
    from examples import lightning_trainer

    arguments = ["--folder", str(tmp_path), "--steps"]
    loss, callback = lightning_trainer.main([*arguments, "45"])
    assert loss < 4.0
    assert callback.matcher.trajectory.steps == (0, 20, 40)
    profile = flerm_fx.BaseProfile.load(tmp_path / "lightning.safetensors")
    assert profile.trajectory.steps == (0, 20, 40)
    (checkpoint,) = (tmp_path / "width-128").rglob("*step=40.ckpt")
    saved = torch.load(checkpoint, weights_only=False)
    (state,) = (s for name, s in saved["callbacks"].items() if name.startswith("MatchCallback"))
    assert state["step"] == 40
    assert state["multipliers"] == callback.matcher.history[1].multipliers
    _, resumed = lightning_trainer.main([*arguments, "45", "--resume", str(checkpoint)])
    assert resumed.matcher.step == 45
    assert resumed.matcher.history[:2] == callback.matcher.history[:2]


def test_tensorboard_has_a_curve_for_each_parameter(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from flerm_fx.integrations.tensorboard import to_tensorboard

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    with SummaryWriter(str(tmp_path)) as writer:
        log = to_tensorboard(writer)
        with flerm_fx.record(model, optimizer, x, y, every=2, log=log) as recorder:
            for _ in range(5):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["flerm/fslr/bias", "flerm/fslr/weight"]
    course = recorder.profile.trajectory.fslrs["weight"]
    for event, step, estimate in zip(
        events.Scalars("flerm/fslr/weight"), (0, 2, 4), course, strict=True
    ):
        assert event.step == step
        assert event.value == pytest.approx(estimate.value, rel=rounding(1))  # kept as float32
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_options_of_callbacks_are_refused_when_they_are_made(package: str) -> None:
    callbacks = importlib.import_module(f"flerm_fx.integrations.{package}")
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    profile = flerm_fx.record(model, optimizer, features(6, 6), torch.arange(6) % 3).profile
    for options, message in (
        ({"evry": 10}, "flerm_fx.record has no option 'evry'; it has at, copy, every, generator"),
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"method": "guess"}, "unknown method 'guess'"),
        ({"path": 3}, "path must be a path or None, got 3"),
    ):
        with pytest.raises(flerm_fx.InputError, match=message):
            callbacks.RecordCallback(features(6, 6), **options)
    for options, message in (
        ({"settle": 3}, "flerm_fx.match has no option 'settle'"),
        ({"stretch": math.nan}, "stretch must be a finite number above 0, got nan"),
        ({"on_unmatched": "skip"}, "unknown on_unmatched 'skip'"),
    ):
        with pytest.raises(flerm_fx.InputError, match=message):
            callbacks.MatchCallback(profile, **options)
    assert repr(callbacks.RecordCallback()) == "RecordCallback(training has not begun)"
    callbacks.MatchCallback(flerm_fx.ScalingLaw(profile, {}))  # a law goes through a profile
    with pytest.raises(flerm_fx.InputError, match="must be a BaseProfile or a law, got str"):
        callbacks.MatchCallback("base.safetensors")
