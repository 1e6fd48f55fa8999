"""The report in a browser: no errors, and search, folding, keys and selection do what they say."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from playwright import sync_api
from torch import nn

from flerm_fx.align.aligning import align
from flerm_fx.align.doubts import Doubt
from flerm_fx.align.parameter_graph import capture_graph, parameters
from flerm_fx.capture.tracing import capture
from flerm_fx.dump.report import matching_to_html, to_html
from flerm_fx.profile.trajectory import Trajectory
from tests.cases import make
from tests.dump.report.profiles import assigned, block_names, profile

pytestmark = pytest.mark.slow

NASTY = "<img src=x onerror=alert(1)>.weight"
Open = Callable[..., "sync_api.Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    if path is None:
        pytest.skip("needs Chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: "sync_api.Browser", tmp_path: Path) -> Iterator[Open]:
    """Opens a page, and holds it to have written and requested nothing at its end."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(60_000)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.on("request", lambda request: messages.append(request.url))

    def open_page(text: str, scheme: str = "light") -> "sync_api.Page":
        (file := tmp_path / "report.html").write_text(text, encoding="utf-8")
        page.emulate_media(color_scheme=scheme)
        page.goto(file.as_uri())
        return page

    yield open_page
    file = (tmp_path / "report.html").as_uri()
    assert [m for m in messages if m != file and not m.startswith(("data:", "blob:"))] == []
    page.close()


@pytest.fixture(scope="module")
def both() -> str:
    base = profile([*block_names(4), NASTY], steps=(0, 10, 20))
    return to_html(base, base.graph, assigned(base))


def test_what_cannot_be_seen_in_a_name_is_an_escape(opened: Open) -> None:
    names = ["bidi\u202egnp.weight", "esc\x1b[31m.weight", "line\u2028x.weight", "größe.weight"]
    page = opened(to_html(profile(names, steps=(0, 10))))
    shown = ["bidi\\u{202e}gnp.weight", "esc\\u{1b}[31m.weight", "line\\u{2028}x.weight", names[3]]
    assert page.locator("#table tbody button").all_inner_texts() == shown
    everything = page.locator("body").inner_text()
    assert not any(sign in everything for sign in "\u202e\x1b\u2028")
    drawn = page.locator("#heat-map .ytick text").all_text_contents()
    assert drawn == shown


def test_search_filters_and_a_header_sorts(opened: Open, both: str) -> None:
    page = opened(both)
    rows = page.locator("#table tbody tr")
    assert rows.count() == 38
    page.fill("#search", "blocks.1 UP")
    assert rows.count() == 4
    assert page.inner_text("#count") == "4 of 38 parameters"
    page.fill("#search", "no such name")
    assert rows.count() == 0
    page.fill("#search", "target")
    header = page.get_by_role("button", name="FSLR", exact=True)
    header.click()
    assert rows.first.locator("td").nth(1).inner_text() == "embed.weight"
    header.press("Enter")
    assert rows.first.locator("td").nth(1).inner_text() == NASTY
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("FSLR")


def test_the_verdict_comes_first(opened: Open) -> None:
    base = profile(block_names(3), steps=(0, 10))
    rows = assigned(base)
    rows[0] = replace(rows[0], multiplier=2.0)
    rows[1] = replace(rows[1], status="unresolved", multiplier=1.0)
    rows[2] = replace(rows[2], status="predicted", multiplier=0.25)
    rows[-1] = replace(rows[-1], status="unmatched", multiplier=1.0, base=())
    checks = {row.parameter: row.parameter != rows[4].parameter for row in rows}
    page = opened(to_html(base, base.graph, rows, name="Net", checks=checks))
    assert page.inner_text("#headline") == (
        "Net: 14 parameters, 11 matched, 1 unresolved, 1 predicted, 1 unmatched; "
        "multipliers 0.25 to 2"
    )
    told = page.inner_text("#verdict-facts")
    assert "base: 14 parameters of 168 numbers; target: Net, 14 parameters of 672 numbers" in told
    assert "0.25 of blocks.0.up.weight to 2 of embed.weight" in told
    assert "of the first step, at a learning rate of 0.01" in told
    failed = "failed for 1 parameter of which the FSLR is not the base's when measured again: "
    assert f"{failed}blocks.0.down.weight" in told
    cautions = page.locator("#cautions li").all_inner_texts()
    assert "one recording" in cautions[0]
    assert cautions[1].endswith("first guess: blocks.0.norm.weight")
    assert cautions[2].endswith("multiplier of 1: head.weight")
    page.locator("#cautions button").first.click()
    assert "blocks.0.norm.weight" in page.inner_text("#selection")
    kinds = page.locator("#bars .kind")
    assert kinds.count() == 6
    assert kinds.nth(2).inner_text().split() == ["blocks.*.up.weight", "0.25", "to", "0.5"]
    heights = [
        float(bar.get_attribute("height") or 0)
        for bar in kinds.nth(2).locator("rect:not(.area)").all()
    ]
    assert heights[0] == pytest.approx(2 * heights[1])
    assert page.locator("#bars rect.above").count() == 1
    assert page.locator("#bars rect.predicted").count() == 1
    for status in ("unresolved", "unmatched", "predicted"):
        assert page.locator(f"#graph .swatch i.{status}").count() == 1
        assert status in page.inner_text("#legend")
    page.select_option("#colour", "fslr")
    assert page.locator("#graph .swatch i.unresolved").count() == 0


def test_what_is_the_same_on_every_row_is_told_once(opened: Open) -> None:
    page = opened(to_html(profile(block_names(2))))
    assert page.inner_text("#alike") == (
        "The same on every row: status used, shape 4×3, ± stderr 0.01, method exact, samples 0."
    )
    heads = page.locator("#table th").all_inner_texts()
    assert heads == ["parameter", "op", "FSLR"]
    assert page.locator("#table th button").last.get_attribute("title")
    page.locator("summary", has_text="words").click()
    assert "function-space learning rate" in page.inner_text("#terms")


def test_two_steps_have_two_ticks_and_a_target_has_its_line(opened: Open) -> None:
    base = profile(block_names(2), steps=(0, 100))
    run = Trajectory((0, 100), (0.1, 0.1), {n: (e, e) for n, e in base.start.items()})
    page = opened(to_html(base, base.graph, assigned(base), trajectory=run))
    for plot in ("heat-map", "lines"):
        assert page.locator(f"#{plot} .xtick text").all_text_contents() == ["0", "100"]
    legend = page.locator("#lines .legendtext")
    assert legend.all_text_contents() == [
        "base, mean of all",
        "target, before its multipliers, mean of all",
    ]
    page.locator("#table tbody button").first.click()
    page.wait_for_timeout(600)
    assert legend.all_text_contents() == ["base", "target, before its multipliers"]


def test_a_run_folds_lists_its_copies_and_answers_to_keys(opened: Open, both: str) -> None:
    page = opened(both)
    target = page.locator(".side").nth(1)
    toggle = target.get_by_role("button", name="blocks.0–3 × 4")
    rows = target.locator(".row")
    template = rows.count()
    toggle.focus()
    page.keyboard.press("ArrowLeft")
    assert toggle.get_attribute("aria-expanded") == "false"
    assert rows.count() < template
    page.keyboard.press("ArrowRight")
    assert toggle.get_attribute("aria-expanded") == "true"
    assert rows.count() == template
    target.get_by_role("button", name="List the copies").click()
    assert target.locator(".toggle").all_inner_texts() == ["blocks.0–3 × 4", "0", "1", "2", "3"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert rows.filter(has_text="norm").count() == 1
    page.click("#fold")
    assert target.locator(".toggle").count() == 1
    page.click("#expand")
    assert rows.filter(has_text="norm").count() == 4


def test_a_selection_shows_its_numbers_and_what_it_matches(opened: Open, both: str) -> None:
    page = opened(both)
    base, target = page.locator(".side").all()
    chip = target.locator(".chip", has_text="weight").first
    chip.focus()
    page.keyboard.press("Enter")
    assert page.locator("#links path").count() == 1
    assert base.locator(".chip.answer").count() == 1
    panel = page.locator("#selection")
    for text in ("embed.weight", "8×6", "2 ± 0.01", "sampled, 8 samples", "0.5", "matched"):
        assert text in panel.inner_text()
    assert page.locator("#table tr.chosen").count() == 1
    page.keyboard.press("Escape")
    assert panel.is_hidden()
    assert page.locator("#links path").count() == 0


def test_hovering_shows_a_tip_inside_of_the_window(opened: Open, both: str) -> None:
    page = opened(both)
    chip = page.locator(".chip").last
    chip.scroll_into_view_if_needed()
    page.wait_for_timeout(200)  # scrolling hides tips
    chip.hover()
    tip = page.locator("#tip").bounding_box()
    assert tip is not None
    assert tip["x"] >= 0 and tip["y"] >= 0
    assert tip["x"] + tip["width"] <= 1300 and tip["y"] + tip["height"] <= 900


def test_every_colour_has_a_legend(opened: Open, both: str) -> None:
    page = opened(both)
    for quantity in ("multiplier", "fslr", "status"):
        page.select_option("#colour", quantity)
        assert page.locator("#legend").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_trajectory_is_drawn_in_the_colours_of_the_page(
    opened: Open, both: str, scheme: str
) -> None:
    page = opened(both, scheme)
    assert page.locator("#heat-map .heatmaplayer image").count() == 1
    assert page.locator("#lines .scatterlayer .trace").count() > 1
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    drawn = page.locator("#lines .main-svg").first.evaluate("e => getComputedStyle(e).background")
    assert paper in drawn


def test_nothing_is_cut_off_or_overlaps(opened: Open, both: str) -> None:
    page = opened(both)
    page.click("#expand")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [b for b in (e.bounding_box() for e in page.locator("#graph .row").all()) if b]
    left = [b for b in boxes if b["x"] < 650]
    for one, other in pairwise(left):
        assert other["y"] >= one["y"] + one["height"] - 0.5


@pytest.mark.parametrize("width", [1300, 420])
def test_names_beside_the_heat_map_can_be_told_apart(opened: Open, width: int) -> None:
    path = "{}.encoder.stages.{}.layers.{}.layer.{}.convolution.weight"
    names = [path.format("resnet", i, j, k) for i in range(4) for j in range(8) for k in range(3)]
    page = opened(to_html(profile(names, steps=(0, 1))))
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("n => innerWidth === n", arg=width)
    labels = page.locator("#heat-map .yaxislayer-above text, #heat-map .yaxislayer-below text")
    page.wait_for_timeout(500)
    texts = labels.all_text_contents()
    assert len(set(texts)) == len(texts) > 30
    boxes = [box for box in (label.bounding_box() for label in labels.all()) if box]
    assert all(box["x"] >= 0 for box in boxes)
    for one, other in pairwise(sorted(boxes, key=lambda box: box["y"])):
        assert other["y"] >= one["y"] + one["height"] - 3  # letters are lower than their line


def test_a_tied_parameter_counts_once(opened: Open) -> None:
    model, inputs = make("tied")
    graph = capture_graph(capture(nn.Sequential(model), inputs))
    base = replace(profile([*parameters(graph)]), graph=graph)
    page = opened(to_html(base))
    page.click("#fold")
    assert page.inner_text("#graph .group .op") == f"{len(base.parameters)} parameters"


@pytest.mark.parametrize("blocks", [250, 1250])
def test_large_models_are_folded_and_can_be_searched(opened: Open, blocks: int) -> None:
    base = profile(block_names(blocks), steps=tuple(range(20)))
    page = opened(to_html(base, base.graph, assigned(base)))
    assert page.locator("#graph .row").count() < 40
    page.fill("#search", f"blocks.{blocks - 1}.")
    assert page.locator("#table tbody tr").count() == 8


def test_a_profile_alone_has_no_multipliers(opened: Open) -> None:
    page = opened(to_html(profile(block_names(2))))
    assert page.locator(".side").count() == 1
    assert page.locator("#trajectory").is_hidden()
    assert "multiplier" not in page.inner_text("#table thead")


def matching(blocks: tuple[int, int], *, doubtful: str | None = None, more: str = "") -> str:
    base, target = (
        profile(block_names(blocks[0])),
        profile([*block_names(blocks[1]), *more.split()]),
    )
    matches = align(base.graph, target.graph, on_unmatched="unit")
    if doubtful is not None:
        doubt = Doubt(doubtful, ("b",), "names differ <b>", ("head.weight",))
        matches[doubtful] = replace(matches[doubtful], doubt=doubt)
    return matching_to_html(base, target.graph, target.shapes, matches)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 500])
def test_a_matching_has_a_row_for_each_block_and_lines_as_wide_as_shares(
    opened: Open, scheme: str, width: int
) -> None:
    page = opened(matching((2, 3)), scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("n => innerWidth === n", arg=width)
    base, target = page.locator(".side").all()
    assert base.locator(".toggle").all_inner_texts() == ["blocks.0–1 × 2", "0", "1"]
    assert target.locator(".toggle").all_inner_texts() == ["blocks.0–2 × 3", "0", "1", "2"]
    lines = page.locator("#links.whole path")
    widths = sorted(float(line.get_attribute("stroke-width") or 0) for line in lines.all())
    assert widths == pytest.approx([1 + 4 / 3] * 2 + [1 + 8 / 3] * 2 + [5.0] * 2)
    assert "Nothing speaks against this matching" in page.inner_text("#judged")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.uncheck("#whole")
    assert lines.count() == 0


def test_what_is_to_judge_is_listed_marked_and_selected(opened: Open) -> None:
    page = opened(matching((2, 2), doubtful="blocks.0.up.bias", more="extra.norm.weight"))
    assert page.locator("#judged h3").all_inner_texts() == [
        "In doubt: 1",
        "Of the target, without a counterpart: 1",
    ]
    assert "names differ <b>; possible instead: head.weight" in page.inner_text("#judged")
    assert page.locator(".doubtful").count() == page.locator("#links .doubt").count() == 1
    page.locator("#judged").get_by_role("button", name="blocks.0.up.bias").click()
    assert page.locator("#links path").count() == 1
    assert "names differ <b>" in page.inner_text("#selection")
    page.click("#clear")
    page.click("#expand")
    assert page.locator(".chip .doubtful").count() == 1


def test_a_large_matching_is_folded(opened: Open) -> None:
    page = opened(matching((300, 900)))
    assert page.locator("#graph .row").count() < 40
    assert 0 < page.locator("#links path").count() < 40


def test_the_report_shows_the_whole_matching_when_asked(opened: Open, both: str) -> None:
    page = opened(both)
    assert page.locator("#links path").count() == 0
    page.check("#whole")
    assert page.locator("#links path").count() > 4
    assert page.locator("#judgement").is_hidden()


def test_losses_are_drawn_where_they_are_known(opened: Open) -> None:
    base = profile(block_names(1), steps=(0, 10))
    run = replace(base.trajectory, losses=(3.0, 2.0))
    known = replace(base, trajectory=run)
    page = opened(to_html(known, base.graph, assigned(base), trajectory=run))
    assert page.locator("#losses").is_visible()
    assert page.locator("#losses .legendtext").all_text_contents() == ["base", "target"]
    assert page.locator("#losses .scatterlayer .trace").count() == 2
    assert page.locator("#losses .xtick").all_text_contents() == ["0", "10"]
    page = opened(to_html(base))
    assert not page.locator("#losses").is_visible()
    assert page.locator("#lines").is_visible()
