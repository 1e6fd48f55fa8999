"""The demo's text."""

from pathlib import Path

import pytest
import torch

from flerm_fx.commands.demo.corpus import read_corpus, sample_windows
from flerm_fx.errors import InputError


def test_the_standard_library_is_enough_text_and_the_same_every_time() -> None:
    corpus, again = read_corpus(), read_corpus()
    assert 4e6 < len(corpus.train) < 8e6
    assert 2e5 < len(corpus.validation) < 1e6
    assert corpus.files > 200
    assert torch.equal(corpus.train, again.train)
    assert torch.equal(corpus.validation, again.validation)


def test_files_are_read_in_sorted_order_without_tests_and_site_packages(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"m{i:02}.py").write_bytes(bytes([65 + i]) * 10_000)
    for folder in ("site-packages", "test", "tests", "encodings", "package/tests"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "skipped.py").write_bytes(b"?" * 10_000)
    corpus = read_corpus(tmp_path)
    assert corpus.files == 12
    assert bytes(corpus.train[::10_000].tolist()) == b"ABCDEFGHIKL"
    assert bytes(corpus.validation[::10_000].tolist()) == b"J"


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"m{i:02}.py").write_bytes(b"x" * 10_000)
    assert read_corpus(tmp_path, limit=115_000).files == 12


def test_a_folder_without_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_bytes(b"x = 1\n")
    with pytest.raises(InputError, match=r"found 1 files with 6 and 0") as raised:
        read_corpus(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_windows_are_followed_by_their_targets_and_seeded() -> None:
    text = torch.arange(200, dtype=torch.uint8)
    inputs, targets = sample_windows(text, 64, 7, torch.Generator().manual_seed(3))
    again, _ = sample_windows(text, 64, 7, torch.Generator().manual_seed(3))
    assert inputs.shape == targets.shape == (64, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, again)


def test_windows_reach_both_ends_of_the_text() -> None:
    text = torch.arange(6, dtype=torch.uint8)
    inputs, targets = sample_windows(text, 200, 4, torch.Generator().manual_seed(0))
    assert inputs.min() == 0
    assert targets.max() == 5
