"""Progress: a bar where somebody watches, lines in the log in any case, and nothing that stays."""

import io
import logging
import sys
import time
from contextlib import redirect_stderr, suppress
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.boundary.progress import Progress, counting, is_watched


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self) -> bool:
        return True


def work(progress: Progress, steps: int = 4) -> None:
    with progress("measuring the model"), counting(f"{steps} steps", steps) as count:
        for _ in range(steps):
            count(1)


def test_a_terminal_has_a_bar_that_goes_away() -> None:
    with redirect_stderr(Terminal()) as terminal:
        work(Progress("compile"))
    drawn = terminal.getvalue()
    assert "flerm_fx.compile: measuring the model …" in drawn
    assert "flerm_fx.compile: 4 steps" in drawn
    assert "left" in drawn
    assert drawn.endswith("\r")
    assert not drawn.rsplit("\r", 2)[1].strip()


def test_without_tqdm_a_line_says_what_runs_and_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setenv("COLUMNS", "60")
    with redirect_stderr(Terminal()) as terminal:
        work(Progress("compile"))
    drawn = [line.strip() for line in terminal.getvalue().split("\r") if line.strip()]
    assert drawn == [
        "flerm_fx.compile: measuring the model …",
        *(f"flerm_fx.compile: 4 steps {part:4.0%}" for part in (0, 0.25, 0.5, 0.75, 1)),
    ]
    assert all(len(line) < 60 for line in terminal.getvalue().split("\r"))
    assert terminal.getvalue().endswith(f"\r{' ' * 59}\r")


def test_nothing_is_drawn_where_nobody_looks() -> None:
    with redirect_stderr(io.StringIO()) as piped:
        work(Progress("compile"))
    assert piped.getvalue() == ""
    with redirect_stderr(Terminal()) as terminal:
        work(Progress("compile", False))
    assert terminal.getvalue() == ""


def test_a_notebook_is_watched() -> None:
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    assert is_watched(stream)
    assert not is_watched(None)


def test_the_log_says_what_runs_and_about_how_long(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flerm_fx"):
        work(Progress("compile"))
    first, about, last = (record.getMessage() for record in caplog.records)
    assert first == "flerm_fx.compile: measuring the model"
    assert about.startswith("flerm_fx.compile: 4 steps, about ")
    assert last.startswith("flerm_fx.compile: measuring the model took ")


def test_a_call_within_another_is_a_step_of_it(caplog: pytest.LogCaptureFixture) -> None:
    with (
        redirect_stderr(Terminal()) as terminal,
        caplog.at_level(logging.INFO, "flerm_fx"),
        Progress("scaling_law")("measuring"),
        counting("2 models", 2) as count,
    ):
        work(Progress("compile"))
        count(1)
    assert "flerm_fx.compile" not in terminal.getvalue() + caplog.text
    assert "2 models" in terminal.getvalue()


def test_work_may_be_longer_than_it_was_thought_to_be() -> None:
    with (
        redirect_stderr(Terminal()) as terminal,
        Progress("compile")("measuring"),
        counting("2 steps", 2) as count,
    ):
        count(8)
        time.sleep(0.15)  # longer than tqdm waits before it draws again
        count(1)
    assert "100 %" in terminal.getvalue()


def test_an_interrupt_leaves_nothing_on_the_screen() -> None:
    with (
        redirect_stderr(Terminal()) as terminal,
        suppress(KeyboardInterrupt),
        Progress("compile")("measuring"),
    ):
        raise KeyboardInterrupt
    assert not terminal.getvalue().rsplit("\r", 2)[1].strip()
    with counting("steps", 1) as count:  # of nothing that runs
        count(1)


def test_progress_is_a_flag() -> None:
    with pytest.raises(flerm_fx.InputError, match="progress must be True or False"):
        Progress("compile", "yes")  # type: ignore[arg-type]


def test_every_long_call_is_told_of_and_can_be_silent(caplog: pytest.LogCaptureFixture) -> None:
    small, large = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    inputs = [(x, y)] * 2

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def run(**options: Any) -> None:
        adam = torch.optim.Adam(small.parameters(), lr=1e-3)
        with flerm_fx.record(small, adam, inputs, settle=2, **options) as recorder:
            step(small, adam)
        compiled = flerm_fx.compile(large, recorder.profile, **options)
        assert all(check.passed for check in compiled.check(**options))
        adam = torch.optim.Adam(large.parameters(), lr=1e-3)
        with flerm_fx.match(large, adam, recorder.profile, **options):
            step(large, adam)

    with redirect_stderr(Terminal()) as silent:
        run(progress=False)
    assert silent.getvalue() == ""
    with redirect_stderr(Terminal()) as terminal, caplog.at_level(logging.INFO, "flerm_fx"):
        run()
    for text in (
        "flerm_fx.record: capturing the model",
        "flerm_fx.record: 3 simulated steps, FSLRs at 2 of them",
        "flerm_fx.record: measuring step 0",
        "flerm_fx.compile: capturing the model",
        "flerm_fx.compile: 3 simulated steps, FSLRs at 2 of them",
        "flerm_fx.check: 3 simulated steps, FSLRs at 2 of them",
        "flerm_fx.match: capturing the model",
        "flerm_fx.match: measuring step 0",
    ):
        assert text in terminal.getvalue()
        assert text in caplog.text
