"""Sweeps over processes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from flerm_fx.commands.demo.corpus import Corpus
from flerm_fx.commands.demo.settings import Settings
from flerm_fx.commands.demo.sweep import Arm, build, sweep
from flerm_fx.commands.demo.train import Task, train
from flerm_fx.errors import FlermError

SETTINGS = Settings(
    base_width=16,
    width=2,
    depth=1,
    rates=(0.001, 0.01, 2.0**40),
    task=Task(steps=12, batch=4, context=8, validation_windows=8),
)
ARM = Arm("width 16", 16)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    text = torch.arange(5000, dtype=torch.int64).remainder(97).to(torch.uint8)
    return Corpus(text, text[:1000], files=1)


@pytest.mark.slow
def test_a_sweep_is_training_at_every_rate(corpus: Corpus) -> None:
    steps: Counter[str] = Counter()
    arms = [ARM, Arm("width 32", 32)]
    curves = sweep(arms, SETTINGS, corpus, lambda name, count: steps.update({name: count}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for arm, curve in zip(arms, curves, strict=True):
            assert curve.name == arm.name
            assert curve.rates == SETTINGS.rates
            expected = [
                train(build(arm, SETTINGS), rate, corpus, SETTINGS.task) for rate in SETTINGS.rates
            ]
            assert list(curve.losses) == pytest.approx(expected, rel=1e-6, nan_ok=True)
    finally:
        torch.set_num_threads(threads)
    # The diverged runs too: a bar that stops short would look like a hang.
    assert steps == {arm.name: 12 * 3 for arm in arms}


def test_equal_seeds_build_equal_models() -> None:
    first, second = build(ARM, SETTINGS), build(ARM, SETTINGS)
    other = build(ARM, dataclasses.replace(SETTINGS, task=Task(seed=1, context=8)))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    build(ARM, SETTINGS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_an_interrupt_stops_the_processes(corpus: Corpus) -> None:
    endless = dataclasses.replace(
        SETTINGS,
        rates=(0.001, 0.002, 0.004),
        task=dataclasses.replace(SETTINGS.task, steps=1_000_000),
    )

    def interrupt(name: str, count: int) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sweep([ARM], endless, corpus, interrupt)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_an_error_in_a_process_arrives_as_it_is(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(FlermError, match="missing"):
        sweep([Arm("compiled", 32, tmp_path / "missing.safetensors")], SETTINGS, corpus)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_ctrl_c_while_the_processes_begin_is_one_line(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "flerm_fx", "demo", "--workers", "2", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal's foreground has
    )

    def workers() -> int:
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        lines = (Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
        return sum(b"spawn_main" in line for line in lines)

    began = time.monotonic()
    while workers() < 2:
        assert time.monotonic() - began < 120 and demo.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)  # until Python runs in them, which then imports torch for more than a second
    os.killpg(demo.pid, signal.SIGINT)
    _, err = demo.communicate(timeout=120)
    assert (demo.returncode, err) == (
        130,
        f"flerm-fx: interrupted; no results were written to {tmp_path}/\n",
    )
