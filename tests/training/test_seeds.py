"""Recording several bases in one call."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flerm_fx
from flerm_fx.errors import InputError

X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def test_it_is_the_mean_of_recordings_under_each_seed() -> None:
    found = flerm_fx.record_seeds(mlp, adam, X, Y, seeds=[3, 5], method="exact")
    starts = []
    for seed in (3, 5):
        torch.manual_seed(seed)
        model = mlp()
        starts.append(flerm_fx.record(model, adam(model), X, Y, method="exact").profile.start)
    for name, estimate in found.start.items():
        expected = math.sqrt(starts[0][name].value * starts[1][name].value)
        assert estimate.value == pytest.approx(expected, rel=1e-6)
        spread = abs(math.log(starts[0][name].value / starts[1][name].value)) / 2
        assert estimate.relative_error == pytest.approx(spread, rel=1e-3, abs=1e-6)


def test_the_random_state_is_left_and_seeds_are_counted_from_0() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    counted = flerm_fx.record_seeds(mlp, adam, X, Y, seeds=2, method="exact")
    assert torch.rand(3).equal(expected)
    named = flerm_fx.record_seeds(mlp, adam, X, Y, seeds=range(2), method="exact")
    assert counted.start == named.start


def test_all_bases_see_the_batches_of_the_first() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)

    def once() -> Iterator[Any]:
        yield from [(X[:8], Y[:8]), (X[8:], Y[8:])]

    for source in (loader, once()):
        found = flerm_fx.record_seeds(mlp, adam, source, seeds=2, settle=2, method="exact")
        again = flerm_fx.record_seeds(
            mlp,
            adam,
            [x for x, _ in found.pool],
            [y for _, y in found.pool],
            seeds=2,
            settle=2,
            method="exact",
        )
        assert found.start == again.start


def test_a_model_that_returns_its_own_loss_needs_no_targets() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.fc(x)
            return nn.functional.cross_entropy(logits, labels), logits

    batches = [{"x": X, "labels": Y}] * 2
    assert flerm_fx.record_seeds(Own, adam, batches, seeds=2).loss == "output.loss"


def seeded() -> nn.Module:
    """One network each time."""
    torch.manual_seed(0)
    return mlp()


def test_a_factory_that_draws_anew_beside_weights_that_stay_is_none_that_repeats() -> None:
    def headed() -> nn.Module:
        with torch.random.fork_rng():
            body = seeded().requires_grad_(False)
        return nn.Sequential(body, nn.Linear(3, 3))

    found = flerm_fx.record_seeds(headed, adam, X, Y, seeds=2, method="exact", settle=0)
    assert found.start["1.weight"].note == "mean of 2 profiles"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"factory": nn.Linear(4, 3)},
            "factory must be a function that makes a new model each time, got a Linear",
        ),
        ({"factory": lambda width: mlp()}, r"has missing .*'width'; it is called as factory\(\)"),
        ({"factory": seeded}, "same trainable weights under seeds 0 and 1; .* leave torch.manual"),
        ({"optimizer": adam(nn.Linear(4, 3))}, "optimizer must be a function .*, got an Adam"),
        (
            {"optimizer": torch.optim.Adam},
            "got the class Adam; pass a function, such as lambda mod",
        ),
        ({"optimizer": lambda: None}, r"too many positional.*; it is called as optimizer\(model\)"),
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": []}, "seeds are none"),
        ({"seeds": [-1]}, "a seed must be"),
        ({"factory": lambda: 3}, "factory made .*; expected an nn.Module"),
        ({"factory": (lambda model: lambda: model)(mlp())}, "one and the same model twice"),
    ],
)
def test_what_cannot_be_recorded_is_refused(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"factory": mlp, "optimizer": adam, "seeds": 2, **changes}
    factory, optimizer = options.pop("factory"), options.pop("optimizer")
    with pytest.raises(InputError, match=message):
        flerm_fx.record_seeds(factory, optimizer, X, Y, **options)


def test_what_a_base_warned_of_is_said_though_its_recording_fails() -> None:
    x, y = torch.full((4, 2), math.inf), torch.arange(4) % 3
    with (
        pytest.warns(UserWarning, match="the pool is a single batch"),
        pytest.raises(flerm_fx.FlermError),
    ):
        flerm_fx.record_seeds(
            lambda: nn.Linear(2, 3), lambda m: torch.optim.SGD(m.parameters(), lr=0.1), x, y
        )
