"""A rate at which a model settles higher than at a third of it is warned of."""

import logging
import warnings

import pytest
import torch
from torch import nn

import flerm_fx

THROWN = "settles at a lower loss"


def recorded(rate: float, settle: int) -> tuple[nn.Linear, list[str]]:
    """A linear regression, recorded, and what it was warned of.

    Inputs are standard normal, so that on batches as large as these the Hessian of the mean squared
    error is close to twice the identity, and gradient descent is thrown beyond a rate of 1.
    """
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(1, 4, generator=generator)
    model = nn.Linear(4, 1, bias=False)
    sgd = torch.optim.SGD(model.parameters(), lr=rate)
    xs = [torch.randn(32, 4, generator=generator) for _ in range(11)]
    ys = [x @ true.T + torch.randn(32, 1, generator=generator) for x in xs]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        flerm_fx.record(model, sgd, xs, ys, settle=settle).close()
    return model, [str(w.message) for w in caught]


def test_too_high_a_rate_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flerm_fx"):
        _, said = recorded(rate=0.9, settle=100)
    assert [THROWN in text for text in said] == [True]
    assert "pass lr=…" in said[0]
    assert "settled at a loss of" in caplog.text


def test_a_rate_that_a_third_of_is_slower_is_not() -> None:
    _, said = recorded(rate=0.01, settle=100)
    assert not said


def test_few_steps_are_not_compared() -> None:
    # 19 steps behind the warm-up, at a rate that 20 would be warned of at.
    assert not recorded(rate=0.9, settle=31)[1]
    assert recorded(rate=0.9, settle=100)[1]


def test_weights_end_as_they_were() -> None:
    torch.manual_seed(3)
    before = nn.Linear(4, 1, bias=False).weight.detach().clone()
    torch.manual_seed(3)
    model, said = recorded(rate=0.9, settle=100)
    assert said
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_seeds_are_warned_of_once() -> None:
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(32, 4, generator=generator) for _ in range(11)]
    ys = [x.sum(1, keepdim=True) + torch.randn(32, 1, generator=generator) for x in xs]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        flerm_fx.record_seeds(
            lambda: nn.Linear(4, 1, bias=False),
            lambda model: torch.optim.SGD(model.parameters(), lr=0.9),
            xs,
            ys,
            settle=100,
            seeds=3,
        )
    assert [THROWN in str(w.message) for w in caught] == [True]
