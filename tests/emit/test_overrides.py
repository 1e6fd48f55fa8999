"""Tables for other stacks: applied to the named parameters, they give the multipliers back."""

import fnmatch
import json
import re
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx import CompiledModel, InputError
from flerm_fx.emit.overrides import overrides, patterns


def blocks(width: int) -> nn.Module:
    torch.manual_seed(width)
    hidden = [layer for _ in range(12) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(4, width), nn.Sequential(*hidden), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    base = blocks(8)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    adam = torch.optim.AdamW(base.parameters(), lr=1e-3, weight_decay=0.1)
    profile = flerm_fx.record(base, adam, x, y, settle=0).profile
    return flerm_fx.compile(blocks(16), profile)


def test_json(compiled: CompiledModel) -> None:
    assert json.loads(compiled.overrides()) == compiled.multipliers


def test_one_expression_matches_each_name(compiled: CompiledModel) -> None:
    table = json.loads(compiled.overrides("regex"))
    for name, m in compiled.multipliers.items():
        assert [found for one, found in table.items() if re.search(one, name)] == [m]


def test_expressions_match_no_other_names() -> None:
    given = {f"h.{i}.w": 0.5 for i in range(12)} | {"h.1.w.2.b": 0.1, "h.1xw": 2.0, "h": 3.0}
    table = patterns(given)
    assert len(table) == 4
    for name in ("h.12.w", "h.1", "h.0.wx", "xh.0.w", "hx0.w", "h.01.w"):
        assert not any(re.search(one, name) for one in table)
    for name, m in given.items():
        assert [found for one, found in table.items() if re.search(one, name)] == [m]


@pytest.fixture
def _megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of its two classes."""
    for path in ("megatron", "megatron.core", "megatron.core.optimizer"):
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    config = ModuleType("megatron.core.optimizer.optimizer_config")
    config.ParamKey = lambda name: name  # type: ignore[attr-defined]
    scheduler = ModuleType("megatron.core.optimizer_param_scheduler")
    scheduler.ParamGroupOverride = dict  # type: ignore[attr-defined]
    for module in (config, scheduler):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("_megatron")
def test_megatron(compiled: CompiledModel) -> None:
    """Its names match as by fnmatch."""
    names: dict[str, Any] = {}
    exec(compiled.overrides("megatron"), names)
    found = names["config_overrides"](lr=0.5, min_lr=0.25)
    for name, m in compiled.multipliers.items():
        matching = [o for keys, o in found.items() for key in keys if fnmatch.fnmatch(name, key)]
        assert matching == [{"max_lr": m * 0.5, "min_lr": m * 0.25}]


def test_megatron_escapes_what_its_matching_reads() -> None:
    names: dict[str, Any] = {}
    code = overrides({"a[0]": 0.5, "a0": 2.0}, [], "megatron", 1e-3)
    exec(code.split("\n\n")[1], names)
    keys = list(names["MULTIPLIERS"])
    assert [[fnmatch.fnmatch(n, key[0]) for key in keys] for n in ("a[0]", "a0")] == [
        [True, False],
        [False, True],
    ]


def test_parameter_groups(compiled: CompiledModel) -> None:
    names: dict[str, Any] = {}
    exec(compiled.overrides("param_groups"), names)
    model = blocks(16)
    found = names["param_groups"](model, lr=0.5)
    by_name = {
        name: [g for g in found if any(p is q for q in g["params"])]
        for name, p in model.named_parameters()
    }
    for name, m in compiled.multipliers.items():
        (group,) = by_name[name]
        assert group["lr"] == pytest.approx(0.5 * m)
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.5 * 0.1)
    torch.optim.AdamW(found)


@dataclass(kw_only=True)
class ParamGroupConfig:
    """A stand-in of torchtitan's, with its fields."""

    pattern: str
    optimizer_name: str
    optimizer_kwargs: dict[str, Any]


@pytest.mark.parametrize("wrapped", ["", "_orig_mod.", "_checkpoint_wrapped_module."])
def test_torchtitan(compiled: CompiledModel, monkeypatch: pytest.MonkeyPatch, wrapped: str) -> None:
    """Its patterns are searched for in names, and the first that is found counts; a pattern that is
    found in none is an error of its.
    """
    for path in ("torchtitan", "torchtitan.components", "torchtitan.components.optimizer"):
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    module = sys.modules["torchtitan.components.optimizer"]
    module.ParamGroupConfig = ParamGroupConfig  # type: ignore[attr-defined]
    names: dict[str, Any] = {}
    exec(compiled.overrides("torchtitan"), names)
    groups = names["param_groups"](0.5, betas=(0.9, 0.95))
    found = set()
    for name, m in compiled.multipliers.items():
        given = ".".join(
            [f"{wrapped}{part}" for part in name.split(".")[:-1]] + [name.split(".")[-1]]
        )
        (group,) = (each for each in groups if re.search(each.pattern, given))
        settings = group.optimizer_kwargs
        assert settings["lr"] == pytest.approx(0.5 * m)
        assert settings["lr"] * settings["weight_decay"] == pytest.approx(0.5 * 0.1)
        assert (settings["betas"], group.optimizer_name) == ((0.9, 0.95), "AdamW")
        assert not any(re.search(each.pattern, f"{given}x") for each in groups)
        found.add(group.pattern)
    assert found == {each.pattern for each in groups}


@pytest.mark.usefixtures("_megatron")
def test_rates_of_groups_are_in_proportion_and_by_default_the_base_s() -> None:
    base = blocks(8)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    first, *others = base.parameters()
    groups = [{"params": [first], "lr": 16e-3}, {"params": others}]
    profile = flerm_fx.record(base, torch.optim.AdamW(groups, lr=1e-3), x, y, settle=0).profile
    compiled = flerm_fx.compile(blocks(16), profile)
    wanted = {n: m * (16e-3 if n == "0.weight" else 1e-3) for n, m in compiled.multipliers.items()}
    names: dict[str, Any] = {}
    exec(compiled.overrides("megatron"), names)
    found = {key: o["max_lr"] for keys, o in names["config_overrides"]().items() for key in keys}
    assert found == pytest.approx(wanted)
    exec(compiled.overrides("param_groups"), names)
    model = blocks(16)
    of = {id(p): name for name, p in model.named_parameters()}
    for group in names["param_groups"](model):
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(wanted[of[id(parameter)]])


def test_what_is_refused(compiled: CompiledModel) -> None:
    with pytest.raises(InputError, match="unknown format 'yaml'; expected one of json, regex"):
        compiled.overrides("yaml")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a\\nb is not printable"):
        overrides({"a\nb": 1.0}, [], "json", 1e-3)
