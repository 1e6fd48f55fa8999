"""Recording and matching under the trainers of others, on real text; and the examples."""

import importlib
import math
import os
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
    # The trainer's warm-up begins at a rate of 0.
    assert callback.matcher.trajectory.steps == (1, 20, 40)
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
        ({"evry": 10}, "flerm_fx.record has no option 'evry'; it has at, every, generator"),
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
    with pytest.raises(flerm_fx.InputError, match="base_profile must be a BaseProfile, got str"):
        callbacks.MatchCallback("base.safetensors")
