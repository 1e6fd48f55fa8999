"""Patterns of names hold formulas of whole numbers."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_LONGEST = 200
"""Characters of a formula: more is no arithmetic of a few indices."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class FormulaError(ValueError):
    """The text is no formula, or one that has no value."""


@dataclass(frozen=True)
class Formula:
    """A ``Formula`` computes with names and whole numbers by ``+ - * // %`` and brackets.

    It is read as a syntax tree, of which nothing but these is accepted; no text is ever run.

    Attributes:
        text: as it was written.

    >>> Formula("i * n // m")({"i": 3, "n": 2, "m": 4})
    1
    >>> Formula("__import__('os')")
    Traceback (most recent call last):
    flerm_fx.align.formula.FormulaError: "__import__('os')" is no formula of + - * // %, ...
    """

    text: str

    def __post_init__(self) -> None:
        if not all(map(_is_arithmetic, ast.walk(self._tree()))):
            raise self._error()

    def __call__(self, values: Mapping[str, int]) -> int:
        """Return the value, with the values of the names.

        Raises:
            FormulaError: a division by zero.
        """
        try:
            return _value(self._tree(), values)
        except ZeroDivisionError:
            raise FormulaError(f"{self.text!r} divides by zero") from None

    @property
    def names(self) -> frozenset[str]:
        """The names in it."""
        return frozenset(node.id for node in ast.walk(self._tree()) if isinstance(node, ast.Name))

    def _tree(self) -> ast.expr:
        if len(self.text) > _LONGEST:
            raise self._error()
        try:
            return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._error() from None

    def _error(self) -> FormulaError:
        return FormulaError(
            f"{self.text!r} is no formula of + - * // %, brackets, whole numbers and indices"
        )


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    allowed = (ast.BinOp, ast.UnaryOp, ast.USub, ast.Name, ast.Load, *_OPERATORS)
    return isinstance(node, allowed)


def _value(node: ast.expr, values: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, values)
    if isinstance(node, ast.Name):
        return values[node.id]
    assert isinstance(node, ast.Constant) and isinstance(node.value, int)
    return node.value
