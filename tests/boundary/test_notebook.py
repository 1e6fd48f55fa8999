"""What a notebook shows is text: a name is never markup, and long tables end with a count."""

from flerm_fx.boundary.notebook import MOST, folded_table


def test_names_are_text() -> None:
    page = folded_table("<b> & \x1b[31m", ["na<me"], [["<img src=x onerror=alert(1)>"]])
    assert "<b>" not in page and "<img" not in page and "\x1b" not in page
    assert "&lt;b&gt; &amp; \\x1b[31m" in page
    assert "na&lt;me" in page


def test_many_rows_are_counted() -> None:
    page = folded_table(
        "line", ["name", "FSLR"], [[f"w{i}", "1"] for i in range(MOST + 3)], {"FSLR"}
    )
    assert page.count("<tr>") == 1 + MOST + 1
    assert "and 3 more" in page
    assert page.count("text-align: right") == MOST + 2
