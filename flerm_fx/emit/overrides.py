"""This module writes multipliers for stacks that never import flerm_fx."""

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from flerm_fx.boundary.text import json_text
from flerm_fx.errors import InputError, shown

Overrides = Literal["json", "regex", "megatron", "torchtitan", "param_groups"]

GROUPED = ("torchtitan", "param_groups")
"""The formats that hold settings of groups beside their rates."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a name


def overrides(
    multipliers: Mapping[str, float],
    groups: Iterable[Mapping[str, Any]],
    format: Overrides,
    lr: float,
) -> str:
    """Return a table that gives each named parameter its multiplier, by exactly one entry.

    Args:
        multipliers: by parameter; for ``"megatron"``, of the one rate that its function takes.
        groups: for those of :data:`GROUPED`: settings of each group with the names of its
            ``"params"`` and its ``"lr"`` at a rate of 1.
        format: see :meth:`flerm_fx.CompiledModel.overrides`.
        lr: the base's, which a function has where it is given none.

    Raises:
        InputError: a name has characters that are not printable, which no code should hold.
    """
    for name in multipliers:
        if not name.isprintable():
            raise InputError(f"the name {shown(name)} is not printable, and no table is to hold it")
    if format == "json":
        return json_text(dict(multipliers))
    if format == "regex":
        return json_text(patterns(multipliers))
    if format == "megatron":
        return _megatron(multipliers, lr)
    return _torchtitan(groups, lr) if format == "torchtitan" else _param_groups(groups, lr)


def patterns(multipliers: Mapping[str, float]) -> dict[str, float]:
    r"""Return regular expressions for the names, each for those of one multiplier that differ in a
    number.

    Names with one whole part that is a number, and alike beside it, share one; each other name is
    one of its own. An expression matches its names and no other.

    >>> patterns({"h.0.w": 0.5, "h.1.w": 0.5, "h.2.w": 0.25, "out": 1.0})
    {'^h\\.(?:0|1)\\.w$': 0.5, '^h\\.2\\.w$': 0.25, '^out$': 1.0}
    """
    alike: dict[tuple[str, str, float], list[str]] = defaultdict(list)
    for name, m in multipliers.items():
        numbers = list(_NUMBER.finditer(name))
        if len(numbers) == 1:
            digits = numbers[0]
            alike[name[: digits.start()], name[digits.end() :], m].append(digits.group())
        else:
            alike[name, "", m].append("")
    return {
        f"^{re.escape(before)}{_either(between)}{re.escape(after)}$": m
        for (before, after, m), between in alike.items()
    }


def _either(numbers: list[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"(?:{'|'.join(numbers)})"


def _megatron(multipliers: Mapping[str, float], lr: float) -> str:
    """Return code for Megatron-LM, which matches names as ``fnmatch`` does, with brackets
    escaped.
    """
    alike: dict[float, list[str]] = defaultdict(list)
    for name, m in multipliers.items():
        alike[m].append(name)
    lines = [
        "from megatron.core.optimizer.optimizer_config import ParamKey",
        "from megatron.core.optimizer_param_scheduler import ParamGroupOverride",
        "",
        "MULTIPLIERS = {",
    ]
    for m, names in alike.items():
        lines += ["    (", *(f"        {glob.escape(name)!r}," for name in names), f"    ): {m!r},"]
    lines += [
        "}",
        "",
        "",
        f"def config_overrides(lr={lr!r}, min_lr=0.0):",
        "    return {",
        "        ParamKey(name=names): ParamGroupOverride(max_lr=m * lr, min_lr=m * min_lr)",
        "        for names, m in MULTIPLIERS.items()",
        "    }",
    ]
    return "\n".join(lines)


_WRAPPERS = r"(?:_\w+\.)*"
"""Parts of names that wrappers add: ``_orig_mod``, ``_checkpoint_wrapped_module``."""


def _torchtitan(groups: Iterable[Mapping[str, Any]], lr: float) -> str:
    """Return code for torchtitan, which searches names for expressions, those of wrapped modules
    too.
    """
    lines = ["from torchtitan.components.optimizer import ParamGroupConfig", "", "GROUPS = ["]
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        expressions = [
            one.replace("^", "^" + _WRAPPERS, 1).replace(r"\.", r"\." + _WRAPPERS)
            for one in patterns(dict.fromkeys(group["params"], 1.0))
        ]
        lines += [
            "    (",
            f"        {settings!r},",
            f"        {'|'.join(expressions)!r},",
            "    ),",
        ]
    lines += [
        "]",
        "",
        "",
        f'def param_groups(lr={lr!r}, optimizer_name="AdamW", **kwargs):',
        "    return [",
        "        ParamGroupConfig(",
        "            pattern=pattern,",
        "            optimizer_name=optimizer_name,",
        '            optimizer_kwargs={**kwargs, **settings, "lr": settings["lr"] * lr},',
        "        )",
        "        for settings, pattern in GROUPS",
        "    ]",
    ]
    return "\n".join(lines)


def _param_groups(groups: Iterable[Mapping[str, Any]], lr: float) -> str:
    lines = ["GROUPS = ["]
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        lines += ["    (", f"        {settings!r},", "        ["]
        lines += [f"            {name!r}," for name in group["params"]]
        lines += ["        ],", "    ),"]
    lines += [
        "]",
        "",
        "",
        f"def param_groups(model, lr={lr!r}):",
        "    named = dict(model.named_parameters())",
        "    return [",
        '        {**settings, "lr": settings["lr"] * lr, "params": [named[n] for n in names]}',
        "        for settings, names in GROUPS",
        "    ]",
    ]
    return "\n".join(lines)
