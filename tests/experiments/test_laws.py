"""The comparison of predicted with measured multipliers."""

import json
from pathlib import Path

import pytest

from experiments.laws import keep, main, table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_a_prediction_is_as_good_as_a_measurement_from_another_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "laws.jsonl"
    main(["--seeds", "2", "--settle", "0", "--out", str(out)])
    (line,) = out.read_text().splitlines()
    found = json.loads(line)
    assert found["factor"] == 16
    assert found["other_error"] <= 1.1 * found["others_differ"]
    assert found["error"] <= 0.25
    assert found["covered"] >= 0.85
    assert f"transformer, settle 0: predicted {found['error']:.3f}" in capsys.readouterr().out


def test_a_table_has_a_row_for_each_outcome(tmp_path: Path) -> None:
    numbers = ("error", "seeds_differ", "other_error", "others_differ", "held_out")
    outcome = dict.fromkeys(numbers, 0.1) | {"cell": "pre-muon", "settle": 32, "covered": 0.9}
    first = outcome | {"settle": 0, "covered": None}
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (outcome, first)))
    rows = list(table(path))[2:]
    title = "transformer, pre-norm, Muon"
    assert rows[0] == f"| {title}, 32 steps | {' | '.join(['0.10'] * 5)} | 90% |"
    assert rows[1] == f"| {title}, first step | {' | '.join(['0.10'] * 5)} |  |"


def test_the_page_has_the_table_of_its_file() -> None:
    page = (DOCS / "how-to" / "large.md").read_text(encoding="utf-8")
    assert "\n".join(table(DOCS / "results" / "predictions.jsonl")) in page


def test_an_outcome_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    for cell, settle, error in (("mlp", 0, 0.1), ("mlp", 32, 0.2), ("conv", 0, 0.3)):
        keep(path, {"cell": cell, "settle": settle, "error": error})
    keep(path, {"cell": "mlp", "settle": 32, "error": 0.4})
    rows = map(json.loads, path.read_text().splitlines())
    assert [(row["cell"], row["settle"], row["error"]) for row in rows] == [
        ("mlp", 0, 0.1),
        ("mlp", 32, 0.4),
        ("conv", 0, 0.3),
    ]
