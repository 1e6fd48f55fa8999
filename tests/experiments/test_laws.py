"""The comparison of predicted with measured multipliers."""

import json
from pathlib import Path

import pytest

from experiments.laws import main


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
