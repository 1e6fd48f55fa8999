"""``flerm-fx law``: from a profile to a law, a table, a picture and predictions."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.commands.cli import main

MODELS = """
from torch import nn

def make(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                         nn.Linear(width, 3))

def large():
    return make(4096)
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    output = capsys.readouterr()
    return stopped.value.code, output.out, output.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models_of_laws.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def base() -> nn.Module:
        layers = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        return nn.Sequential(*layers)

    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    flerm_fx.record_seeds(
        base, lambda m: torch.optim.Adam(m.parameters(), lr=1e-3), x, y, seeds=2, settle=0
    ).save(tmp_path / "base.safetensors")
    return tmp_path


# Eight features are few, and whether a law of them holds is chance.
@pytest.mark.filterwarnings("ignore:the law does not hold")
def test_from_a_profile_to_predictions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys,
        *("law", "fit", "base.safetensors", "--model", "models_of_laws:make"),
        *("--sizes", "width=16,32,64", "--seeds", "2"),
    )
    assert code == 0
    assert "measured model 6 of 6 (width=64, seed 1)" in err
    (line,) = (line for line in out.splitlines() if line.startswith("2.weight"))
    assert line.split()[1:3] == ["0,", "1"]
    assert line.split()[5] == "-1"  # muP's
    assert "The largest size is missed by" in out
    shown = run(capsys, "law", "show", "law.json", "--picture", "law.png")
    assert shown[:2] == (0, out)
    assert (folder / "law.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(
        capsys, "compile", "law.json", "--model", "models_of_laws:large", "--format", "json"
    )
    rows = json.loads(out)["parameters"]
    assert code == 0
    assert {row["status"] for row in rows} == {"predicted"}
    assert rows[2]["shape"] == [4096, 4096]


@pytest.mark.parametrize("sizes", ["width", "width=", "=4", "width=a", "2=3"])
def test_sizes_of_another_form(
    folder: Path, capsys: pytest.CaptureFixture[str], sizes: str
) -> None:
    code, _, err = run(
        capsys,
        *("law", "fit", "base.safetensors", "--model", "models_of_laws:make", "--sizes", sizes),
    )
    assert code == 1
    assert err.startswith(f"flerm-fx: --sizes is '{sizes}'; expected an argument's values")


def test_sizes_of_one_argument_are_named_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--sizes", "width=16", "--sizes", "width=32"
    code, _, err = run(
        capsys, *("law", "fit", "base.safetensors", "--model", "models_of_laws:make"), *sizes
    )
    assert code == 1
    assert err == "flerm-fx: --sizes has width twice; name all of its values once, width=16,32\n"


def test_a_factory_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, what in (("math:pi", "is a float"), ("math:none", "cannot be imported")):
        code, _, err = run(
            capsys,
            *("law", "fit", "base.safetensors", "--model", name, "--sizes", "width=16"),
        )
        assert code == 1
        assert f"'{name}' {what}" in err


def record_runs(folder: Path) -> None:
    """A base and two models of twice the width, as they train."""
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    for name, width in (("base", 8), ("wide-0", 16), ("wide-1", 16)):
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        with flerm_fx.record(model, adam, x, y, settle=0, at=[1, 2]) as recorder:
            for _ in range(3):
                adam.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                adam.step()
        recorder.profile.save(folder / f"{name}.safetensors")


def test_a_law_of_trajectories(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_runs(folder)
    code, out, _ = run(
        capsys,
        *("law", "fit", "base.safetensors", "--out", "course.json"),
        *("--trajectory", "wide-0.safetensors", "--trajectory", "wide-1.safetensors"),
    )
    assert code == 0
    assert "too few sizes" in out
    law = flerm_fx.ScalingLaw.load(folder / "course.json")
    assert {point.model for point in law.points["2.weight"]} == {0, 1}
    assert run(capsys, "law", "show", "course.json")[:2] == (0, out)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--model", "models_of_laws:make"),
        ("--sizes", "width=16"),
        ("--model", "models_of_laws:make", "--sizes", "width=16", "--trajectory", "a"),
    ],
)
def test_one_way_to_fit_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    code, _, err = run(capsys, "law", "fit", "base.safetensors", *options)
    assert code == 1
    assert "law fit takes --model and --sizes, or --trajectory in place of both" in err


def test_how_to_measure_goes_with_no_recorded_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(
        capsys,
        *("law", "fit", "base.safetensors", "--trajectory", "a", "--seeds", "3", "--rtol", "0.2"),
    )
    assert code == 1
    assert "--seeds and --rtol say how models are measured" in " ".join(err.split())
