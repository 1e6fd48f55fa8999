"""Text for terminals, pages and programs: printable, and JSON that is JSON."""

import ast
import json
import math
import sys
import unicodedata

import hypothesis
from hypothesis import strategies

from flerm_fx.boundary.text import json_text, unprintable
from flerm_fx.errors import FlermError, MatchError, shown

CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")


def test_every_control_of_unicode_is_escaped() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in CONTROLS:
            assert shown(character).isascii()
            assert shown(character).isprintable()
            assert list(unprintable(character)) == [character]


def test_words_of_any_script_stay() -> None:
    for name in ("weight", "größe", "重み", "вес", "a b", "quote\"'\\", "<b>&amp;", "α²→🔥"):
        assert shown(name) == name
        assert not list(unprintable([name]))


@hypothesis.settings(max_examples=50)
@hypothesis.given(strategies.text())
def test_an_escape_is_python_s_own(text: str) -> None:
    escaped = shown(text)
    assert escaped.isprintable()
    assert shown(escaped) == escaped
    if "\\" not in text and '"' not in text:
        assert ast.literal_eval(f'"{escaped}"') == text


def test_strings_are_found_wherever_they_are() -> None:
    nested = {"a": ["b\n", ({"c\x1b": 1}, None, 0.5)], "d\u202e": "e"}
    assert set(unprintable(nested)) == {"b\n", "c\x1b", "d\u202e"}


json_values = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(),
    lambda inner: (
        strategies.lists(inner)
        | strategies.lists(inner).map(tuple)
        | strategies.dictionaries(strategies.text(), inner)
    ),
)


@hypothesis.given(json_values)
def test_json_is_printable_and_holds_what_it_was_given(value: object) -> None:
    text = json_text(value, indent=None)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == json.loads(json.dumps(value))


def test_json_has_null_for_what_is_not_finite() -> None:
    value = {"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf}}
    assert json.loads(json_text(value)) == {"a": [None, [None, 1.5]], "b": {"c": None}}


def test_errors_are_printable_but_for_the_ends_of_lines() -> None:
    error = MatchError("no \x1b[31mred\u202e\nline two")
    assert str(error) == "no \\x1b[31mred\\u202e\nline two"
    assert str(FlermError()) == ""
