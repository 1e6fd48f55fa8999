"""Depths of the zoo's stacks: each parameter answers to what its name tells, with its share."""

from dataclasses import replace
from typing import Any

import pytest

from zoo.depth.registry import STACKS
from zoo.depth.stack import Stack, expected_shares, outcome

BY_NAME = {stack.name: stack for stack in STACKS}
QUICK = ("mlp-depth", "nbeats", "dcn-cross")


def test_names_are_unique_and_depths_differ() -> None:
    assert len(BY_NAME) == len(STACKS) >= 40
    for stack in STACKS:
        assert len(stack.pairs) >= 2, stack.name
        assert all(base != target for base, target in stack.pairs), stack.name


def test_names_tell_shares_by_stage() -> None:
    base = ["embed.w", "stages.0.0.w", "stages.1.0.w", "stages.1.1.w", "stages.1.0.skip"]
    target = [*base[:2], "stages.0.1.w", *base[2:]]
    found = expected_shares(base, target, {})
    assert found["stages.0.1.w"] == {"stages.0.0.w": 0.5}
    assert found["stages.1.1.w"] == {"stages.1.1.w": 1.0}
    assert found["stages.1.0.skip"] == {"stages.1.0.skip": 1.0}


def test_a_match_other_than_the_names_is_found() -> None:
    stack = replace(BY_NAME["mlp-depth"], rule={"layers.{i}": "layers.{n - 1 - i * n // m}"})
    found = outcome(stack, ((2,), (4,)))
    assert found.verdict == "wrong"
    assert "layers.0.weight: ['layers.0.weight'] for ['layers.1.weight']" in found.message


def held(stack: Stack) -> Any:
    marks = [] if stack.name in QUICK else [pytest.mark.slow]
    return pytest.param(stack, marks=marks, id=stack.name)


@pytest.mark.parametrize("stack", list(map(held, STACKS)))
def test_each_pair_of_depths_is_matched_as_names_tell(stack: Stack) -> None:
    for pair in stack.pairs:
        found = outcome(stack, pair)
        assert found.verdict == "right", (pair, found.verdict, found.message[:600])
