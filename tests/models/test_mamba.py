"""The state space model."""

import math

import pytest
import torch
from torch import Tensor

from models.mamba import Mamba, scan
from tests.models.checks import assert_exports, assert_gradients_reach_all, assert_normal

TOKENS = torch.randint(256, (3, 7), generator=torch.Generator().manual_seed(0))


def small(**changes: int) -> Mamba:
    torch.manual_seed(0)
    return Mamba(**{"width": 16, "depth": 2, **changes})


def recurrent(u: Tensor, steps: Tensor, decay: Tensor, read: Tensor, write: Tensor) -> Tensor:
    """The recurrence as it is written in the paper, one time after the other."""
    state = torch.zeros(len(u), u.shape[2], decay.shape[1], dtype=u.dtype)
    outputs = []
    for t in range(u.shape[1]):
        entered = (steps[:, t] * u[:, t])[..., None] * write[:, t, None]
        state = torch.exp(steps[:, t, :, None] * decay) * state + entered
        outputs.append((state * read[:, t, None]).sum(-1))
    return torch.stack(outputs, dim=1)


def test_a_scan_is_the_recurrence() -> None:
    generator = torch.Generator().manual_seed(1)
    u, steps, read, write, decay = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 6, 5), (2, 6, 5), (2, 6, 3), (2, 6, 3), (5, 3))
    )
    arguments = (u, steps.exp(), -decay.exp(), read, write)
    assert torch.allclose(scan(*arguments), recurrent(*arguments), rtol=1e-12, atol=1e-12)


def test_a_token_changes_no_earlier_logits() -> None:
    model, other = small(), TOKENS.clone()
    other[:, 4] = (other[:, 4] + 1) % 256
    before, after = model(TOKENS), model(other)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(dim=-1).all()


def test_width_multiplier_multiplies_every_width() -> None:
    base, wide = small(), small(width_multiplier=3)
    kept = {"tokens.weight": {0}, "logits.weight": {0}}
    for (name, narrow), parameter in zip(base.named_parameters(), wide.parameters(), strict=True):
        own = kept.get(name, set())
        if name.endswith(("convolution.weight", "log_decay")):
            own = set(range(1, narrow.ndim))
        if name.endswith("selection.weight"):
            assert (narrow.shape, parameter.shape) == ((1 + 8, 32), (3 + 8, 96))
            continue
        for axis, size in enumerate(narrow.shape):
            assert parameter.shape[axis] == (1 if axis in own else 3) * size, name


def test_initial_weights() -> None:
    model = small(width_multiplier=2)
    assert_normal(model.tokens.weight, 0.02)
    assert_normal(model.logits.weight, 1 / math.sqrt(32))
    block = model.blocks[0]
    assert torch.allclose(-block.log_decay.exp()[0], -torch.arange(1.0, 5.0))
    steps = torch.nn.functional.softplus(block.step.bias)
    assert 1e-3 <= steps.min() < 5e-3 < 2e-2 < steps.max() <= 0.1 + 1e-6


def test_gradients_and_export() -> None:
    assert_gradients_reach_all(small(), TOKENS)
    assert_exports(small(), TOKENS, torch.randint(256, (5, 7)))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_it_is_matched_and_measured(multiplier: int) -> None:
    import flerm_fx

    base, wide = small(), small(width_multiplier=multiplier)
    adam = torch.optim.Adam(base.parameters(), lr=1e-3)
    targets = torch.randint(256, (3, 7), generator=torch.Generator().manual_seed(2))
    profile = flerm_fx.record(base, adam, TOKENS, targets, settle=0, method="exact").profile
    compiled = flerm_fx.compile(wide, profile, emit="param_groups", method="exact")
    assert {row.status for row in compiled.assignments} == {"matched"}
    if multiplier == 1:
        assert compiled.multipliers == pytest.approx(dict.fromkeys(compiled.multipliers, 1.0))
