"""The folder listing is the architecture: nothing imports backwards, and nothing in a circle."""

import ast
import re
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "errors",
    "boundary",
    "ops",
    "model",
    "recipe",
    "capture",
    "probe",
    "align",
    "profile",
    "start",
    "assign",
    "dump",
    "emit",
    "training",
    "laws",
    "integrations",
    "commands",
)
"""Each uses those before it alone."""

MOST_LINES = 400

OUTSIDE = {"distributed", "experiments", "models"}
"""Folders of tests that are not of flerm_fx: of runs on several ranks, and of other folders."""

OF_OTHERS = {
    "_flat_weights",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_node_metadata_hook",
    "_optimizer_step_pre_hooks",
    "_parameters",
    "_reset_state",
    "_to_copy",
}
"""Private names of torch that tests read."""

Imports = dict[str, set[str]]


def imported(path: Path) -> set[str]:
    """All that a file names in an import, as modules and as what may be modules in them."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            named |= {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return named


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports() -> Imports:
    """Every file of the package that a file imports, wherever in it."""
    files = {module_of(path): path for path in (ROOT / "flerm_fx").rglob("*.py")}
    return {name: (imported(path) & files.keys()) - {name} for name, path in files.items()}


def place(module: str) -> str:
    return module.split(".")[1]


def test_every_part_has_its_place() -> None:
    parts = {place(name) for name in imports()} - {"__init__", "__main__"}
    assert parts == set(ORDER)


def test_nothing_imports_backwards() -> None:
    backwards = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if not place(name).startswith("__") and ORDER.index(place(other)) > ORDER.index(place(name))
    ]
    assert not backwards


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = nx.DiGraph([(a, b) for a, others in imports().items() for b in others])
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


@pytest.mark.parametrize("name", ["record", "match", "compile", "measure", "instrument"])
def test_no_module_hides_a_function_of_the_interface(name: str) -> None:
    assert not (ROOT / "flerm_fx" / f"{name}.py").exists()
    assert not (ROOT / "flerm_fx" / name).exists()


def test_the_listing_is_short() -> None:
    """But for the marker of types, which is nothing to read."""
    listed = {p.name for p in (ROOT / "flerm_fx").iterdir()} - {"__pycache__", "py.typed"}
    assert len(listed) <= 20


def test_no_file_is_long() -> None:
    for path in (ROOT / "flerm_fx").rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES, f"{module_of(path)} has {lines} lines"


def test_warnings_have_one_way_out() -> None:
    """Else ``CompiledModel.warned`` and the report would leave some out without a word."""
    plain = {
        module_of(path)
        for path in (ROOT / "flerm_fx").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("warn", "warn_explicit")
        and isinstance(node.value, ast.Name)
        and node.value.id == "warnings"
    }
    assert plain == {"flerm_fx.boundary.warned"}


def test_no_test_imports_another() -> None:
    files = (ROOT / "tests").rglob("*.py")
    assert not {
        f"{module_of(path)} imports {name}"
        for path in files
        for name in imported(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    }


def test_no_test_touches_a_private_name() -> None:
    """Those of torch are held by ``test_compat.py``, or are where torch keeps hooks; that of
    accelerate makes it forget the last trainer."""
    touched = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("torch."):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                names = [] if own else [node.attr]
            touched += [
                f"{module_of(path)} has {name}"
                for name in names
                if re.match("_[^_]", name) and name not in OF_OTHERS
            ]
    assert not touched


def test_folders_of_tests_mirror_the_packages() -> None:
    tests, packages = (
        {path.parent.relative_to(root).as_posix() for path in root.rglob("*.py")} - {"."}
        for root in (ROOT / "tests", ROOT / "flerm_fx")
    )
    assert tests - OUTSIDE == packages
