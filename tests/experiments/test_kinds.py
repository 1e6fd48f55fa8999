"""Rates of kinds of parameters: searched for, kept, and used by every method."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flerm_fx
from experiments import completep, kinds, work
from experiments.axes import TUNED, Axis
from experiments.training import Outcome
from experiments.work import of_axis
from tests.experiments.small import tiny


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_what_is_tuned_are_kinds_of_the_model() -> None:
    for model, factors in TUNED.items():
        parts = {part for kind in kinds.KINDS[model] for part in kind}
        assert set(factors) <= parts
        names = [n for n, _ in tiny(f"{model}-width").build(1).named_parameters()]
        assert all(any(part in name for name in names) for part in parts)


def test_factors_multiply_rates_and_multipliers_and_leave_decay_alone() -> None:
    axis = replace(tiny("llama-width"), rates={"q_proj": 4.0})
    model = axis.build(1)
    (adamw,) = of_axis(axis, model, 0.01, {n: 0.5 for n, _ in model.named_parameters()})
    found = rates(adamw)
    for name, parameter in model.named_parameters():
        assert math.isclose(found[id(parameter)], 0.01 * 0.5 * (4 if "q_proj" in name else 1))
    for group in adamw.param_groups:
        assert (
            math.isclose(group["lr"] * group["weight_decay"], 0.01 * 0.1)
            or not group["weight_decay"]
        )


def test_completep_has_the_factors_of_its_base() -> None:
    plain = tiny("llama-width")
    axis = replace(plain, rates={"q_proj": 4.0})
    model = completep.build(axis, 2, 0)
    with_factors, without = (
        rates(completep.optimizer(each, model, 2, 0.01)) for each in (axis, plain)
    )
    for name, parameter in model.named_parameters():
        ratio = with_factors[id(parameter)] / without[id(parameter)]
        assert math.isclose(ratio, 4 if "q_proj" in name else 1)


def test_a_base_of_several_rates_compiled_against_itself_has_multipliers_of_1() -> None:
    axis = replace(tiny("llama-width"), rates={"q_proj": 4.0})
    model = work.build(axis, 1, 0)
    pool = work.probe(replace(axis, data="bytes"), 4)
    inputs, targets = [x for x, _ in pool], [y for _, y in pool]
    run = of_axis(axis, model, 1e-3)
    profile = flerm_fx.record(model, run, inputs, targets, settle=4, method="exact").profile
    again = work.build(axis, 1, 0)
    compiled = flerm_fx.compile(again, profile, emit="param_groups", method="exact")
    assert compiled.multipliers == pytest.approx(dict.fromkeys(compiled.multipliers, 1.0))


def test_each_trial_is_run_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Mapping[str, float]] = []

    def train(model: object, run: object, data: object, axis: Axis, seed: int) -> Outcome:
        ran.append(axis.rates)
        return Outcome(1.0 + seed, 1.0, 0.0)

    monkeypatch.setattr(work, "train", train)
    axis = replace(tiny("llama-width"), data="bytes")
    path = tmp_path / "kinds.jsonl"
    assert kinds.Trials(axis, 0.01, 2, path)({"mlp": 2.0, "q_proj": 1.0}) == 1.5
    assert kinds.Trials(axis, 0.01, 2, path)({"mlp": 2.0}) == 1.5
    assert ran == [{"mlp": 2.0}] * 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1]


def test_the_search_keeps_what_gains_more_than_noise() -> None:
    tried: list[Mapping[str, float]] = []

    def loss_of(factors: Mapping[str, float]) -> float:
        tried.append(factors)
        return 2.0 - kinds.LEAST / 2 * math.log2(factors.get("a", 1.0))

    assert kinds.tuned([("a",)], loss_of) == {}
    assert {"a": 2.0} in tried
