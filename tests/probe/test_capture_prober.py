"""A ``Prober`` finds at each call what a fresh ``measure`` finds, and says when it cannot."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from tests.cases import features, make, random_updates, slow


@pytest.mark.parametrize(
    "name,method",
    [
        ("oddity", "sampled"),
        slow("oddity", "exact"),
        slow("convnet", "kronecker"),
        slow("convnet", "auto"),
    ],
)
def test_a_second_call_is_a_fresh_measure_bit_for_bit(name: str, method: str) -> None:
    model, inputs = make(name)
    updates = random_updates(model)
    prober = flerm_fx.Prober(model, inputs)
    first = prober.measure(updates, method=method)  # type: ignore[arg-type]
    assert first == flerm_fx.measure(model, updates, inputs, method=method)  # type: ignore[arg-type]
    with torch.no_grad():  # as training does
        for parameter in model.parameters():
            parameter.mul_(1.25)
        for buffer in model.buffers():
            buffer.add_(1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    some = dict(list(updates.items())[:2])
    for wanted in (updates, some):
        found = prober.measure(wanted, method=method, generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        fresh = flerm_fx.measure(model, wanted, inputs, method=method, generator=generator)  # type: ignore[arg-type]
        assert found == fresh
    assert found != {name: first[name] for name in some}
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


class Settings(nn.Module):
    """With whatever a graph takes for good."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.gain = 1.0
        self.table = torch.ones(6)
        self.norm = nn.BatchNorm1d(6)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(self.norm(self.first(x) * self.table).tanh()) * self.gain  # type: ignore[no-any-return]


def _gain(model: Settings) -> None:
    model.gain = 3.0


def _table(model: Settings) -> None:
    model.table.mul_(2)


def _mode(model: Settings) -> None:
    model.eval()


def _hook(model: Settings) -> None:
    model.last.register_forward_hook(lambda module, args, output: 2 * output)


def _frozen(model: Settings) -> None:
    model.norm.requires_grad_(False)


@pytest.mark.parametrize("change", [_gain, _table, _mode, _hook, _frozen])
def test_what_a_graph_holds_may_change(change: Callable[[Settings], None]) -> None:
    model, x = Settings(), features(8, 4)
    updates = {"first.weight": torch.ones(6, 4), "last.bias": torch.ones(2)}
    prober = flerm_fx.Prober(model, x)
    before = prober.measure(updates, method="exact")
    assert model.calls == 0
    change(model)
    found = prober.measure(updates, method="exact")
    assert found == flerm_fx.measure(model, updates, x, method="exact")
    assert (found == before) == (change is _frozen)
    model.requires_grad_(False)
    with pytest.raises(flerm_fx.InputError, match="no trainable parameter"):
        prober.measure(updates)


def test_a_graph_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from flerm_fx.probe import measure

    made = []
    capture = measure.capture
    monkeypatch.setattr(measure, "capture", lambda *a: made.append(a) or capture(*a))
    model = nn.LSTM(4, 3, batch_first=True)
    prober = flerm_fx.Prober(model, features(5, 2, 4))
    updates = random_updates(model)
    for _ in range(3):
        prober.measure(updates, method="sampled", samples=1)
        with torch.no_grad():
            model.weight_ih_l0.add_(1.0)
        model(features(5, 2, 4))
    assert len(made) == 1
    for mode in (False, True, False):
        prober.measure(random_updates(model.train(mode)), method="sampled", samples=1)
    assert len(made) == 2


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda m: setattr(m, "last", nn.Linear(6, 2)), r"module 'last' is another object"),
        (lambda m: setattr(m, "more", nn.ReLU()), r"module 'more' is new"),
        (lambda m: delattr(m, "norm"), r"module 'norm' is gone"),
        (
            lambda m: setattr(m.last, "bias", nn.Parameter(torch.ones(2))),
            r"parameter 'last.bias' is another object",
        ),
        (
            lambda m: setattr(m.norm, "running_mean", torch.ones(6)),
            r"buffer 'norm.running_mean' is another object",
        ),
        (
            lambda m: m.double(),
            r"parameter 'first.weight' was torch.float32 of shape \(6, 4\) on cpu and is "
            r"torch.float64",
        ),
    ],
)
def test_another_model_is_refused(change: Callable[[nn.Module], object], message: str) -> None:
    model, x = Settings(), features(8, 4)
    prober = flerm_fx.Prober(model, x)
    updates = {"first.weight": torch.ones(6, 4)}
    prober.measure(updates, method="sampled", samples=1)
    change(model)
    with pytest.raises(flerm_fx.InputError, match=message + r".*; make another one"):
        prober.measure(updates)


class Counter:
    """What an operation writes to, and the model holds."""

    calls = 0


def test_what_operations_from_outside_of_torch_write_is_put_back() -> None:
    """Their code runs in each call of a graph, too, unlike the model's."""
    counter = Counter()

    @torch.library.custom_op("flerm_tests::counted", mutates_args=())
    def counted(x: Tensor) -> Tensor:
        counter.calls += 1
        return x.sin()

    counted.register_fake(torch.empty_like)
    counted.register_autograd(
        lambda ctx, grad: grad * ctx.saved_tensors[0].cos(),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.counter = nn.Linear(4, 3), counter

        def forward(self, x: Tensor) -> Tensor:
            return counted(self.linear(x))  # type: ignore[no-any-return]

    model = Net()
    prober = flerm_fx.Prober(model, features(5, 4))
    updates = {"linear.weight": torch.ones(3, 4)}
    for _ in range(3):
        prober.measure(updates, method="sampled", samples=1)
        assert counter.calls == 0


@pytest.mark.parametrize("method", ["sampled", "auto", "kronecker", "live"])
def test_each_call_leaves_the_model_and_what_all_modules_share(method: str) -> None:
    model, x = Settings(), features(8, 4)
    updates = {"first.weight": torch.ones(6, 4)}
    prober = flerm_fx.Prober(model, x)
    seen: list[int] = []

    def looks(module: nn.Module, args: object, output: object) -> None:
        seen.append(1)

    with nn.modules.module.register_module_forward_hook(looks):
        for _ in range(3):
            prober.measure(updates, method=method, rtol=0.3)  # type: ignore[arg-type]
            assert model.calls == 0 and not seen
            assert model.norm.num_batches_tracked == 0
