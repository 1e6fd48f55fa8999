"""Mappings by pattern: what one line decides, and what it is refused for."""

from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flerm_fx.align.mass import Shares
from flerm_fx.align.patterns import mapped_shares
from flerm_fx.errors import MatchError

PARTS = ("attn.q.weight", "attn.k.weight", "mlp.weight")


def stack(depth: int, name: str = "blocks", parts: tuple[str, ...] = PARTS) -> list[str]:
    inner = [f"{name}.{i}.{part}" for i in range(depth) for part in parts]
    return ["embed.weight", *inner, "head.weight"]


def by_target(found: Shares) -> dict[str, dict[str, Fraction]]:
    turned: dict[str, dict[str, Fraction]] = defaultdict(dict)
    for base, row in found.items():
        for target, share in row.items():
            turned[target][base] = share
    return dict(turned)


def laid(base: list[str], target: list[str], mapping: Any) -> dict[str, dict[str, Fraction]]:
    found = mapped_shares(base, target, mapping)
    assert all(sum(row.values()) == 1 for row in found.values())
    return by_target(found)


def test_a_module_stands_for_its_parameters() -> None:
    base, target = ["body.0.weight", "body.0.bias", "out.weight"], ["fc.weight", "fc.bias", "fcx.w"]
    assert laid(base, target, {"fc": "body.0"}) == {
        "fc.weight": {"body.0.weight": 1},
        "fc.bias": {"body.0.bias": 1},
    }


def test_a_formula_of_the_index_and_both_depths() -> None:
    found = laid(stack(2, "h"), stack(6), {"blocks.{i}.attn": "h.{i * n // m}.attn"})
    assert len(found) == 12
    assert found["blocks.3.attn.q.weight"] == {"h.1.attn.q.weight": Fraction(1, 3)}


def test_stars_lay_any_depth_over_any_other() -> None:
    found = laid(stack(3), stack(2, "h"), {"h.*": "blocks.*"})
    assert found["h.0.mlp.weight"] == {
        "blocks.0.mlp.weight": 1,
        "blocks.1.mlp.weight": Fraction(1, 2),
    }
    base = ["0.weight", "2.weight", "4.weight"]  # with activations between
    target = [f"net.{i}.weight" for i in range(0, 12, 2)]
    assert laid(base, target, {"net.*": "*"})["net.6.weight"] == {"2.weight": Fraction(1, 2)}


def test_stars_in_stages_of_their_own_depths() -> None:
    base = [f"stages.{s}.{i}.weight" for s, depth in enumerate((1, 2)) for i in range(depth)]
    target = [f"stages.{s}.{i}.weight" for s, depth in enumerate((3, 3)) for i in range(depth)]
    found = laid(base, target, {"stages.*.*": "stages.*.*"})
    assert found["stages.0.2.weight"] == {"stages.0.0.weight": Fraction(1, 3)}
    assert found["stages.1.1.weight"] == {
        "stages.1.0.weight": Fraction(1, 3),
        "stages.1.1.weight": Fraction(1, 3),
    }
    mixed = laid(base, target, {"stages.{s}.{i}": "stages.{s}.{i * n // m}"})
    assert mixed["stages.1.0.weight"] == {"stages.1.0.weight": Fraction(1, 2)}
    assert laid(base, target, {"stages.{s}.*": "stages.{s}.*"}) == found


def test_an_index_beyond_the_only_one_is_refused() -> None:
    with pytest.raises(MatchError, match="the base has index 0 alone behind 'blocks.'"):
        laid(stack(1), stack(2), {"blocks.{i}": "blocks.{i}"})


def test_a_list_has_several_answers() -> None:
    mapping = {"h.{i}": ["blocks.{2 * i}", "blocks.{2 * i + 1}"]}
    found = laid(stack(4), stack(2, "h"), mapping)
    assert found["h.1.mlp.weight"] == {"blocks.2.mlp.weight": 1, "blocks.3.mlp.weight": 1}


def test_what_several_entries_name_is_split_equally() -> None:
    base, target = ["a.0.w", "a.1.w"], ["b.0.w", "b.1.w", "c.0.w", "c.1.w"]
    found = laid(base, target, {"b.*": "a.*", "c.{i}": "a.{i}"})
    assert found["b.1.w"] == found["c.1.w"] == {"a.1.w": Fraction(1, 2)}


def test_a_name_in_full_goes_before_a_pattern() -> None:
    names = stack(2)
    found = laid(names, names, {"blocks.{i}": "blocks.{i}", "blocks.0.mlp.weight": "head.weight"})
    assert found["blocks.0.mlp.weight"] == {"head.weight": 1}
    assert found["blocks.1.mlp.weight"] == {"blocks.1.mlp.weight": 1}
    # Also where it leaves nothing to the pattern, and where names look like patterns.
    odd = ["a.{i}.w", "b.*.w"]
    assert laid(odd, odd, {"a.{i}.w": "b.*.w", "b.*.w": "a.{i}.w", "b": "b"}) == {
        "a.{i}.w": {"b.*.w": 1},
        "b.*.w": {"a.{i}.w": 1},
    }


def test_a_pattern_leaves_out_what_nothing_reads() -> None:
    found = mapped_shares(
        stack(1), stack(2), {"blocks.*": "blocks.*"}, unused=["blocks.1.mlp.weight"]
    )
    assert found["blocks.0.mlp.weight"] == {"blocks.0.mlp.weight": 1}


def test_a_function_may_name_several() -> None:
    found = laid(stack(2), stack(1), lambda name: ["embed.weight", "head.weight"])
    assert found["embed.weight"] == {"embed.weight": Fraction(1, 5), "head.weight": Fraction(1, 5)}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"block.{i}.attn": "blocks.{i}.attn"},
            "'block.{i}.attn'; nearest: 'blocks.0.attn'",
        ),
        ({"blocks.{i}.atn.q": "blocks.{i}.atn.q"}, "nearest: 'blocks.0.attn.q'"),
        ({"blocks.{i}": "layers.{i}"}, r"'layers.0.attn.q.weight' \(for 'blocks.0.attn"),
        ({"blocks.{i}.mlp": "blocks.{i // 2}.attn"}, "base parameter 'blocks.0.attn.weight'"),
        ({"blocks.*": "layers.*"}, r"base parameter 'layers.\*.attn.q.weight'.*; nearest: "),
        (
            {"blocks.{i}": "blocks.{i}"},
            r"{i} is 2 for 'blocks.2.attn.q.weight', .* has indices 0 to 1 behind 'blocks.'",
        ),
        ({"blocks.{i}": "blocks.{i - 1}"}, r"leaves the range: {i - 1} is -1"),
        ({"blocks.{i}": "blocks.{j}"}, "has j in a formula, which is no index of it"),
        ({"blocks.{i}": "blocks.{i / 2}"}, "'i / 2' is no formula"),
        ({"blocks.{i}": "blocks.{i % (n - 2)}"}, "divides by zero"),
        ({"head": "head", "blocks": "blocks.{m}"}, "has m in a formula.*beside 0 indices"),
        ({"blocks.{n}": "blocks.{n}"}, "pattern 'blocks.{n}'; in braces .* other than n and m"),
        ({"blocks.{i}.{i}": "blocks.{i}"}, "one name for each index"),
        ({"blocks.{2*i}": "blocks.{i}"}, "one name for each index"),
        ({"blocks.*": "blocks.0"}, "has stars on one side that the other lacks"),
        (
            {"blocks.{i}": "blocks.0", "blocks.*.mlp": "blocks.*.mlp"},
            "two patterns for 'blocks.0.mlp.weight': 'blocks.{i}' and 'blocks.*.mlp'",
        ),
        ({"head": ["head", 3]}, r"base parameter 3 \(for 'head'\)"),
        (lambda name: "hed.weight", "base parameter 'hed.weight'.*nearest: 'head.weight'"),
    ],
)
def test_what_is_wrong_is_named(mapping: Any, message: str) -> None:
    with pytest.raises(MatchError, match=message):
        mapped_shares(stack(2), stack(4), mapping)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_a_star_conserves_mass_at_any_depths(n: int, m: int) -> None:
    found = laid(stack(n), stack(m), {"blocks.*": "blocks.*"})
    assert len(found) == 3 * m
    assert all(sum(row.values()) == Fraction(n, m) for row in found.values())
