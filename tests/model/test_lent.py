"""Weights that are lent to a calculation come back bit for bit."""

import resource
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flerm_fx.errors import InputError
from flerm_fx.model.lent import Lent
from tests.faults import Interrupt, lines


class Kinds(nn.Module):
    """Weights of every kind: types, no dimension, no entry, no contiguous memory, tied, NaN."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = nn.Parameter(torch.tensor([1.0, -0.0, float("nan"), float("inf")]))
        self.coarse = nn.Parameter(torch.randn(3, 2).bfloat16())
        self.complex = nn.Parameter(torch.randn(2, dtype=torch.complex64))
        self.number = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.turned = nn.Parameter(torch.randn(3, 4).T)
        self.inner = nn.Linear(2, 2)
        self.inner.again = self.plain


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def state(model: nn.Module) -> list[tuple[int, bytes, tuple[int, ...]]]:
    named = model.named_parameters(remove_duplicate=False)
    return [(id(p), bits(p), p.stride()) for _, p in named]


def change(model: nn.Module, *, offload: bool) -> None:
    lent = Lent(model, dict(model.named_parameters()), offload=offload)
    with lent, lent, torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
            parameter.grad = torch.ones_like(parameter)


@pytest.mark.parametrize("offload", [False, True])
def test_weights_and_places_come_back_whatever_interrupts(offload: bool) -> None:
    model = Kinds()
    before = state(model)
    number = lines(lambda: change(model, offload=offload), ["model/lent.py"])
    assert state(model) == before
    for at in range(number):
        with pytest.raises(Interrupt):
            lines(lambda: change(model, offload=offload), ["model/lent.py"], at)
        assert state(model) == before
        assert all(p.grad is None for p in model.parameters())


def test_own_parameters_hear_of_no_gradient() -> None:
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.full((1, 2), 3.0)
    gradient, heard = layer.weight.grad, []
    layer.weight.register_hook(heard.append)
    layer.weight.register_post_accumulate_grad_hook(heard.append)
    node = layer.weight.expand_as(layer.weight).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    node.register_hook(lambda *_: heard.append(layer.weight))  # as DDP's reducer has one
    own = dict(layer.named_parameters())
    with Lent(layer, own) as lent:
        layer(torch.ones(3, 2)).sum().backward()
        found = lent.parameters["weight"]
        assert layer.weight is found
        assert found.grad is not None
        assert found.data_ptr() == own["weight"].data_ptr()
    assert layer.weight.grad is gradient
    assert not heard


def test_a_disk_without_room_is_refused_and_nothing_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = nn.Linear(64, 64)
    before = state(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=r"offload=True .* TMPDIR to a folder on a disk"):
            change(model, offload=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state(model) == before


def test_a_recurrent_module_runs_with_what_stands_in() -> None:
    layer, x = nn.LSTM(3, 2), torch.ones(4, 1, 3)
    own = dict(layer.named_parameters())
    with Lent(layer, own) as lent:
        layer(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in lent.parameters.values())
    assert all(parameter.grad is None for parameter in own.values())
    assert all(any(held is p for p in own.values()) for held in layer._flat_weights)
