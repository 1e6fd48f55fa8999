"""Exponents by optimizer and architecture: the table, the file, and one law."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import exponents
from experiments.exponents import Row, cells, draw, main, page, read

HIDDEN = Row("mlp", "adam", 0, "w", "hidden", (0, 1), -1.1, 0.1, -1.0, 0.02, False)
ROWS = [
    HIDDEN,
    replace(HIDDEN, role="v", exponent=-0.9, half_width=0.3, curved=True),
    replace(HIDDEN, role="b", kind="vector", dimensions=(0,), exponent=0.1, theory=0.0),
    replace(HIDDEN, architecture="lora", kind="input", theory=None, exponent=-0.5),
]


def test_roles_of_a_kind_are_one_cell_and_err_alike() -> None:
    found = cells(ROWS)["mlp", "adam", 0]
    assert list(found) == ["hidden", "vector"]
    assert found["hidden"].exponent == pytest.approx(-1.0)
    assert found["hidden"].half_width == pytest.approx(0.2)
    assert (found["hidden"].roles, found["hidden"].curved) == (2, 1)


def test_a_page_has_theory_above_what_was_found() -> None:
    text = "\n".join(page(ROWS))
    assert "| theory |  |  | -1 |  | +0 |  |" in text
    assert "| ResMLP | first step |  | -1.00 ± 0.20 (1 of 2 curved) |  | +0.10 ± 0.10 |  |" in text
    assert "| LoRA, rank | first step | -0.50 ± 0.10 |  |  |  |  |" in text


def test_the_page_has_the_tables_of_its_file() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    text = "\n".join(page(read(results / "laws.jsonl")))
    assert text in (results / "laws.md").read_text(encoding="utf-8")


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    draw(ROWS, tmp_path / "laws.png")
    assert (tmp_path / "laws.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(("family", "moved"), [("depth", (2,)), ("both", (0, 1, 2))])
def test_parameters_of_deeper_models_have_the_kinds_of_wider_ones(
    monkeypatch: pytest.MonkeyPatch, family: str, moved: tuple[int, ...]
) -> None:
    for name, value in (("FACTORS", (2,)), ("BASE_SEEDS", range(1)), ("SEEDS", range(1))):
        monkeypatch.setattr(exponents, name, value)
    found = {row.role: row for row in exponents.rows(family, "adam", 0)}
    kinds = ("tokens", "input"), ("blocks.0.attention.query", "hidden"), ("logits", "output")
    assert all(found[f"{name}.weight"].kind == kind for name, kind in kinds)
    assert found["blocks.0.attention.query.bias"].kind == "vector"
    assert found["blocks.0.attention.query.weight"].dimensions == moved
    assert all(row.theory is None for row in found.values() if 2 in row.dimensions)


@pytest.mark.slow
def test_a_law_is_fitted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FACTORS", (2, 4)), ("BASE_SEEDS", range(2)), ("SEEDS", range(1))):
        monkeypatch.setattr(exponents, name, value)
    out = tmp_path / "laws.jsonl"
    chosen = ["--architectures", "mlp", "--optimizers", "adam", "--settle", "0", "--out", str(out)]
    main(chosen)
    lines = out.read_text()
    found = cells(read(out))["mlp", "adam", 0]
    assert found["hidden"].theory == -1.0
    assert found["hidden"].exponent < -0.7 < found["input"].exponent
    assert "## Adam" in capsys.readouterr().out
    main(chosen)
    assert out.read_text() == lines
