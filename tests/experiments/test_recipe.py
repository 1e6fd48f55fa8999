"""Training by a recipe: the rate of every step, the groups, and what a run comes to."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import data
from experiments.axes import AXES
from experiments.methods import METHODS
from experiments.recipe import Recipe
from experiments.store import Run
from experiments.training import optimizers, train, validate
from experiments.work import Training, build
from flerm_fx.recipe.multiplier import group_settings
from flerm_fx.recipe.update_rule import UpdateRule
from tests.experiments.small import TINY

RECIPE = Recipe()
BY_RECIPE = replace(TINY, optimizer="adamw", recipe=RECIPE, steps=10)


def test_the_rate_rises_in_a_line_from_0_and_falls_along_half_a_cosine() -> None:
    shares = [RECIPE.share(step, 400) for step in range(401)]
    assert shares[0] == 0
    assert max(shares) == shares[40] == 1
    for step in range(40):
        assert math.isclose(shares[step], step / 40)
    for step in range(40, 401):
        assert math.isclose(shares[step], 0.55 + 0.45 * math.cos(math.pi * (step - 40) / 360))
    assert math.isclose(shares[400], 0.1)


def test_every_group_follows_the_schedule_from_its_own_peak() -> None:
    model = nn.Linear(3, 2)
    (adamw,) = optimizers("", model, 0.5, {"weight": 0.25, "bias": 2.0}, recipe=RECIPE)
    schedule = RECIPE.schedule(adamw, 20)
    for step in range(20):
        rates = [group["lr"] for group in adamw.param_groups]
        assert rates == [0.125 * RECIPE.share(step, 20), RECIPE.share(step, 20)]
        adamw.step()
        schedule.step()


@pytest.mark.parametrize("multiplied", [False, True])
def test_there_is_a_group_for_each_multiplier_and_decay(multiplied: bool) -> None:
    model = build(TINY, 1, 0)
    named = dict(model.named_parameters())
    multipliers = {name: 2.0 ** (i % 3) for i, name in enumerate(named)} if multiplied else None
    (adamw,) = optimizers("", model, 0.01, multipliers, recipe=RECIPE)
    groups = {id(p): group for group in adamw.param_groups for p in group["params"]}
    rule = UpdateRule.of(torch.optim.AdamW(named.values(), betas=(0.9, 0.95), weight_decay=0.1))
    kinds = set()
    assert groups.keys() == {id(p) for p in named.values()}
    for name, parameter in named.items():
        group = groups[id(parameter)]
        multiplier = 1.0 if multipliers is None else multipliers[name]
        decay = 0.1 if parameter.dim() >= 2 else 0.0
        kinds.add((multiplier, decay))
        assert group["betas"] == (0.9, 0.95)
        assert math.isclose(group["lr"], 0.01 * multiplier)
        assert math.isclose(group["lr"] * group["weight_decay"], 0.01 * decay)
        wanted = group_settings(rule, 0.01, multiplier, decay)
        assert wanted == {key: group[key] for key in wanted}
    assert len(adamw.param_groups) == len(kinds) == (6 if multiplied else 2)


def test_a_run_is_clipped_scheduled_and_validated_at_its_end() -> None:
    batches = data.load("bytes")
    ours = build(TINY, 1, 0)
    found = train(ours, optimizers("", ours, 0.02, recipe=RECIPE), batches, BY_RECIPE, 3)
    model = build(TINY, 1, 0)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    generator = torch.Generator().manual_seed(3)
    norms = []
    for step in range(BY_RECIPE.steps):
        for group in adamw.param_groups:
            group["lr"] = 0.02 * RECIPE.share(step, BY_RECIPE.steps)
        inputs, targets = batches.sample(BY_RECIPE.batch, generator)
        adamw.zero_grad()
        batches.loss(model(inputs), targets).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        adamw.step()
    assert max(norms) > 1
    assert found.loss == validate(model, batches)
    assert all(map(torch.equal, ours.parameters(), model.parameters()))


@pytest.mark.skipif(
    not Path(data.FASHION_MNIST_FOLDER).exists(), reason="the images are not installed"
)
def test_without_a_recipe_a_run_ends_as_it_did() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "results-0.1.0" / "runs.jsonl").read_text()
    results = [json.loads(line) for line in lines.splitlines()]
    (wanted,) = (
        each
        for each in results
        if (each["axis"], each["method"], each["scale"]) == ("mlp-width", "standard", 1)
        and (each["seed"], each["rate"]) == (0, AXES["mlp-width"].grid.rates[3])
    )
    run = Run("mlp-width", "standard", 1, 0, wanted["rate"])
    found = Training(AXES["mlp-width"], METHODS["standard"], run, None, None)()
    assert math.isclose(found.loss, wanted["loss"], rel_tol=1e-4)  # other CPUs sum otherwise
    assert math.isclose(found.train_loss, wanted["train_loss"], rel_tol=1e-4)
