"""The folder listing is the architecture: nothing imports backwards, and nothing in a circle."""

import ast
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "errors",
    "compat",
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
    "compiler",
    "integrations",
    "commands",
)
"""Each uses those before it alone."""

Imports = dict[str, set[str]]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports() -> Imports:
    """Every file of the package that a file imports, wherever in it."""
    files = {module_of(path): path for path in (ROOT / "flerm_fx").rglob("*.py")}
    found: Imports = {}
    for name, path in files.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                named |= {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[name] = (named & files.keys()) - {name}
    return found


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


def test_the_listing_fits_in_twenty_lines() -> None:
    listed = [
        p
        for p in (ROOT / "flerm_fx").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    ]
    assert len(listed) <= 20
