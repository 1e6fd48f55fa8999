"""A step or a compilation that is interrupted anywhere has happened wholly, or not at all."""

import contextlib
import copy
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from tests.cases import features, slow
from tests.faults import Interrupt, lines

X, Y = features(8, 4), torch.arange(8) % 3
OF_A_STEP = (
    "training/observer.py",
    "training/targets.py",
    "training/averages.py",
    "training/course.py",
    "training/matcher.py",
    "emit/scaled.py",
)
OF_WALKING = ("start/walk.py", "start/rounding.py", "model/lent.py", "model/untouched.py")
OF_COMPILING = ("emit/module.py", "emit/scaled.py", "emit/undo.py", "emit/first_steps.py")


class Net(nn.Module):
    """With tied weights, a buffer that moves, and a module that is there twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.first = nn.Linear(4, width)
        self.block = nn.Linear(width, width)
        self.again = self.block
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.block.weight
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.block(self.first(x)).tanh())
        return self.head(self.norm(self.tied(x)).relu())  # type: ignore[no-any-return]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


def recorded(steps: int = 0) -> flerm_fx.BaseProfile:
    model = Net(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    options: Any = {"every": 1} if steps else {}
    with flerm_fx.record(model, optimizer, X, Y, method="exact", **options) as recorder:
        train(model, optimizer, steps)
    return recorder.profile


def state_of(*parts: Any) -> list[Any]:
    """Copies of all that is in models, optimizers and matchers."""
    found: list[Any] = []
    for part in parts:
        if isinstance(part, nn.Module):
            found += [p.detach().clone() for p in part.parameters()]
            found += [None if p.grad is None else p.grad.clone() for p in part.parameters()]
            found += [b.clone() for b in part.buffers()]
            if isinstance(part, flerm_fx.CompiledModel):
                found += [dict(part.scales), dict(part.multipliers)]
        else:
            state = copy.deepcopy(part.state_dict())
            state.pop("waiting", None)  # a step that was undone is due again
            found.append(state)
    return found


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict | list | tuple):
        assert len(found) == len(expected)
        keys = expected if isinstance(expected, dict) else range(len(expected))
        for key in keys:
            assert_same(found[key], expected[key])
    else:
        assert found == expected


@pytest.mark.parametrize("times", [5, slow(80)])
@pytest.mark.parametrize("emit", ["graph", "module"])
def test_a_matched_step(emit: Any, times: int) -> None:
    profile = recorded(4)
    model = Net(12)
    compiled = flerm_fx.compile(model, profile, emit=emit, method="exact")
    trained = model if emit == "module" else compiled
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
    matcher = flerm_fx.match(trained, optimizer, profile, every=1, method="exact")
    train(trained, optimizer, 2)
    optimizer.zero_grad()
    nn.functional.cross_entropy(trained(X), Y).backward()
    checkpoint = copy.deepcopy([part.state_dict() for part in (compiled, optimizer, matcher)])
    gradients = [p.grad.clone() for p in trained.parameters() if p.grad is not None]

    def again() -> list[Any]:
        for each, state in zip((compiled, optimizer, matcher), checkpoint, strict=True):
            each.load_state_dict(copy.deepcopy(state))
        for p, gradient in zip(trained.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        return state_of(compiled, optimizer, matcher)

    before = again()
    with torch.no_grad():
        output, folded = compiled.eval()(X), compiled.fold()(X)
    optimizer.step()  # captures the model in this mode
    again()
    number = lines(optimizer.step, OF_A_STEP)
    after = state_of(compiled, optimizer, matcher)
    undone = 0
    for at in range(times // 3, number, number // times):
        assert_same(again(), before)
        # Or the step is one of fewer lines than the one that was counted, and is whole.
        with contextlib.suppress(Interrupt):
            assert lines(optimizer.step, OF_A_STEP, at) <= at, "an interrupt was lost"
        found = state_of(compiled, optimizer, matcher)
        is_stepped = found[0].ne(before[0]).any()
        if is_stepped and len(matcher.history) == len(before[-1]["history"]):
            continue  # torch's own step alone: no line of ours has run since
        assert_same(found, after if is_stepped else before)
        if not is_stepped:
            undone += 1
            with torch.no_grad():
                assert torch.equal(compiled(X), output)
                assert torch.equal(compiled.fold()(X), folded)
    assert undone > times // 2


def test_a_recorded_step() -> None:
    model = Net(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    recorder = flerm_fx.record(model, optimizer, X, Y, every=1, method="exact")
    train(model, optimizer, 2)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    checkpoint = copy.deepcopy([part.state_dict() for part in (model, optimizer, recorder)])

    def again() -> list[Any]:
        for each, state in zip((model, optimizer, recorder), checkpoint, strict=True):
            each.load_state_dict(copy.deepcopy(state))
        return state_of(model, optimizer, recorder)

    before = again()
    files = ("training/recorder.py",)
    number = lines(optimizer.step, files)
    assert number > len(dict(model.named_parameters()))  # each row of FSLRs is written in one
    for at in range(number):
        again()
        with pytest.raises(Interrupt):
            lines(optimizer.step, files, at)
        assert recorder.step == len(recorder.profile.trajectory.steps)
        if recorder.step == 2:
            assert_same(state_of(model, optimizer, recorder), before)


def everything(model: nn.Module) -> Callable[[], None]:
    """Asserts, later, that a model is what it is now."""
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    held = [(type(m), {k: copy.copy(v) for k, v in vars(m).items()}) for m in model.modules()]
    with torch.no_grad():
        output = copy.deepcopy(model).eval()(X)

    def check() -> None:
        assert [name for name, _ in model.named_parameters(remove_duplicate=False)] == names
        assert list(map(id, [*model.parameters(), *model.buffers()])) == list(map(id, tensors))
        for tensor, value in zip(tensors, values, strict=True):
            assert torch.equal(tensor, value)
        now = [(type(m), vars(m)) for m in model.modules()]
        assert [kind for kind, _ in now] == [kind for kind, _ in held]
        assert [list(own) for _, own in now] == [list(own) for _, own in held]
        for (_, own), (_, then) in zip(now, held, strict=True):
            assert own["_state_dict_hooks"] == then["_state_dict_hooks"]
            assert own["_load_state_dict_pre_hooks"] == then["_load_state_dict_pre_hooks"]
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(model).eval()(X), output)

    return check


@pytest.mark.parametrize("times", [4, slow(80)])
@pytest.mark.parametrize("options", [{"emit": "module"}, {"donate": True}], ids=str)
def test_a_compilation(
    options: dict[str, Any], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = recorded()
    found = flerm_fx.compile(Net(12), profile, method="exact")
    # Measuring is interrupted in a test of its own, and takes long.
    compiler = "flerm_fx.emit.compiling."
    monkeypatch.setattr(compiler + "assigned", lambda *_: (found.assignments, {}))

    def compile(model: nn.Module) -> flerm_fx.CompiledModel:
        return flerm_fx.compile(model, profile, method="exact", **options)

    number = lines(lambda: compile(Net(12)), OF_COMPILING)
    assert number > 100
    for at in range(times // 2, number, number // times):
        model = Net(12)
        as_before = everything(model)
        with pytest.raises(Interrupt):
            lines(lambda model=model: compile(model), OF_COMPILING, at)
        as_before()
    assert compile(model).fold()(X).shape == (8, 3)


@pytest.mark.parametrize("times", [3, slow(100)])
@pytest.mark.parametrize("what", ["record", "compile"])
def test_measuring_on_own_weights(what: str, times: int) -> None:
    xs, ys = [X, X + 1, X - 1], [Y, Y, Y]
    options: dict[str, Any] = {"method": "sampled", "offload": what == "compile"}
    base = Net(5)
    adam = torch.optim.Adam(base.parameters(), lr=1e-2)
    profile = flerm_fx.record(base, adam, xs, ys, settle=2, method="sampled").profile
    model = Net(12)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, optimizer, 1)  # with gradients, which are the user's

    def run() -> None:
        if what == "record":
            flerm_fx.record(model, optimizer, xs, ys, settle=2, **options).close()
        else:
            flerm_fx.compile(model, profile, emit="param_groups", **options)

    as_before, before = everything(model), state_of(model, optimizer)
    number = lines(run, OF_WALKING)
    as_before()
    for at in range(times // 2, number, number // times):
        with pytest.raises(Interrupt):
            lines(run, OF_WALKING, at)
        as_before()
        assert_same(state_of(model, optimizer), before)


@pytest.mark.slow
def test_measuring_on_own_weights_under_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C: wherever Python happens to be, in a weak reference's callback too.

    What is raised there Python drops and reports: an interrupt so lost is Python's, all else fails.
    """
    report = sys.unraisablehook

    def unraisable(dropped: Any) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            report(dropped)

    monkeypatch.setattr(sys, "unraisablehook", unraisable)
    xs, ys = [X, X + 1, X - 1], [Y, Y, Y]
    model = Net(12)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, optimizer, 1)
    as_before, before = everything(model), state_of(model, optimizer)
    seconds = 0.0
    for _ in range(2):  # the first of a process loads much
        began = time.perf_counter()
        flerm_fx.record(model, optimizer, xs, ys, settle=2, method="sampled").close()
        seconds = time.perf_counter() - began
    interrupted = 0
    for nth in range(60):
        handler = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, seconds * (0.3 + 0.6 * nth / 60))
        try:
            flerm_fx.record(model, optimizer, xs, ys, settle=2, method="sampled").close()
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        as_before()
        assert_same(state_of(model, optimizer), before)
    assert interrupted > 10


def test_what_fails_while_scales_change_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = flerm_fx.compile(Net(12), recorded(), method="exact")
    before = state_of(compiled)
    with torch.no_grad():
        output = compiled.eval()(X)

    def fails(*_: Any) -> None:
        raise MemoryError("made up")

    scales = {name: 2 * s for name, s in compiled.scales.items()}
    monkeypatch.setattr("flerm_fx.emit.scaled.lowered", fails)
    for change in (
        lambda: compiled.rescale(scales),
        lambda: compiled.set_extra_state({"scales": scales, "multipliers": {}}),
    ):
        with pytest.raises(MemoryError):
            change()
        assert_same(state_of(compiled), before)
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(compiled(X), output)
    compiled.rescale(scales)
    assert compiled.scales == scales
    assert all(compiled.multipliers[n] != m for n, m in before[-1].items())
