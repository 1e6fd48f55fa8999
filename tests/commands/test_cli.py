"""The command line: every expected failure is one line."""

import json
import math
import os
import re
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.commands.cli import EXTRAS
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.update_rule import UpdateRule
from tests.commands.calling import run

ROOT = Path(__file__).parents[2]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"flerm-fx \d+\.\d+\S*\n", out)


def test_help_of_the_demo_has_its_options_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "demo", "--help")
    assert code == 0
    for option in ("--width", "--base-width", "--depth", "--steps", "--rates", "--seed", "--out"):
        assert option in out
    assert "flerm-fx demo --width 8 --steps 300" in out


def test_a_flerm_error_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo", "--rates", "-2:-10")
    assert (code, out) == (1, "")
    assert err.startswith("flerm-fx: --rates is '-2:-10'; it must be LOW:HIGH")
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = run(capsys, "demo", "--out", str(file))
    assert code == 1
    assert str(file) in err
    assert err.count("\n") == 1


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "demo", "--wide", "4")
    assert code == 2
    assert "--wide" in err


@pytest.mark.parametrize(
    "package,extra,command",
    [
        ("typer", "cli", "--version"),
        pytest.param("rich", "cli", "--version", marks=pytest.mark.slow),
        ("matplotlib", "viz", "demo"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_how_to_get_it(
    package: str, extra: str, command: str
) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; "
        f"from flerm_fx.commands.cli import main; main([{command!r}])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"flerm-fx: {package} is not installed; install it with: pip install 'flerm_fx[{extra}]'\n"
    )


def test_the_extras_that_are_named_bring_what_is_missing() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    brings = extras["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(re.match(rf"{package}\W", requirement) for requirement in brings[extra])
    named = {"viz": ("plotly",), "explorer": ("ai-edge-model-explorer",)}
    for extra, packages in named.items():
        for package in packages:
            assert any(each.startswith(package) for each in brings[extra])
    said = set()
    for path in (ROOT / "flerm_fx").rglob("*.py"):
        said |= set(
            re.findall(r"pip install 'flerm_fx\[(\w+)\]'", path.read_text(encoding="utf-8"))
        )
    assert said <= set(brings)


def test_commands_that_draw_nothing_need_no_matplotlib(profile: str) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None; from flerm_fx.commands.cli import main; "
        f"main(['inspect', {profile!r}])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "torch.optim.Adam" in result.stdout


@pytest.mark.parametrize(
    "arguments,code,message",
    [
        (("report", "--seed", str(2**70)), 2, "--seed"),
        (("compile", "--model", "torch.nn:Identity", "--seed", "-1"), 2, "--seed"),
        (("explore", "--port", "70000"), 2, "--port"),
        (("demo", "--seed", str(2**63)), 1, "--seed is 9223372036854775808; it must be below 2^63"),
        (("demo", "--rates", "-60:60:1e-6"), 1, "which is 120000001 learning rates, each a run"),
        (("demo", "--rates", "nan:1"), 1, "--rates is 'nan:1'; it must be LOW:HIGH"),
    ],
)
def test_numbers_without_sense_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    name, *options = arguments
    file = [] if name == "demo" else ["profile"]
    found, _, err = run(capsys, name, *file, *options)
    assert found == code
    assert message in err


def test_a_tolerance_without_sense_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    monkeypatch.chdir(Path(profile).parent)
    code, _, err = run(
        capsys, "compile", profile, "--model", "targets_of_match:wide", "--rtol", "nan"
    )
    assert code == 1
    assert err.startswith("flerm-fx: rtol must be a finite number above 0 and below 1, got nan")


@pytest.fixture
def profile(tmp_path: Path) -> str:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(base.parameters(), lr=1e-3)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    path = tmp_path / "base.safetensors"
    flerm_fx.record(base, optimizer, x, y).profile.save(path)
    (tmp_path / "targets_of_match.py").write_text(
        "from torch import nn\n"
        "def wide(): return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), "
        "nn.Tanh(), nn.Linear(32, 3))\n"
        "def without(): return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), "
        "nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 3))\n"
        "number = 3\n"
    )
    return str(path)


def test_inspect_prints_settings_and_fslrs(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    loaded = flerm_fx.BaseProfile.load(profile)
    code, out, err = run(capsys, "inspect", profile)
    assert (code, err) == (0, "")
    assert re.search(r"^optimizer: torch\.optim\.Adam$", out, re.MULTILINE)
    assert re.search(r"^pool: 6×4, 6$", out, re.MULTILINE)
    value = f"{loaded.start['2.weight'].value:.4g}"
    assert re.search(rf"^2\.weight +linear +8×8 +{re.escape(value)} ± 0$", out, re.MULTILINE)
    code, out, _ = run(capsys, "inspect", profile, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["learning_rate"] == 1e-3
    assert found["parameters"].keys() == loaded.start.keys()
    assert found["parameters"]["4.bias"]["start"]["fslr"] == loaded.start["4.bias"].value


def test_inspect_shows_the_ends_of_a_trajectory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    with flerm_fx.record(model, optimizer, x, y, every=2) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    recorder.profile.save(path := tmp_path / "run.safetensors")
    code, out, _ = run(capsys, "inspect", str(path))
    assert code == 0
    assert re.search(r"^parameter +op +shape +start +step 0 +step 4$", out, re.MULTILINE)
    assert "steps: 0, 2, 4" in out


def wide() -> nn.Module:
    """The target of that name."""
    return nn.Sequential(
        nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)
    )


def test_compile_prints_any_dump_and_checks(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    profile: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("compile", profile, "--model", "targets_of_match:wide")
    code, out, err = run(capsys, *command, "--check")
    assert (code, err) == (0, "")
    assert re.search(r"^2\.weight .* matched$", out, re.MULTILINE)
    code, out, _ = run(capsys, *command, "--dump", "json", "--out", str(tmp_path / "out.json"))
    assert (code, out) == (0, "")
    rows = json.loads((tmp_path / "out.json").read_text())["parameters"]
    torch.manual_seed(0)
    model = wide()
    compiled = flerm_fx.compile(model, flerm_fx.BaseProfile.load(profile))
    found = {row["parameter"]: row["multiplier"] for row in rows}
    assert found == pytest.approx(compiled.multipliers)
    code, _, err = run(capsys, *command, "--out", str(tmp_path / "none" / "out.txt"))
    assert code == 1
    assert "none/out.txt" in err
    assert len(err.strip().splitlines()) == 1
    code, _, err = run(capsys, "compile", profile, "--model", "targets_of_match:without")
    assert code == 1
    assert "2.bias" in err
    code, out, _ = run(
        capsys, "compile", profile, "--model", "targets_of_match:wide", "--dump", "code"
    )
    assert code == 0
    assert "scale(" in out
    picture = tmp_path / "picture.dot"
    options = ("--format", "dot", "--level", "op", "--focus", "2", "--out", str(picture))
    code, out, _ = run(capsys, *command, *options)
    assert (code, out) == (0, "")
    assert '"_2_weight" [label="weight\\n32×32"' in picture.read_text(encoding="utf-8")
    assert '"_4_weight"' not in picture.read_text(encoding="utf-8")


def test_diff_says_what_differs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, profile: str
) -> None:
    code, out, err = run(capsys, "diff", profile, profile)
    assert (code, out.strip(), err) == (0, "no difference", "")
    loaded = flerm_fx.BaseProfile.load(profile)
    start = dict(loaded.start)
    start["2.weight"] = replace(start["2.weight"], value=2 * start["2.weight"].value)
    replace(loaded, start=start, seed=7).save(other := tmp_path / "other.safetensors")
    code, out, _ = run(capsys, "diff", profile, str(other))
    assert code == 3
    assert "seed: 0 | 7" in out
    assert re.search(r"^2\.weight .* 2$", out, re.MULTILINE)
    assert "0.weight" not in out
    code, out, _ = run(capsys, "diff", profile, str(other), "--json")
    found = json.loads(out)
    assert code == 3
    assert found["settings"] == {"seed": [0, 7]}
    assert found["fslrs"].keys() == {"2.weight"}
    small = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    flerm_fx.record(small, optimizer, x, y).profile.save(other)
    code, out, _ = run(capsys, "diff", profile, str(other))
    assert code == 3
    assert "only in the first: 0.weight" in out
    assert "only in the second: weight" in out


def test_diff_and_inspect_of_runs_with_and_without_groups(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, profile: str
) -> None:
    loaded = flerm_fx.BaseProfile.load(profile)
    odd = UpdateRule(None, {"weight_decay": "much", "clip": math.inf}, None, "mine.Rule")
    own = loaded.optimizers
    run_of_two = Optimizers((*own.rules, odd), (*own.learning_rates, 0.1), {"4.bias": 1})
    replace(loaded, optimizers=run_of_two).save(other := tmp_path / "other")
    for paths in ((profile, str(other)), (str(other), profile)):
        code, out, _ = run(capsys, "diff", *paths)
        assert code == 3
        assert "mine.Rule at 0.1, weight decay much" in out
    code, out, _ = run(capsys, "inspect", str(other))
    assert code == 0
    assert "mine.Rule at 0.1, weight decay much" in out


def test_json_never_holds_what_is_not_finite(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, profile: str
) -> None:
    loaded = flerm_fx.BaseProfile.load(profile)
    rule = UpdateRule(None, {"clip": math.inf}, None, "mine.Rule")
    zero = {name: replace(estimate, value=0.0) for name, estimate in loaded.start.items()}
    run_of_one = replace(loaded.optimizers, rules=(rule,))
    replace(loaded, optimizers=run_of_one, start=zero).save(other := tmp_path / "other")

    def found(*arguments: str) -> Any:
        _, out, _ = run(capsys, *arguments, "--json")
        return json.loads(out, parse_constant=pytest.fail)

    assert found("inspect", str(other))["optimizer_settings"] == {"clip": None}
    assert found("diff", str(other), profile)["settings"]["optimizer_settings"][0] == {"clip": None}


def test_compile_writes_overrides(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    profile: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("compile", profile, "--model", "targets_of_match:wide", "--overrides")
    code, out, err = run(capsys, *command, "json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    code, out, _ = run(capsys, *command, "param_groups", "--out", "groups.py")
    assert (code, out) == (0, "")
    names: dict[str, Any] = {}
    exec((tmp_path / "groups.py").read_text(encoding="utf-8"), names)
    model = wide()
    assert found.keys() == dict(model.named_parameters()).keys()
    rates = {p: g["lr"] for g in names["param_groups"](model, 0.5) for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert rates[parameter] == pytest.approx(0.5 * found[name])
    for options in (("json", "--format", "json"), ("regex", "--level", "op")):
        code, out, err = run(capsys, *command, *options)
        assert (code, out) == (1, "")
        assert "leave out one or the other" in err
        assert err.count("\n") == 1
    code, out, err = run(capsys, *command, "json", "--out", "none/out.json")
    assert (code, out) == (1, "")
    assert "none/out.json" in err
    assert run(capsys, *command, "yaml")[0] == 2


@pytest.mark.parametrize("command", ["compile", "report", "plot"])
def test_where_to_write_is_tried_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.svg")
    arguments = () if command == "plot" else ("--model", "no_such_module:f")
    (folder := tmp_path / "folder.svg").mkdir()
    for out in (pipe, tmp_path / "none" / "out.svg", folder):
        code, _, err = run(capsys, command, "none.safetensors", *arguments, "--out", str(out))
        assert code == 1
        assert re.search(r"cannot (be written|write)", err)
        assert err.count("\n") == 1
        assert str(out) in err
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_match_prints_what_answers_to_what(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    profile: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "match", profile, "--model", "targets_of_match:wide")
    assert (code, err) == (0, "")
    assert re.search(r"^2\.weight +32×32 +2\.weight +8×8$", out, re.MULTILINE)
    assert "6 parameters: 6 matched, 0 unmatched, 0 unused; 6 in the base" in out
    arguments = ("match", profile, "--model", "targets_of_match:without")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert "base '2.bias' (aten.linear bias, rank 1 in Linear)" in err
    code, out, _ = run(capsys, *arguments, "--on-unmatched", "unit", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["base_without_counterpart"] == ["2.bias"]
    assert found["matches"]["2.weight"] == [{"parameter": "2.weight", "share": 1.0}]
    swapped = ("--mapping", "0.bias=2.bias", "--mapping", "2.bias = {n}.bias", "--json")
    code, _, err = run(capsys, *arguments[:2], "--model", "targets_of_match:wide", *swapped)
    assert code == 1 and "leaves the range: {n} is 3" in err
    swapped = ("--mapping", "0.bias=2.bias", "--mapping", "2.bias=0.bias", "--json")
    code, out, _ = run(capsys, *arguments[:2], "--model", "targets_of_match:wide", *swapped)
    assert json.loads(out)["matches"]["0.bias"] == [{"parameter": "2.bias", "share": 1.0}]
    page = ("--model", "targets_of_match:wide", "--format", "html", "--output")
    assert run(capsys, *arguments[:2], *page, "matching.html") == (0, "", "")
    assert Path("matching.html").read_text().startswith("<!DOCTYPE html>")
    code, out, err = run(capsys, *arguments[:2], *page, "no/matching.html")
    assert (code, out) == (1, "") and "cannot write to" in err
    code, _, err = run(capsys, *arguments, "--mapping", "0.bias")
    assert code == 1 and "--mapping is '0.bias'; expected target=base" in err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-colon", "--model is 'no-colon'; expected package.module:factory"),
        ("no_such_module:f", "gives no model: ModuleNotFoundError"),
        ("torch.nn:NoSuch", "gives no model: AttributeError"),
        ("targets_of_match:number", "gives no model: TypeError: 'int' object is not callable"),
        ("torch:get_default_dtype", "gives a dtype; expected a torch.nn.Module"),
    ],
)
def test_match_with_a_model_that_cannot_be_had(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    profile: str,
    model: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "match", profile, "--model", model)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_match_with_a_file_that_is_no_profile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "no.safetensors"
    path.write_bytes(b"nothing")
    code, _, err = run(capsys, "match", str(path), "--model", "torch.nn:Identity")
    assert code == 1
    assert str(path) in err
    assert err.count("\n") == 1


def test_ctrl_c_is_one_line_and_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flerm_fx.commands.demo.demo.run_demo", interrupted)
    code, _, err = run(capsys, "demo", "--out", str(tmp_path))
    assert code == 130
    assert err == f"flerm-fx: interrupted; no results were written to {tmp_path}/\n"


def test_ctrl_c_while_measuring_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flerm_fx.commands.inspect.BaseProfile.load", interrupted)
    code, out, err = run(capsys, "inspect", str(tmp_path / "base.safetensors"))
    assert (code, out, err) == (130, "", "flerm-fx: interrupted\n")
