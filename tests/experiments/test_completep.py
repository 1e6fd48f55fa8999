"""CompleteP: the base is the base itself, and a larger model is as the table says."""

import math
from dataclasses import replace

import pytest
import torch

from experiments import completep
from experiments.axes import Axis
from experiments.methods import METHODS
from experiments.rules_by_hand import PLACES, roles
from experiments.store import Run
from experiments.work import Training, build
from tests.experiments.small import inputs, tiny
from tests.rounding import assert_close, terms


def both(kind: str) -> Axis:
    """A tiny model's width and depth together."""
    return replace(tiny(f"{kind}-width"), scaled="width_and_depth")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_base_is_trained_as_by_standard(kind: str) -> None:
    axis = replace(both(kind), data="bytes")
    standard, found = (
        Training(axis, METHODS[key], Run(axis.key, key, 1, 0, 0.01), None, None)()
        for key in ("standard", "completep")
    )
    assert found.loss == standard.loss
    assert found.train_loss == standard.train_loss


@pytest.mark.parametrize("kind", PLACES)
def test_the_base_is_the_base(kind: str) -> None:
    axis = both(kind)
    model, found = build(axis, 1, 0), completep.build(axis, 1, 0)
    x = inputs(axis)
    assert torch.equal(model(x).logits, found(x).logits)


@pytest.mark.parametrize("kind", PLACES)
def test_hidden_matrices_start_smaller_by_the_root_of_the_width(kind: str) -> None:
    axis = both(kind)
    model, found = build(axis, 4, 0), completep.build(axis, 4, 0)
    role = roles(axis, model)
    for (name, here), there in zip(model.named_parameters(), found.parameters(), strict=True):
        ends = kind == "gpt2" and name.endswith("c_proj.weight")
        by = 0.5 if role[name] == "hidden" and not ends else 1.0  # 1/2 over width, 2 over depth
        assert_close(there, by * here, 1)


@pytest.mark.parametrize("kind", PLACES)
def test_branches_count_less_with_depth_and_logits_with_width(kind: str) -> None:
    axis = both(kind)
    found, plain = completep.build(axis, 2, 0), build(axis, 2, 1)
    plain.load_state_dict(found.state_dict())
    readouts = ("lm_head.weight", "classifier.weight")
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            module = name.rpartition(".")[0]
            if module.endswith(completep.LAST[kind]) or name in readouts:
                parameter.div_(2)
        x = inputs(axis)
        wanted = plain(x).logits / (2 if kind == "gpt2" else 1)
        assert_close(found(x).logits, wanted, terms(plain))


def test_rates_decays_and_epsilons_are_those_of_the_table() -> None:
    axis = both("gpt2")
    width = depth = 4
    model = completep.build(axis, 4, 0)
    adamw = completep.optimizer(axis, model, 4, 0.01)
    groups = {id(p): group for group in adamw.param_groups for p in group["params"]}
    table = {
        "input": (0.01, 0.1, 1e-8 / width),
        "hidden": (0.01 / width, 0.1 * width, 1e-8 / (width * depth)),
        "vector": (0.01, 0.0, 1e-8 / (width * depth)),
        "final": (0.01, 0.0, 1e-8 / width),
    }
    found = roles(axis, model)
    assert set(found.values()) == set(table)
    assert len(adamw.param_groups) == len(table)
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        settings = (group["lr"], group["weight_decay"], group["eps"])
        assert all(map(math.isclose, settings, table[found[name]])), name
        assert group["betas"] == (0.9, 0.95)
