"""The report: one file that loads nothing, with every number and every name as data."""

import json
import math
import re
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.commands.cli import main
from flerm_fx.dump import dump
from flerm_fx.dump.report import to_html
from flerm_fx.errors import FlermError, InputError
from flerm_fx.profile.trajectory import Trajectory
from tests.dump.report.profiles import assigned, block_names, profile

NASTY = "a</script><script>alert(1)</script><b>&amp;{{scripts}}\u2028'\""


class Page(HTMLParser):
    """Elements of a page, and the text of its data element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.within = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self.within:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self.within = False


def data_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Page(text).data)
    return found


def test_a_profile_alone() -> None:
    base = profile(block_names(3))
    text = to_html(base)
    data = data_of(text)
    [side] = data["sides"]
    assert data["trajectory"] is None
    assert "plotly.js v" not in text
    assert [p["name"] for p in side["parameters"]] == list(base.parameters)
    assert side["parameters"][1]["fslr"] == 2.0
    assert {p["status"] for p in side["parameters"]} == {"used"}
    assert "base of 14 parameters" in text


def test_a_target_beside_the_base() -> None:
    base = profile(block_names(3))
    base_side, target = data_of(to_html(base, base.graph, assigned(base)))["sides"]
    assert {p["multiplier"] for p in target["parameters"]} == {0.5}
    assert target["parameters"][0]["base"] == [["embed.weight", 1.0]]
    assert {p["status"] for p in base_side["parameters"]} == {"matched"}


def test_a_trajectory_brings_its_numbers_and_plotly() -> None:
    base = profile(block_names(2), steps=(0, 10, 30))
    text = to_html(base)
    course = data_of(text)["trajectory"]
    assert course["steps"] == [0, 10, 30]
    assert course["fslrs"][0] == [1.0, 0.5, 0.25]
    assert re.search(r"plotly\.js v[\d.]+\s.*\s.*\s\* Licensed under the MIT license", text)


def test_the_verdict_knows_names_the_start_and_the_check(recorded: flerm_fx.BaseProfile) -> None:
    model = small()
    compiled = flerm_fx.compile(model, recorded)
    found = data_of(compiled.dump("html"))["verdict"]
    name = type(model).__name__
    assert found["names"] == [name, name]
    assert found["checks"] is None
    assert f"at a learning rate of {recorded.learning_rate:g}" in found["start"]
    assert len(found["cautions"]) == 1
    checks = compiled.check()
    found = data_of(compiled.dump("html", trajectory=recorded.trajectory))
    assert found["verdict"]["checks"] == {check.parameter: check.passed for check in checks}
    mean = flerm_fx.BaseProfile.mean([recorded, recorded])
    assert data_of(to_html(mean))["verdict"] == {
        **{"names": [name], "start": found["verdict"]["start"]},
        **{"checks": None, "cautions": []},
    }


def test_a_run_of_the_target_stands_beside_the_base() -> None:
    base = profile(block_names(1), steps=(0, 10))
    run = Trajectory((0, 5), (0.1, 0.1), {n: (e, e * 2) for n, e in base.start.items()})
    rows = assigned(base)
    assert data_of(to_html(base, base.graph, rows))["trajectory"]["target"] is None
    target = data_of(to_html(base, base.graph, rows, trajectory=run))["trajectory"]["target"]
    assert target["steps"] == [0, 5]
    assert target["fslrs"][1] == [2.0, 4.0]
    assert target["losses"] == []


def test_losses_are_in_the_page_where_they_are_known() -> None:
    base = profile(block_names(1), steps=(0, 10))
    known = replace(base, trajectory=replace(base.trajectory, losses=(2.5, math.nan)))
    course = data_of(to_html(known))["trajectory"]
    assert course["losses"] == [2.5, None]


def test_what_compile_warned_of_is_said_by_a_saved_report(recorded: flerm_fx.BaseProfile) -> None:
    model = small().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that nobody has seen
        compiled = flerm_fx.compile(model, recorded)
    [mode] = [text for text in compiled.warned if "evaluation mode" in text]
    assert mode in data_of(compiled.dump("html"))["verdict"]["cautions"]
    assert json.loads(compiled.dump("json"))["warnings"] == list(compiled.warned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = flerm_fx.compile(small(), recorded)
    assert again.warned == ()


def test_nothing_is_loaded() -> None:
    page = Page(to_html(profile(block_names(2), steps=(0, 1))))
    policy = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert len(policy) == 1
    assert (policy[0] or "").startswith("default-src 'none'")
    assert not [a for _, a in page.elements if "src" in a or "href" in a]


def test_names_are_data_and_never_markup() -> None:
    names = [f"{NASTY}.weight", "plain.weight"]
    plain = to_html(profile(["x.weight", "plain.weight"]))
    text = to_html(profile(names))
    assert [e[0] for e in Page(text).elements] == [e[0] for e in Page(plain).elements]
    assert data_of(text)["sides"][0]["parameters"][0]["name"] == names[0]
    assert "alert(1)</script>" not in text


def test_numbers_that_json_cannot_hold_are_none() -> None:
    base = profile(["x.weight"])
    [row] = assigned(base)
    broken = flerm_fx.Estimate(float("nan"), float("inf"), "exact", 0)
    text = to_html(base, base.graph, [type(row)(**{**vars(row), "target": broken})])
    assert data_of(text)["sides"][1]["parameters"][0]["fslr"] is None


def test_plotly_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert "<html" in to_html(profile(["x.weight"]))
    with pytest.raises(InputError, match=r"pip install 'flerm_fx\[viz\]'"):
        to_html(profile(["x.weight"], steps=(0,)))


def test_the_dump_needs_both_graphs() -> None:
    with pytest.raises(InputError, match="'html' needs the base profile"):
        dump([], None, "html")


# --- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    output = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, output.out, output.err


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def recorded() -> flerm_fx.BaseProfile:
    torch.manual_seed(0)
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return flerm_fx.record(model, optimizer, torch.randn(6, 4), torch.arange(6) % 3).profile


def test_report_of_a_profile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recorded: flerm_fx.BaseProfile
) -> None:
    recorded.save(file := tmp_path / "base.safetensors")
    out = tmp_path / "page.html"
    code, printed, err = run(capsys, "report", str(file), "--out", str(out))
    assert (code, printed.strip(), err) == (0, f"wrote {out}", "")
    assert len(data_of(out.read_text(encoding="utf-8"))["sides"]) == 1


def test_report_of_a_model(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recorded: flerm_fx.BaseProfile,
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded.save("base.safetensors")
    Path("targets_of_report.py").write_text(
        "from torch import nn\n"
        "def wide(): return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))\n"
    )
    model = ("--model", "targets_of_report:wide")
    code, printed, err = run(capsys, "report", "base.safetensors", *model)
    assert (code, printed.strip(), err) == (0, "wrote report.html", "")
    [_, target] = data_of(Path("report.html").read_text(encoding="utf-8"))["sides"]
    assert [p["shape"] for p in target["parameters"]] == [[32, 4], [32], [3, 32], [3]]
    compiled = ("compile", "base.safetensors", *model, "--dump", "html", "--out", "again.html")
    assert run(capsys, *compiled)[0] == 0
    assert Path("again.html").read_text() == Path("report.html").read_text()


@pytest.mark.parametrize("emit", ["graph", "module", "param_groups"])
def test_dump_writes_the_report_for_every_emitter(
    tmp_path: Path, recorded: flerm_fx.BaseProfile, emit: Any
) -> None:
    compiled = flerm_fx.compile(small(), recorded, emit=emit)
    out = tmp_path / "out.html"
    assert compiled.dump("html", out) == str(out)
    text = out.read_text(encoding="utf-8")
    assert text == compiled.dump("html") + "\n"
    found = {p["name"]: p["multiplier"] for p in data_of(text)["sides"][1]["parameters"]}
    assert found == pytest.approx(compiled.multipliers, rel=1e-5)
    with pytest.raises(FlermError, match="cannot write to"):
        compiled.dump("html", tmp_path / "none" / "out.html")


def test_reports_that_cannot_be_had(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recorded: flerm_fx.BaseProfile
) -> None:
    recorded.save(file := tmp_path / "base.safetensors")
    (empty := tmp_path / "empty.safetensors").write_bytes(b"")
    for arguments, message in (
        ((str(file), "--out", str(tmp_path)), "cannot write to"),
        ((str(file), "--out", str(tmp_path / "no" / "page.html")), "cannot write to"),
        ((str(empty),), "expected a base profile"),
        ((str(tmp_path / "missing"),), "no such file"),
        ((str(file), "--model", "no_such_module:f"), "gives no model"),
    ):
        code, out, err = run(capsys, "report", *arguments)
        assert (code, out) == (1, "")
        assert message in err
        assert err.count("\n") == 1
