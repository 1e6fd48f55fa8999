"""The paper's estimators: where they are right, they agree with the exact FSLR."""

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.probe.paper import combine, factors, paper
from tests.cases import features, make, random_updates, slow
from tests.rounding import rounding


def test_factors_are_the_papers_sums() -> None:
    z = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert factors(z, "full_cov").tolist() == [4.0]
    assert factors(z, "iid").tolist() == [30.0]
    assert factors(z, "kronecker").tolist() == [16.0 + 4.0, 9.0 + 1.0, 30.0]
    found = combine(factors(z, "kronecker"), "kronecker").item()
    assert found == pytest.approx(200.0 / 30.0, rel=rounding(2 * z.numel()))
    assert factors(torch.tensor(3.0), "kronecker").tolist() == [9.0, 9.0]


@pytest.mark.parametrize("name", ["mlp", slow("pre-norm")])
def test_full_cov_is_unbiased(name: str) -> None:
    model, inputs = make(name)
    updates = random_updates(model)
    exact = flerm_fx.measure(model, updates, inputs, method="exact")
    captured = capture(model, inputs)
    # A decay of (almost) 1 averages all passes; the relative variance of a pass is 2.
    found = paper(
        captured,
        dict(captured.parameters),
        updates,
        inputs,
        method="full_cov",
        passes=400,
        generator=torch.Generator().manual_seed(0),
        beta=1.0,
    )
    for parameter, (value, error) in found.items():
        assert value == pytest.approx(exact[parameter].value, abs=4 * error)
        if exact[parameter].value > 1e-6:
            assert error / value == pytest.approx((2 / 400) ** 0.5 / 2, rel=0.35)


def test_kronecker_is_right_for_a_rank_one_update_of_one_linear_layer() -> None:
    """There z = ξ-weighted outer products whose covariance is a Kronecker product."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4, bias=False), torch.ones(6, 3)
    updates = {"weight": torch.outer(torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.ones(3))}
    exact = flerm_fx.measure(model, updates, x, method="exact")["weight"].value
    captured = capture(model, x)
    value, error = paper(
        captured,
        dict(captured.parameters),
        updates,
        x,
        method="kronecker",
        passes=800,
        generator=torch.Generator().manual_seed(0),
        beta=1.0,
    )["weight"]
    assert value == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("method", ["full_cov", "iid", "kronecker"])
def test_measure_reports_the_method_and_its_passes(method: str) -> None:
    model, x = nn.Linear(3, 2), features(5, 3)
    found = flerm_fx.measure(model, random_updates(model), x, method=method, samples=7)  # type: ignore[arg-type]
    assert {(e.method, e.samples) for e in found.values()} == {(method, 7)}
    assert all(e.value > 0 and e.stderr > 0 for e in found.values())
