"""What holds for every example model."""

import math

import torch
from torch import Tensor, nn

from tests.rounding import assert_close, terms

SIGMAS = 4  # the tests look at about 50 seeded tensors: chance fails one in 300 seeds


def assert_normal(values: Tensor, std: float) -> None:
    """Mean 0, the given standard deviation and no heavy tails, within standard errors.

    For n normal numbers the mean has standard error std/sqrt(n), the standard deviation
    std/sqrt(2n), and the kurtosis sqrt(24/n).
    """
    n = values.numel()
    values = values.detach().double().flatten() / std
    assert abs(values.mean()) < SIGMAS / math.sqrt(n)
    assert abs(values.std() - 1) < SIGMAS / math.sqrt(2 * n)
    assert abs(values.pow(4).mean() - 3 * values.var() ** 2) < SIGMAS * math.sqrt(24 / n)


def assert_gradients_reach_all(model: nn.Module, inputs: Tensor) -> None:
    """Every parameter has a finite gradient that is more than rounding."""
    output = model.double()(inputs)
    weights = torch.randn(output.shape, dtype=torch.float64)
    (output * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 1e-9, name


def assert_exports(model: nn.Module, inputs: Tensor, more: Tensor) -> None:
    """The exported graph equals the model, with the sample's batch size and with another."""
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (inputs,), strict=False, dynamic_shapes=dynamic)
    graph = program.module()
    for x in (inputs, more):
        assert_close(graph(x), model(x), terms(model) + x.numel())
