"""Formulas of patterns: arithmetic of whole numbers, and nothing else."""

import pytest

from flerm_fx.align.formula import Formula, FormulaError


@pytest.mark.parametrize(
    ("text", "value"),
    [("i", 5), ("-i + 7", 2), ("(i + 1) * n // m - 1", 1), (" i % 2 + 3*2", 7), ("12", 12)],
)
def test_a_formula_is_what_python_makes_of_it(text: str, value: int) -> None:
    assert Formula(text)({"i": 5, "n": 3, "m": 9}) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "i +",
        "i / 2",
        "2 ** i",
        "i << 9",
        "~i",
        "1.5 * i",
        "True",
        "'i' * 3",
        "abs(i)",
        "i.real",
        "[i][0]",
        "i if i else 0",
        "(i := 3)",
        "lambda: i",
        "__import__('os').system('true')",
        "i" + "+1" * 200,
        "(" * 150,
        "i\0",
    ],
)
def test_what_is_no_formula_is_refused_unread(text: str) -> None:
    with pytest.raises(FormulaError, match="is no formula of"):
        Formula(text)


def test_a_division_by_zero_is_named() -> None:
    with pytest.raises(FormulaError, match=r"'i // \(n - 2\)' divides by zero"):
        Formula("i // (n - 2)")({"i": 1, "n": 2})
