"""The picture, the page and the numbers."""

import json
import math
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes

from flerm_fx.commands.demo.figure import COLOURS, draw, to_png, to_svg
from flerm_fx.commands.demo.optimum import Curve
from flerm_fx.commands.demo.page import to_page
from flerm_fx.commands.demo.results import to_results
from flerm_fx.commands.demo.settings import Settings

Array = np.ndarray[Any, np.dtype[np.float64]]
RATES = tuple(2.0**x for x in range(-9, -2))


def curves(top: float = math.nan) -> list[Curve]:
    def losses(vertex: float) -> tuple[float, ...]:
        return (*(2 + 0.1 * (math.log2(rate) - vertex) ** 2 for rate in RATES[:-1]), top)

    names = [("small & narrow", -5.0), ("large, standard", -7.0), ("large, compiled", -5.2)]
    return [Curve(name, RATES, losses(vertex)) for name, vertex in names]


def points(axes: Axes, marker: str) -> list[tuple[str, Array, Array]]:
    """Colour, x and y of the lines with this marker that have any points."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    found = [(str(line.get_color()), *np.asarray(line.get_xydata()).T) for line in lines]
    return [(colour, x, y) for colour, x, y in found if len(x)]


def test_every_optimum_is_marked_by_a_star_on_its_curve() -> None:
    stars = points(draw(curves(), "title").axes[0], "*")
    assert [colour for colour, _, _ in stars] == list(COLOURS)
    assert np.log2([x[0] for _, x, _ in stars]) == pytest.approx([-5.0, -7.0, -5.2])
    assert [y[0] for _, _, y in stars] == pytest.approx([2.0, 2.0, 2.0])


def test_diverged_runs_are_crosses_inside_the_picture() -> None:
    axes = draw(curves(), "title").axes[0]
    low, high = axes.get_ylim()
    crosses = points(axes, "x")
    assert len(crosses) == 3
    for _, x, y in crosses:
        assert x.tolist() == [RATES[-1]]
        assert low < y[0] < high


def test_a_picture_of_nothing_but_divergence_can_be_drawn() -> None:
    nothing = [Curve(name, (0.1, 0.2, 0.4), (math.nan,) * 3) for name in "abc"]
    assert to_svg(nothing, "title").startswith("<svg")


def test_png_is_a_picture() -> None:
    assert to_png(curves(), "title").startswith(b"\x89PNG")


def test_svg_takes_the_page_colour_and_is_the_same_every_time() -> None:
    svg = to_svg(curves(), "a title")
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg
    assert "a title" in svg
    assert svg == to_svg(curves(), "a title")


class Tags(HTMLParser):
    """Collects opening tags with their attributes, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_stands_alone_and_is_well_formed() -> None:
    page = to_page(curves(), "One <rate>", "It moved & stayed.", "150 steps")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.seen}
    for _, attributes in tags.seen:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "color-scheme: light dark" in page
    assert "One &lt;rate&gt;" in page
    assert "It moved &amp; stayed." in page
    assert "small &amp; narrow" in page


def test_page_has_every_loss_with_the_best_marked() -> None:
    page = to_page(curves(), "t", "v", "s")
    assert page.count('class="best"') == 3
    assert page.count("<td>diverged</td>") == 3
    assert '<td class="best">2.000</td>' in page
    assert "<td>2.000 at 0.0312</td>" in page


def test_results_are_json_without_nan() -> None:
    text = to_results(curves(), "verdict", Settings(), 12.34)
    assert "NaN" not in text
    assert "Infinity" not in text
    document = json.loads(text)
    assert document["verdict"] == "verdict"
    assert document["seconds"] == 12.3
    assert document["curves"][0]["losses"][-1] is None
    assert document["curves"][1]["optimum"]["log2_rate"] == pytest.approx(-7.0)
    assert document["transfer"]["standard"]["octaves"] == pytest.approx(-2.0)
    assert document["transfer"]["compiled"]["octaves"] == pytest.approx(-0.2)
    assert document["transfer"]["standard"]["cost"] == pytest.approx(0.4)
    assert document["settings"]["task"]["steps"] == Settings().task.steps
