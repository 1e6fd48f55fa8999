"""Hooks that only look are not called while measuring; those that change the output are."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import flerm_fx
from flerm_fx.capture.tracing import capture
from tests.cases import features

X, Y = features(8, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
SEEN: list[str] = []


def mlp(width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


class DataDependent(nn.Sequential):
    """Has no graph."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y if y.sum() < 1e9 else 2 * y


def train(model: nn.Module, recorded: bool, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        recorder = flerm_fx.record(model, optimizer, X, Y, every=1) if recorded else None
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
    if recorder is not None:
        recorder.close()


class Watcher:
    """Counts in an object, its list and its dict."""

    def __init__(self) -> None:
        self.count, self.kinds, self.by_name = 0, [], {"n": 0}  # type: ignore[var-annotated]

    def __call__(self, *given: Any) -> None:
        self.count += 1
        self.kinds.append(type(given[-1]).__name__)
        self.by_name["n"] += 1

    def look(self, *given: Any) -> None:
        self(*given)


def watched_by(kind: str, model: nn.Module) -> Callable[[], Any]:
    """Put a hook on each module; what it has seen."""
    watcher, counts = Watcher(), [0]
    total = 0
    SEEN.clear()

    def nonlocal_(*given: Any) -> None:
        nonlocal total
        total += 1
        counts.append(len(given))

    hooks: dict[str, Any] = {
        "global list": lambda *given: SEEN.append(type(given[-1]).__name__),
        "closure": nonlocal_,
        "object": watcher,
        "method": watcher.look,
    }
    for module in model.modules():
        if kind == "backward":
            module.register_full_backward_hook(nonlocal_)
        elif kind == "pre":
            module.register_forward_pre_hook(nonlocal_)
        elif kind == "attribute":
            module.register_forward_hook(lambda module, args, out: setattr(module, "last", out))
        else:
            module.register_forward_hook(hooks[kind])
    return lambda: (
        list(SEEN),
        total,
        list(counts),
        watcher.count,
        list(watcher.kinds),
        dict(watcher.by_name),
    )


KINDS = ["global list", "closure", "object", "method", "backward", "pre", "attribute"]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ungraphed", [False, True], ids=["graph", "ungraphed"])
def test_hooks_see_training_alone(kind: str, ungraphed: bool) -> None:
    seen, outputs = [], []
    for recorded in (False, True):
        model = DataDependent(*mlp()) if ungraphed else mlp()
        look = watched_by(kind, model)
        train(model, recorded)
        seen.append(look())
        outputs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert seen[0] == seen[1]
    assert torch.equal(*outputs)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_full_backward_hook"])
def test_a_hook_that_only_looks_is_called_in_one_run_of_a_capture(
    kind: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"  # what a hook writes to a file, nothing can put back

    def write(*given: Any) -> None:
        with log.open("a") as file:
            file.write(".")

    model = mlp()
    for module in model:
        getattr(module, kind)(write)
    captured = capture(model, X)
    assert captured.hooks == frozenset()
    assert captured.graph_module is not None
    assert log.read_text() == "..."


def test_global_hooks_see_training_alone() -> None:
    calls: list[str] = []
    handle = register_module_forward_hook(lambda m, args, out: calls.append(type(out).__name__))
    try:
        train(mlp(), recorded=True)
    finally:
        handle.remove()
    assert calls == ["Tensor"] * (3 * 4)


def fslr_by_hand(model: nn.Module, name: str) -> float:
    """Root mean square of a finite difference along Adam's first unit update."""
    loss = nn.functional.cross_entropy(model(X), Y)
    parameter = model.get_parameter(name)
    (gradient,) = torch.autograd.grad(loss, [parameter])
    h = 1e-3
    with torch.no_grad():
        parameter.add_(gradient.sign(), alpha=h)
        above = model(X)
        parameter.sub_(gradient.sign(), alpha=2 * h)
        change = (above - model(X)) / (2 * h)
        parameter.add_(gradient.sign(), alpha=h)
    return change.square().mean().sqrt().item()


def in_place(module: nn.Module, args: Any, output: Tensor) -> None:
    output.mul_(2)


def replaces(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 3 * output


def before_it(module: nn.Module, args: Any) -> Any:
    return (args[0] * 2,)


@pytest.mark.parametrize("hook", [in_place, replaces, before_it], ids=lambda hook: hook.__name__)
def test_hooks_that_change_the_output_are_measured(hook: Any) -> None:
    model = mlp()
    model[2].register_forward_hook(lambda *given: SEEN.append(""))
    if hook is before_it:
        model[0].register_forward_pre_hook(hook)
    else:
        model[0].register_forward_hook(hook)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start = flerm_fx.record(model, optimizer, X, Y, method="exact").profile.start
    for name in ("0.weight", "2.weight"):
        assert start[name].value == pytest.approx(fslr_by_hand(model, name), rel=1e-3)
    (kept,) = capture(model, X).hooks
    assert kept.path == "0"


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hooks_of_norms_are_kept_and_watchers_beside_them_are_not(norm: Any) -> None:
    model = mlp()
    norm(model[0])
    model[2].register_forward_hook(lambda *given: None)
    (kept,) = capture(model, X).hooks
    assert (kept.path, kept.kind) == ("0", "_forward_pre_hooks")
    found = flerm_fx.measure(model, {"2.weight": torch.ones(3, 5)}, X, method="exact")
    hidden = model[:2](X)  # with its hook
    expected = hidden.sum(1).square().mean().sqrt().item()
    assert found["2.weight"].value == pytest.approx(expected, rel=1e-5)


def test_a_backward_hook_that_changes_gradients_has_no_graph_and_is_in_the_settling_steps() -> None:
    def flipped(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        return tuple(-g if g is not None else None for g in grad_input)

    model = mlp()
    plain = flerm_fx.record(model, torch.optim.SGD(model.parameters(), lr=1e-2), X, Y).profile
    model[2].register_full_backward_hook(flipped)
    pool = [X, X.flip(0)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(flerm_fx.CaptureWarning, match="a backward hook changes gradients"):
        start = flerm_fx.record(model, optimizer, pool, [Y, Y.flip(0)], settle=1).profile.start
    assert start["0.weight"].value != pytest.approx(plain.start["0.weight"].value, rel=1e-3)
    with pytest.warns(flerm_fx.CaptureWarning):
        exact, sampled = (
            flerm_fx.measure(model, {"0.weight": torch.ones(5, 6)}, X, method=method, rtol=0.02)
            for method in ("exact", "sampled")
        )
    # What is measured is the function's change, which a changed gradient is not.
    error = 5 * sampled["0.weight"].stderr + 1e-6
    assert abs(exact["0.weight"].value - sampled["0.weight"].value) <= error


def test_a_hook_that_needs_another_is_kept_with_it() -> None:
    held: dict[str, Tensor] = {}
    model = mlp()
    model[0].register_forward_hook(lambda module, args, output: held.update(z=output))
    model[2].register_forward_hook(lambda module, args, output: output + held["z"].sum(1, True))
    assert len(capture(model, X).hooks) == 2
    assert held == {}
