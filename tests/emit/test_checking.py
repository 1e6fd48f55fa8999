"""The check measures on the compiled model's own weights, and leaves them as they were."""

import gc
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from benchmarks.memory import peak_bytes
from flerm_fx.emit.first_steps import is_watched
from flerm_fx.probe.capture_prober import CaptureProber
from models.resmlp import ResMLP
from tests.cases import features

X, Y = features(9, 12), torch.arange(9) % 5


def _wide(width: int) -> nn.Module:
    torch.manual_seed(0)
    return ResMLP(12, width, 5, 3)


def _wide_profile(settle: int) -> flerm_fx.BaseProfile:
    small = _wide(8)
    adam = torch.optim.Adam(small.parameters(), lr=0.01)
    return flerm_fx.record(small, adam, X, Y, settle=settle, method="exact").profile


EMITS = ["graph", "module", "param_groups"]


@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize("settle", [0, 3])
def test_check_on_own_weights_is_check_on_a_copy(settle: int, emit: Any) -> None:
    profile = _wide_profile(settle)
    own, copied = (
        flerm_fx.compile(_wide(32), profile, emit=emit, method="exact", copy=copy)
        for copy in (False, True)
    )
    for check, on_copy in zip(own.check(), copied.check(), strict=True):
        # Stored weights are used as they are, and on a copy effective ones are divided again.
        assert check.measured.value == pytest.approx(on_copy.measured.value, rel=1e-3)
        assert check.passed and on_copy.passed


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("emit", EMITS)
def test_check_leaves_weights_gradients_and_first_steps(
    emit: Any, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = flerm_fx.compile(_wide(32), _wide_profile(3), emit=emit, method="exact")
    compiled(X).square().mean().backward()
    parameters = list(compiled.parameters())
    gradients = [p.grad for p in parameters]
    held = [p.detach().clone() for p in parameters], [g.clone() for g in gradients if g is not None]
    watched = is_watched(compiled)
    if fails:
        monkeypatch.setattr(CaptureProber, "estimate", _raise)
        with pytest.raises(ValueError, match="amid"):
            compiled.check()
    else:
        compiled.check()
    now = list(compiled.parameters())
    assert all(a is b for a, b in zip(parameters, now, strict=True))
    assert all(p.grad is g for p, g in zip(now, gradients, strict=True))
    assert all(torch.equal(p, before) for p, before in zip(now, held[0], strict=True))
    assert all(torch.equal(g, before) for g, before in zip(gradients, held[1], strict=True))
    assert is_watched(compiled) == watched


def _raise(*_: Any, **__: Any) -> Any:
    raise ValueError("amid a walk")


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # once, of torch before 2.11
@pytest.mark.parametrize("emit", EMITS)
def test_check_takes_no_copy_of_the_weights(emit: Any) -> None:
    profile, peaks = _wide_profile(2), {}
    for copy in (False, True):
        compiled = flerm_fx.compile(_wide(512), profile, emit=emit, method="exact", copy=copy)
        size = sum(p.numel() * p.element_size() for p in compiled.parameters())
        gc.collect()
        peaks[copy] = peak_bytes(compiled.check, torch.device("cpu")) / size
    assert peaks[False] <= peaks[True] - 0.9
