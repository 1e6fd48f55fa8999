"""Around torch.export: faults of our own, interrupts, and what other threads say."""

import logging
import signal
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.capture.exporting import exporting
from flerm_fx.capture.tracing import capture
from tests.cases import DataDependent, features

X = features(4, 4)

PASSES = [
    "graphs.clean",
    "graphs.output_only",
    "graphs.functionalize",
    "graphs.layer_by_layer",
    "graphs.separate_draws",
    "graphs.without_selected_output",
    "tracing.check_same",
]


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("kind", [RuntimeError, AttributeError, AssertionError])
def test_a_fault_of_our_own_is_raised(
    name: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*args: Any) -> None:
        raise kind("a fault of our own")

    monkeypatch.setattr(f"flerm_fx.capture.{name}", faulty)
    with pytest.raises(kind, match="a fault of our own"):
        capture(nn.Linear(4, 2), X)


def test_what_the_models_code_raises_while_tracing_is_a_warning_with_its_line() -> None:
    class Asks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if torch.compiler.is_exporting() is False else y.numpy()  # not in a trace

    with pytest.warns(flerm_fx.CaptureWarning, match=r"test_exporting\.py:\d+: return y if torch"):
        assert capture(Asks(4, 2), X).graph_module is None


class Interrupted(nn.Linear):
    """Is interrupted while it is exported."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            signal.raise_signal(signal.SIGINT)
            Interrupted.calls += 1  # reached: the interrupt waits
        return super().forward(x)


def test_an_interrupt_waits_for_the_end_of_export() -> None:
    model = Interrupted(4, 2)
    Interrupted.calls = 0
    weight, state, handler = model.weight.clone(), torch.get_rng_state(), signal.getsignal(2)
    with pytest.raises(KeyboardInterrupt):
        capture(model, X)
    assert Interrupted.calls > 0
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(model.weight, weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model._forward_pre_hooks


def test_another_thread_exports_without_signals() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(capture(nn.Linear(4, 2), X)))
    thread.start()
    thread.join()
    assert found[0].graph_module is not None


def test_what_torch_logs_is_silent_in_this_thread_alone(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    log, own = logging.getLogger("torch.export._trace"), logging.getLogger("own")

    def say() -> None:
        log.error("from another thread")
        print("to stderr", file=sys.stderr)

    with exporting():
        log.error("from this thread")
        own.warning("from the user")
        thread = threading.Thread(target=say)
        thread.start()
        thread.join()
    log.error("afterwards")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["from the user", "from another thread", "afterwards"]
    written = capsys.readouterr().err  # torch's own handler may write here what is logged
    assert "to stderr\n" in written and "from this thread" not in written


@pytest.mark.filterwarnings("ignore::flerm_fx.CaptureWarning")
def test_a_failed_export_says_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    assert capture(DataDependent(), X).graph_module is None
    assert capfd.readouterr().err == ""
