"""Formulas as MathML: readable offline, with no script from elsewhere.

A hook of mkdocs. ``pymdownx.arithmatex`` marks the formulas, latex2mathml translates them.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page's HTML."""
    return _MARKED.sub(_translated, content)


def _translated(found: re.Match[str]) -> str:
    display = "block" if found["kind"] == "[" else "inline"
    formula: str = convert(html.unescape(found["latex"]).strip(), display=display)
    return f"<{found['tag']}>{formula}</{found['tag']}>"
