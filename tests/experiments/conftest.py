"""A Brown corpus that is made up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import data

WORDS = "\n\n\tThe/at jury/nn said/vbd 1/2/cd of/in it/pps ./.\n"
HELD_OUT = "\n\tNo/at jury/nn sat/vbd ./.\n"


@pytest.fixture
def brown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Twelve files, of which the first and the eleventh are held out."""
    for i in range(12):
        name = f"c{'a' if i < 8 else 'r'}{i + 1:02}"
        (tmp_path / name).write_text((WORDS if i % 10 else HELD_OUT) * 10, encoding="ascii")
    (tmp_path / "README").write_text("What/wdt is/bez no/at part/nn of/in it/pps\n")
    monkeypatch.setenv(data.BROWN_CORPUS, str(tmp_path))
    data.load.cache_clear()
    yield tmp_path
    data.load.cache_clear()
