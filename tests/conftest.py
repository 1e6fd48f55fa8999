"""Settings of the whole test run."""

import os
import signal
from collections.abc import Generator

import pytest
import torch

# pytest-xdist has a process per core already; more threads would only fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))

# What a shell starts in the background ignores Ctrl-C, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Let what a test draws without a seed of its own not depend on the tests before it."""
    torch.manual_seed(0)


NO_SKIPS = bool(os.environ.get("FLERM_NO_SKIPS"))
"""Whether a test that is skipped has failed: where all is installed, only a GPU may be missing."""


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    expected = hasattr(report, "wasxfail") or "no GPU" in str(report.longrepr)
    if NO_SKIPS and report.skipped and not expected:
        report.outcome = "failed"
        report.longrepr = f"skipped, which FLERM_NO_SKIPS forbids: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report
