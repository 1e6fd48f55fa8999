"""What is installed: a wheel that runs without the repository, and a core light to import."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import flerm_fx

ROOT = Path(__file__).parents[1]


def python(*arguments: str, folder: Path) -> str:
    """What a new interpreter prints, which imports from a folder first."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), folder=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_types_the_pages_parts_and_the_version(wheel: Path) -> None:
    assert wheel.name == f"flerm_fx-{flerm_fx.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"flerm_fx/py.typed", "flerm_fx/dump/report/assets/page.html"} <= names
    assert {name.split("/")[0] for name in names} == {
        "flerm_fx",
        f"flerm_fx-{flerm_fx.__version__}.dist-info",
    }
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "flerm_fx").rglob("*.py")}
    assert files <= names


def test_what_the_wheel_holds_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    place = "import flerm_fx; print(flerm_fx.__file__)"
    assert Path(python("-c", place, folder=tmp_path).strip()).is_relative_to(tmp_path)
    version = python("-m", "flerm_fx", "--version", folder=tmp_path)
    assert version == f"flerm-fx {flerm_fx.__version__}\n"


def imports_of_the_pages() -> str:
    """Every import of flerm_fx in the documentation and the README.

    The example models have one name in the repository and another in the wheel, so that a page
    which imports them works in one of the two alone.
    """
    found = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(
            r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            for node in ast.walk(ast.parse(block)):
                given = (isinstance(node, ast.ImportFrom) and node.module) or ""
                if given.split(".")[0] == "flerm_fx":
                    found.add(ast.unparse(node))
                assert given.split(".")[0] != "models" and "flerm_fx.models" not in given, page
    assert any("flerm_fx.commands.demo" in each for each in found)
    trainers = ("transformers", "lightning")  # which are imported where they are tested
    return "\n".join(sorted(each for each in found if not any(name in each for name in trainers)))


def test_what_the_pages_import_is_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    check = "import sys; assert 'models' not in sys.modules; print('all of it')"
    assert python("-c", f"{imports_of_the_pages()}\n{check}", folder=tmp_path) == "all of it\n"


EXTRAS = (
    *("typer", "rich", "matplotlib", "plotly", "transformers", "peft", "accelerate", "lightning"),
    *("tensorboard", "model_explorer", "pytest", "hypothesis", "pydot", "IPython"),
)

CORE_ALONE = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # so that importing one fails
import torch, flerm_fx
from torch import nn
def mlp(width=8): return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
def adam(model): return torch.optim.Adam(model.parameters(), lr=1e-2)
pool = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]
profile = flerm_fx.record_seeds(mlp, adam, pool, seeds=2)
profile.save("base.safetensors")
model = flerm_fx.compile(mlp(32), flerm_fx.BaseProfile.load("base.safetensors"))
model.dump("html", path="page.html")
print(len(model.multipliers), flerm_fx.__file__)
"""


def test_the_wheel_works_with_the_cores_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    """Under the oldest and the newest torch by `make test-torch`."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    count, place = python("-c", CORE_ALONE, folder=tmp_path).split()
    assert count == "4"
    assert Path(place).is_relative_to(tmp_path)
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_importing_the_core_brings_nothing_that_can_wait(tmp_path: Path) -> None:
    heavy = ("networkx", "sympy", "matplotlib", "plotly", "transformers", "typer", "rich")
    code = f"import sys, flerm_fx; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code, folder=tmp_path) == "[]\n"


def test_the_command_is_where_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for place in project["scripts"].values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
