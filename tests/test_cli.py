"""The command line: every expected failure is one line."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flerm_fx.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    output = capsys.readouterr()
    code = stopped.value.code
    assert isinstance(code, int)
    return code, output.out, output.err


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


@pytest.mark.parametrize("package", ["typer", "rich", "matplotlib"])
def test_a_missing_extra_is_one_line_that_says_how_to_get_it(package: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; "
        "from flerm_fx.cli import main; main(['--version'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"flerm-fx: {package} is not installed; install it with: pip install 'flerm_fx[demo]'\n"
    )


def test_ctrl_c_is_one_line_and_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flerm_fx.demo.command.run_demo", interrupted)
    code, _, err = run(capsys, "demo", "--out", str(tmp_path))
    assert code == 130
    assert err == f"flerm-fx: interrupted; no results were written to {tmp_path}/\n"
