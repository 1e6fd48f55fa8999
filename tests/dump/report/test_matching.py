"""The matching as a page: what answers to what, what is in doubt, and what has no counterpart."""

import json
import re
from dataclasses import replace
from typing import Any

from flerm_fx.align.aligning import align
from flerm_fx.align.doubts import Doubt
from flerm_fx.align.parameter_graph import parameters
from flerm_fx.dump import dump
from flerm_fx.dump.report import matching_to_html, to_html
from tests.dump.report.profiles import assigned, block_names, profile

DOUBT = Doubt("blocks.0.up.bias", ("blocks.0.up.bias",), "it is doubted", ("head.weight",))


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def page(base: list[str], target: list[str], doubt: Doubt | None = None) -> str:
    ours, theirs = profile(base), profile(target)
    matches = align(ours.graph, theirs.graph, on_unmatched="unit")
    if doubt is not None:
        matches[doubt.target] = replace(matches[doubt.target], doubt=doubt)
    return matching_to_html(ours, theirs.graph, theirs.shapes, matches)


def test_shares_and_no_numbers() -> None:
    text = page(block_names(2), block_names(3))
    data = data_of(text)
    assert data["matching"] is True and data["trajectory"] is None
    assert "<title>Matching: base of 10 parameters and target of 14 parameters</title>" in text
    base, target = data["sides"]
    assert {p["status"] for p in base["parameters"] + target["parameters"]} == {"matched"}
    found = {p["name"]: p["base"] for p in target["parameters"]}
    assert found["blocks.1.up.bias"] == [
        ["blocks.0.up.bias", 0.333333],
        ["blocks.1.up.bias", 0.333333],
    ]
    assert not {"fslr", "multiplier", "doubt"} & {key for p in target["parameters"] for key in p}


def test_what_is_in_doubt_or_left_over_is_marked() -> None:
    text = page(block_names(2), [*block_names(2), "extra.norm.weight"], DOUBT)
    _, target = data_of(text)["sides"]
    named = {p["name"]: p for p in target["parameters"]}
    assert named["blocks.0.up.bias"]["doubt"] == {
        "reason": "it is doubted",
        "alternatives": ["head.weight"],
    }
    assert [n for n, p in named.items() if p["status"] == "unmatched"] == ["extra.norm.weight"]


def test_names_are_data_and_never_markup() -> None:
    nasty = "a</script><script>alert(1)</script>.weight"
    text = page([nasty, "b.weight"], [nasty, "b.weight"])
    assert "alert(1)</script>" not in text
    assert data_of(text)["sides"][1]["parameters"][0]["name"] == nasty


def test_the_report_of_a_compiled_model_has_the_doubts_too() -> None:
    base = profile(block_names(1))
    rows = assigned(base)
    text = dump(rows, None, "html", profile=base, graph=base.graph, doubts=[DOUBT])
    assert text == to_html(base, base.graph, rows, [DOUBT])
    target = data_of(text)["sides"][1]["parameters"]
    assert [p["name"] for p in target if "doubt" in p] == ["blocks.0.up.bias"]


def test_thousands_of_parameters() -> None:
    data = data_of(page(block_names(300), block_names(900)))
    base, target = data["sides"]
    assert len(target["parameters"]) == len(parameters(profile(block_names(900)).graph)) == 3602
    assert len(base["rows"]) == len(target["rows"]) == 3
