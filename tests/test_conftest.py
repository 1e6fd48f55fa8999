"""The test run's own settings: where all is installed, a test is skipped for want of a GPU only."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_that_runs():
    pass

@pytest.mark.skipif(True, reason="there is no GPU")
def test_on_a_gpu():
    raise AssertionError

@pytest.fixture
def browser():
    pytest.skip("needs Chromium")

def test_in_a_browser(browser):
    raise AssertionError

@pytest.mark.xfail
def test_that_is_known_to_fail():
    raise AssertionError
"""


@pytest.mark.parametrize(
    "no_skips,summary",
    [("", "1 passed, 3 skipped, 1 xfailed"), ("1", "1 passed, 1 skipped, 1 xfailed, 2 errors")],
)
def test_skips_are_failures_where_they_are_forbidden(
    no_skips: str, summary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLERM_NO_SKIPS", no_skips)
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('not_there')\n")
    command = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors"]
    done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (not no_skips)
    assert summary in done.stdout
    assert ("needs Chromium" in done.stdout) == ("not_there" in done.stdout) == bool(no_skips)
