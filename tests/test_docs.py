"""The documentation's code runs, and prints what the pages say that it prints."""

import contextlib
import io
import math
import re
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

Namespace = dict[str, Any]

SLOW = {
    "tutorial.md",
    "training.md",
    "how-to/trainer.md",
    "how-to/lora.md",
    "how-to/distributed.md",
}
"""Pages that take seconds: they train, or import transformers."""


@dataclass(frozen=True)
class Snippet:
    """A block of Python, and what it prints where the page shows that."""

    code: str
    line: int
    section: str
    output: str | None = None


def snippets(text: str, indented: bool = False) -> list[Snippet]:
    """The fenced blocks of Python, or those that are indented.

    A fence of ``text`` after one, with nothing but blank lines between, is what it prints.
    """
    lines = text.splitlines()
    found: list[Snippet] = []
    section, index, adjacent = "", 0, False
    while index < len(lines):
        line, begin = lines[index], index + 1
        if line.startswith("```"):
            index += 1
            while not lines[index].startswith("```"):
                index += 1
            body = "\n".join(lines[begin:index])
            if line == "```python":
                found.append(Snippet(body, begin + 1, section))
            elif line == "```text" and adjacent:
                last = found.pop()
                found.append(Snippet(last.code, last.line, last.section, body))
            adjacent = line == "```python"
        elif indented and line.startswith("    ") and lines[index - 1] == "":
            while index < len(lines) and (lines[index].startswith("    ") or not lines[index]):
                index += 1
            code = "\n".join(row[4:] for row in lines[begin - 1 : index])
            found.append(Snippet(code.rstrip(), begin, section))
            index -= 1
        elif line:
            section = line.lstrip("# ") if line.startswith("#") else section
            adjacent = False
        index += 1
    return found


def run(page: str, snippet: Snippet, names: Namespace) -> None:
    code = "\n" * (snippet.line - 1) + snippet.code
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec", dont_inherit=True), names)
    if snippet.output is not None:
        assert_prints(printed.getvalue(), snippet.output)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def assert_prints(printed: str, shown: str, rel: float = 0.05) -> None:
    """The same words, and numbers to the accuracy that they have from machine to machine."""

    def split(text: str) -> list[str]:
        return [word for word in text.replace("-+-", "").split() if word.strip("-")]

    one, other = split(printed), split(shown)
    assert len(one) == len(other), printed
    for word, expected in zip(one, other, strict=True):
        if word != expected:
            assert NUMBER.fullmatch(word) and NUMBER.fullmatch(expected), f"{word!r} in\n{printed}"
            assert float(word) == pytest.approx(float(expected), rel=rel), printed


PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if "```python" in path.read_text(encoding="utf-8")
)


@pytest.fixture
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files are written elsewhere, random numbers are as they were, and others may warn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29531",
    }.items():
        monkeypatch.setenv(name, value)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in PAGES],
)
def test_the_snippets_of_a_page_run_in_order(page: str) -> None:
    names: Namespace = {"__name__": "__main__"}
    for snippet in snippets((DOCS / page).read_text(encoding="utf-8")):
        run(page, snippet, names)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("notebooks/*.ipynb")))
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(DOCS / "notebooks" / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep it without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
