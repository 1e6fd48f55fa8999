"""The library's docstrings as Markdown: roles, formulas and examples.

An extension of griffe, by which mkdocstrings reads the code. Docstrings are written for readers of
the source, with the roles and directives of reStructuredText; pages are Markdown.
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import griffe

PACKAGE = Path(__file__).resolve().parents[2] / "flerm_fx"


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def __init__(self) -> None:
        self._public = public_names()

    def on_object(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Called by griffe with each module, class, function and attribute."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, self._public)


def public_names() -> dict[str, str]:
    """Where each name of ``flerm_fx/__init__.py`` is defined: ``record`` in a module."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def to_markdown(text: str, public: dict[str, str]) -> str:
    r"""One docstring, translated.

    >>> print(to_markdown("See :func:`flerm_fx.measure`.", {"measure": "flerm_fx.probe.measure"}))
    See [`flerm_fx.measure`][flerm_fx.probe.measure].
    >>> print(to_markdown(".. math:: a^2 +\n          b^2", {}))
    $$
    a^2 + b^2
    $$
    """
    text = re.sub(r":math:`([^`]*)`", lambda m: f"${' '.join(m[1].split())}$", text)
    text = re.sub(r":(?:func|class|meth|mod|data):`~?([^`]*)`", lambda m: _link(m[1], public), text)
    text = re.sub(
        r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)",
        lambda m: textwrap.indent(f"$$\n{' '.join(m[2].split())}\n$$", m[1]),
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(
        r"^Example::\n\n((?: {4}.*\n?|\n)+)",
        lambda m: _fenced(textwrap.dedent(m[1]).strip(), "Example:\n\n"),
        text,
        flags=re.MULTILINE,
    )
    return re.sub(
        r"(?:^|(?<=\n\n))(>>> (?:.*\n?)+?)(?=\n\n|\Z)", lambda m: _fenced(m[1].strip()), text
    )


def _fenced(code: str, before: str = "") -> str:
    language = "pycon" if ">>>" in code else "python"
    return f"{before}```{language}\n{code}\n```"


def _link(name: str, public: dict[str, str]) -> str:
    parts = name.removeprefix("flerm_fx.").split(".")
    for index, part in enumerate(parts):
        if part in public:
            return f"[`{name}`][{'.'.join([public[part], *parts[index + 1 :]])}]"
    return f"`{name}`"
