"""Update rules: built again, their degree, and groups that repeat what a scale node does."""

import functools
import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from flerm_fx.errors import OptimizerError
from flerm_fx.recipe.likeness import state_powers
from flerm_fx.recipe.multiplier import (
    decay_per_step,
    degree,
    group_settings,
    node_multiplier,
    node_scale,
)
from flerm_fx.recipe.update_rule import UpdateRule

DEGREES = {
    "Adam": 0.0,
    "AdamW": 0.0,
    "SGD": 1.0,
    "RMSprop": 0.0,
    "Adagrad": 0.0,
    "Adamax": 0.0,
    "Adadelta": 0.0,
    "NAdam": 0.0,
    "RAdam": 0.0,
    "ASGD": 1.0,
    "Rprop": 0.0,
    "Muon": 0.0,
    "Adafactor": -1.0,
}


class Sign(Optimizer):
    """Sign descent with decay that the learning rate does not enter: a rule from elsewhere."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, hook: Any = None) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "hook": hook})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["weight_decay"])
                parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


class Passing(torch.optim.Adam):
    """A subclass that passes its keyword arguments on."""

    def __init__(self, params: Any, **keywords: Any) -> None:
        super().__init__(params, **keywords)


class Langevin(Optimizer):
    """A rule that draws from the global generator."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                noise = 1e-6 * torch.randn_like(parameter)
                parameter.add_(parameter.grad + noise, alpha=-group["lr"])


class Still(Optimizer):
    """A rule that never moves."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def matrix(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", DEGREES)
def test_rule_of_every_torch_optimizer_is_named_and_survives_json(name: str) -> None:
    optimizer = getattr(torch.optim, name)([matrix()], lr=0.25)
    rule = UpdateRule.of(optimizer)
    assert rule.name == name
    assert rule.source == f"torch.optim.{name}"
    read = UpdateRule.from_spec(json.loads(json.dumps(rule.spec())))
    assert read == rule == UpdateRule.of(type(optimizer)) == UpdateRule.from_name(name)
    built = read.build([matrix()], lr=0.25)
    assert type(built) is type(optimizer)
    assert built.defaults == optimizer.defaults


@pytest.mark.parametrize("name", DEGREES)
def test_degree(name: str) -> None:
    state = torch.get_rng_state()
    assert degree(UpdateRule.from_name(name)) == DEGREES[name]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "settings", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1}]
)
def test_degree_of_sgd_variants_is_one(settings: dict[str, Any]) -> None:
    assert degree(UpdateRule.from_name("SGD", settings)) == 1.0


def test_degree_of_rules_from_elsewhere() -> None:
    assert degree(UpdateRule.of(Sign)) == 0.0
    state = torch.get_rng_state()
    assert degree(UpdateRule.of(Langevin)) == 1.0
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_leave_out_what_is_not_the_rule() -> None:
    optimizer = torch.optim.Adam(
        [matrix()], lr=torch.tensor(0.1), betas=(0.8, 0.9), foreach=False, maximize=True
    )
    settings = UpdateRule.of(optimizer).settings
    assert settings.keys() == {
        "betas",
        "eps",
        "weight_decay",
        "amsgrad",
        "maximize",
        "decoupled_weight_decay",
    }
    assert settings["betas"] == (0.8, 0.9)
    assert settings["maximize"] is True
    fused = torch.optim.Adam([matrix()], betas=(0.8, 0.9), maximize=True, fused=True)
    assert UpdateRule.of(fused) == UpdateRule.of(optimizer)


def test_settings_are_those_of_the_groups_not_of_the_constructor() -> None:
    optimizer = torch.optim.SGD([{"params": [matrix()], "momentum": 0.7}], lr=0.1, momentum=0.9)
    assert UpdateRule.of(optimizer).settings["momentum"] == 0.7


def test_groups_may_differ_in_decay_and_rate_but_in_nothing_else() -> None:
    groups = [
        {"params": [matrix()], "lr": 0.1, "weight_decay": 0.0},
        {"params": [matrix()], "lr": 0.2, "weight_decay": 0.1},
    ]
    rule = UpdateRule.of(torch.optim.AdamW(groups, weight_decay=0.05))
    assert rule.settings["weight_decay"] == 0.05
    groups[1]["betas"] = (0.5, 0.9)
    with pytest.raises(OptimizerError, match=r"AdamW disagree on 'betas' \(\(0.9, 0.999\), \(0.5"):
        UpdateRule.of(torch.optim.AdamW(groups))


def test_build_takes_tensors_names_and_groups() -> None:
    rule = UpdateRule.from_name("AdamW", {"weight_decay": 0.1})
    first, second = matrix(), matrix()
    assert rule.build([first, second], 0.5).param_groups[0]["weight_decay"] == 0.1
    assert rule.build([("a", first)], 0.5).param_groups[0]["param_names"] == ["a"]
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 2.0}, {"params": [second]}]
    built = rule.build(groups, 0.5, weight_decay=0.0)
    assert [group["lr"] for group in built.param_groups] == [2.0, 0.5]
    assert [group["weight_decay"] for group in built.param_groups] == [0.0, 0.0]
    assert groups[1].keys() == {"params"}


def test_weight_decay_is_left_out_where_the_rule_has_none() -> None:
    built = UpdateRule.from_name("Rprop").build([matrix()], 0.5, weight_decay=0.0)
    assert "weight_decay" not in built.param_groups[0]


def test_rule_from_elsewhere_is_built_by_its_class() -> None:
    hook = object()
    rule = UpdateRule.of(Sign([matrix()], lr=0.5, weight_decay=0.25, hook=hook))
    assert rule.name is None
    assert rule.source.endswith("test_update_rule.Sign")
    built = rule.build([matrix()], 0.125)
    assert isinstance(built, Sign)
    group = built.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["hook"]) == (0.125, 0.25, hook)
    assert rule.spec()["settings"] == {"weight_decay": 0.25}


def test_subclass_that_passes_keywords_on_keeps_its_settings() -> None:
    rule = UpdateRule.of(Passing([matrix()], lr=0.5, betas=(0.5, 0.75)))
    assert rule.name is None
    built = rule.build([matrix()], 0.125)
    assert type(built) is Passing
    assert built.param_groups[0]["betas"] == (0.5, 0.75)
    assert built.param_groups[0]["lr"] == 0.125


def test_rule_of_a_function_is_built_by_the_function() -> None:
    factory = functools.partial(torch.optim.Adam, betas=(0.5, 0.75), lr=1e-3)
    rule = UpdateRule.of(factory)
    assert rule.name is None
    assert rule.settings["betas"] == (0.5, 0.75)
    assert degree(rule) == 0.0
    built = rule.build([matrix(), matrix()], 0.125, weight_decay=0.5)
    assert (built.param_groups[0]["lr"], built.param_groups[0]["weight_decay"]) == (0.125, 0.5)


def test_function_that_drops_the_groups_is_held_to_them_or_refused() -> None:
    def flat(groups: list[dict[str, Any]]) -> Optimizer:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=9.0)

    rule = UpdateRule.of(flat)
    assert rule.build([matrix()], 0.5).param_groups[0]["lr"] == 0.5
    groups = [{"params": [matrix()], "lr": 1.0}, {"params": [matrix()], "lr": 2.0}]
    with pytest.raises(OptimizerError, match="different groups into one SGD group"):
        rule.build(groups, 0.5)


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_rules_that_cannot_be_repeated_are_refused(name: str) -> None:
    kind = getattr(torch.optim, name)
    for attempt in (
        lambda: UpdateRule.of(kind),
        lambda: UpdateRule.of(kind([matrix()])),
        lambda: UpdateRule.from_name(name),
    ):
        with pytest.raises(OptimizerError, match=f"{name} has no update rule.*use an optimizer"):
            attempt()


@pytest.mark.parametrize("name", ["Lion", "Optimizer", "lr_scheduler", "_multi_tensor", None])
def test_from_name_looks_only_in_torch_optim(name: str | None) -> None:
    with pytest.raises(OptimizerError, match=r"not in torch.optim; pass optimizer=… to flerm_fx"):
        UpdateRule.from_name(name)


def test_from_name_refuses_settings_that_the_rule_lacks() -> None:
    with pytest.raises(OptimizerError, match="torch.optim.SGD of torch .* no setting 'betas'"):
        UpdateRule.from_name("SGD", {"betas": (0.9, 0.99)})


def test_rule_read_back_without_its_class_says_how_to_pass_it() -> None:
    rule = UpdateRule.from_spec(json.loads(json.dumps(UpdateRule.of(Sign).spec())))
    assert rule.name is None
    with pytest.raises(OptimizerError, match=r"test_update_rule.Sign is not in torch.optim; pass"):
        rule.build([matrix()], 0.1)


def test_parameters_that_the_rule_does_not_take_are_named() -> None:
    with pytest.raises(OptimizerError, match=r"torch.optim.Muon cannot be built .* only supports"):
        UpdateRule.from_name("Muon").build([torch.zeros(3)], 0.1)
    with pytest.raises(OptimizerError, match="for these parameters: there are none"):
        UpdateRule.from_name("SGD").build([], 0.1)


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(OptimizerError, match="optimizer must be a torch optimizer.*got int"):
        UpdateRule.of(3)  # type: ignore[arg-type]
    with pytest.raises(OptimizerError, match="returned list, not a torch.optim.Optimizer"):
        UpdateRule.of(lambda groups: groups)


def test_rule_that_does_not_move_has_no_degree() -> None:
    with pytest.raises(OptimizerError, match=r"test_update_rule.Still moved a random matrix by 0"):
        degree(UpdateRule.of(Still))


def test_node_scale() -> None:
    assert node_scale(UpdateRule.from_name("SGD"), 9.0) == pytest.approx(3.0)
    assert node_scale(UpdateRule.from_name("Adam"), 9.0) == 9.0
    proportional = UpdateRule.from_name("Adafactor")
    assert node_scale(proportional, 1.0) == 1.0
    with pytest.raises(
        OptimizerError, match="Adafactor steps in proportion .*emit='param_groups', or match"
    ):
        node_scale(proportional, 2.0)


# The scale node and the parameter group: one training.

EXACT: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True, "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adam", {"eps": 1e-1}),
    ("AdamW", {"weight_decay": 0.1, "eps": 1e-2}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.5}),
    ("RMSprop", {"weight_decay": 0.1, "eps": 1e-2}),
    ("RMSprop", {"weight_decay": 0.1, "momentum": 0.9, "centered": True}),
    ("Adagrad", {"weight_decay": 0.1, "lr_decay": 0.1, "eps": 1e-2}),
    ("Adamax", {"weight_decay": 0.1, "eps": 1e-2}),
    ("NAdam", {"weight_decay": 0.1, "eps": 1e-2}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("ASGD", {"weight_decay": 0.1, "lambd": 0.1}),
    ("Rprop", {"step_sizes": (0.005, 0.02)}),
]


def train(rule: UpdateRule, *, scale: float, group: dict[str, Any], steps: int = 20) -> Tensor:
    """Effective weights ``scale * w`` after training a small network's first layer."""
    inputs, last, targets = matrix(seed=1), matrix(seed=2).T, matrix(seed=3)[:, :4]
    weight = torch.nn.Parameter(0.3 * matrix(seed=4).T / scale)  # (6, 4)
    optimizer = rule.build([{"params": [weight], **group}], lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        output = torch.tanh(inputs @ (scale * weight)) @ last[:4]
        torch.nn.functional.mse_loss(output, targets).backward()
        optimizer.step()
    return scale * weight.detach()


@pytest.mark.parametrize("multiplier", [0.3, 7.0])
@pytest.mark.parametrize(("name", "settings"), EXACT)
def test_group_trains_as_the_scale_node_does(
    name: str, settings: dict[str, Any], multiplier: float
) -> None:
    rule = UpdateRule.from_name(name, settings)
    node = train(rule, scale=node_scale(rule, multiplier), group={"lr": 0.01})
    group = train(rule, scale=1.0, group=group_settings(rule, 0.01, multiplier))
    untouched = train(rule, scale=1.0, group={"lr": 0.01})
    # ASGD keeps its step size in float32.
    tolerance = 1e-6 if name == "ASGD" else 1e-10
    assert (group - node).norm() <= tolerance * node.norm()
    assert (untouched - node).norm() > 1e-3 * node.norm()


@pytest.mark.parametrize("multiplier", [0.25, 8.0])
def test_muon_group_trains_as_the_scale_node_does(multiplier: float) -> None:
    # Powers of two, which Muon's iteration in bfloat16 cannot tell from 1.
    rule = UpdateRule.from_name("Muon", {"weight_decay": 0.5, "eps": 1.0})
    node = train(rule, scale=multiplier, group={"lr": 0.01})
    group = train(rule, scale=1.0, group=group_settings(rule, 0.01, multiplier))
    assert (group - node).norm() <= 1e-10 * node.norm()


def test_muon_group_differs_from_the_scale_node_by_bfloat16() -> None:
    rule = UpdateRule.from_name("Muon", {"weight_decay": 0.5})
    node = train(rule, scale=0.3, group={"lr": 0.01})
    group = train(rule, scale=1.0, group=group_settings(rule, 0.01, 0.3))
    moved = (node - 0.3 * matrix(seed=4).T).norm()
    assert (group - node).norm() <= 2**-6 * moved


def test_absolute_decay_is_left_alone() -> None:
    rule = UpdateRule.of(Sign([matrix()], lr=0.01, weight_decay=0.01))
    settings = group_settings(rule, 0.01, 8.0)
    assert settings == {"lr": 0.08, "weight_decay": 0.01}
    node = train(rule, scale=8.0, group={"lr": 0.01})
    assert (train(rule, scale=1.0, group=settings) - node).norm() <= 1e-10 * node.norm()


def test_decay_given_replaces_the_rule_s_own() -> None:
    coupled = UpdateRule.from_name("Adam", {"weight_decay": 0.1})
    assert group_settings(coupled, 0.01, 2.0, weight_decay=0.4)["weight_decay"] == 0.4 / 4
    decoupled = UpdateRule.from_name("AdamW")
    assert group_settings(decoupled, 0.01, 2.0, weight_decay=0.4)["weight_decay"] == 0.4 / 2
    assert "weight_decay" not in group_settings(UpdateRule.from_name("Rprop"), 0.01, 2.0)


def test_rule_in_proportion_to_the_weights_keeps_its_decay_per_step() -> None:
    settings = group_settings(UpdateRule.from_name("Adafactor", {"weight_decay": 0.1}), 0.01, 2.0)
    assert settings == {"lr": 0.02, "weight_decay": 0.05}


# The state of ASGD and Rprop holds rates, which the test's own would have to enter.
STATES = [name for name, p in DEGREES.items() if p != -1.0 and name not in ("ASGD", "Rprop")]


@pytest.mark.parametrize("name", STATES)
def test_a_scale_that_changes_with_the_state_trains_on_as_if_it_had_always_been(name: str) -> None:
    """Half of the steps behind one node, the others behind another, state and weight rescaled."""
    eps = {} if name == "Adadelta" else {"eps": 1e-30}
    known = UpdateRule.from_name(name).settings
    rule = UpdateRule.from_name(name, {k: v for k, v in eps.items() if k in known})
    powers = state_powers(rule)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(12)]
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    # RAdam's first five steps are of another degree.
    one, other = 1.0, 0.5

    def trained(scales: list[float]) -> Tensor:
        """θ after these steps, whose rate makes up for the node's."""
        parameter = torch.nn.Parameter(weight / scales[0])
        optimizer = rule.build([parameter], 1e-2, weight_decay=0.0)
        scale = scales[0]
        for gradient, following in zip(gradients, scales, strict=True):
            if following != scale:
                factor, scale = following / scale, following
                with torch.no_grad():
                    parameter.div_(factor)
                state = optimizer.state[parameter]
                for key, power in powers.items():
                    state[key] = state[key] * factor**power
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / node_multiplier(rule, scale)
            parameter.grad = scale * gradient
            optimizer.step()
        return scale * parameter.detach()

    halves = trained([one] * 6 + [other] * 6)
    # Adadelta's eps is no longer what it was.
    atol = 1e-3 if name == "Adadelta" else 1e-9
    assert torch.allclose(halves, trained([1.0] * 12), rtol=1e-6, atol=atol)


def test_state_that_follows_no_power_is_refused() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["log"] = (1 + p.grad.abs()).log()
            return super().step(closure)

    with pytest.raises(OptimizerError, match="the state 'log' of .*Odd is no power of the scale"):
        state_powers(UpdateRule.of(Odd))


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("AdamW", {"weight_decay": 0.2}, 0.02),
        ("Muon", {"weight_decay": 0.2}, 0.02),
        ("Adam", {"weight_decay": 0.2}, 0.0),
        ("Adagrad", {"weight_decay": 0.2}, 0.0),
        ("SGD", {}, 0.0),
    ],
)
def test_decay_beside_the_gradient(name: str, settings: dict[str, Any], wanted: float) -> None:
    rule = UpdateRule.from_name(name, settings)
    assert decay_per_step(rule, {"lr": 0.1, **settings}) == pytest.approx(wanted)
