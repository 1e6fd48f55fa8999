"""The table of operations, against torch, and as the one place that knows them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import flerm_fx
from flerm_fx.ops.operation import schema_of
from flerm_fx.ops.table import NOTHING, TABLE, facts

PACKAGE = Path(flerm_fx.__file__).parent

NAMED = [name for name in TABLE if name.startswith("aten.")]


def overloads(name: str) -> list[Any]:
    packet = getattr(torch.ops.aten, name.removeprefix("aten."))
    return [getattr(packet, overload) for overload in packet.overloads()]


@pytest.mark.parametrize("name", NAMED)
def test_every_entry_is_of_an_operation_with_such_arguments(name: str) -> None:
    known = TABLE[name]
    numbers = {number.lstrip("-") for number in known.terms.values()} - {""}
    some = [{a.name for a in schema_of(op).arguments} for op in overloads(name)]
    wanted = {*known.linear, *known.terms, *numbers, known.by_batch} - {""}
    assert any(wanted <= names for names in some)


def test_an_overload_that_shares_the_name_alone_is_unknown() -> None:
    aten = torch.ops.aten
    assert facts(aten.div.Tensor_mode) is facts(aten.view.dtype) is facts(aten.lstm.data) is NOTHING
    assert facts(aten.relu_.default) is NOTHING
    assert facts(aten.div.Tensor).divides


def test_a_function_or_a_parameter_of_the_user_is_not_taken_for_an_operation() -> None:
    def attention() -> None: ...

    assert facts(attention) is facts("attention") is NOTHING


KNOWS = {
    "ops/table.py": "the table",
    "probe/jacobians.py": "formulas of Jacobians, each beside the operation that it is of",
    "capture/probed_as.py": "functions, each beside the operation that it stands for",
}
"""The files that name operations to know something of them, and why."""


def knowledge(path: Path) -> Iterator[str]:
    """Operations that a file names other than to call them, or to make a node that does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            calls = getattr(node.func, "attr", getattr(node.func, "id", ""))
            used.add(node.func)
            if calls in ("call_function", "call"):
                used.update(node.args[:1])
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            used.add(node.value)  # to what a node calls
    inner = {part for whole in used for part in chain(whole)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"aten\.\w+(\.\w+)?", node.value):
                yield node.value
        elif isinstance(node, ast.Attribute) and node not in inner:
            written = ast.unparse(node)
            if re.fullmatch(r"(torch\.ops\.|_?)(aten|ATEN)\.\w+\.\w+", written):
                yield written


def chain(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    while isinstance(node, ast.Attribute):
        node = node.value
        yield node


@pytest.mark.parametrize(
    "line",
    ["A = torch.ops.aten.add.Tensor", "x.op in ('aten.add', 'aten.mul')", "f(aten.add.Tensor)"],
)
def test_a_list_of_operations_elsewhere_is_found(line: str, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(line, encoding="utf-8")
    assert list(knowledge(file))
    file.write_text("graph.call_function(torch.ops.aten.add.Tensor, (x, aten.add(x, x)))")
    assert not list(knowledge(file))


def test_only_the_table_knows_operations() -> None:
    files = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    found = {name: list(knowledge(path)) for name, path in files.items()}
    assert {name for name, named in found.items() if named} == set(KNOWS), found
