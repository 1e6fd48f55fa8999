"""Recording and matching by several processes give what one gives, and the same on all."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import worker
from tests.distributed.launching import ROOT, launch

ONE = {"ddp-batchnorm": "one-batchnorm"}
"""What one process does of what several do, if it is another model than usual."""


def results(how: str, method: str, processes: int, tmp_path: Path) -> list[dict[str, Any]]:
    done = launch(processes, "tests.distributed.worker", how, method, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{tmp_path / 'out'}.{rank}") for rank in range(processes)]


def close(found: dict[str, Any], wanted: dict[str, Any], rel: float) -> None:
    for name, (value, _) in wanted["start"].items():
        assert found["start"][name][0] == pytest.approx(value, rel=rel), name
    for name, course in wanted["course"].items():
        for (value, _), (expected, _) in zip(found["course"][name], course, strict=True):
            assert value == pytest.approx(expected, rel=rel), name
    assert found["multipliers"] == pytest.approx(wanted["multipliers"], rel=rel)
    for name, (value, _) in found["few"].items():
        assert value == pytest.approx(wanted["few"][name][0], rel=10 * rel), name
    for name, weight in wanted["weights"].items():
        assert torch.allclose(found["weights"][name], weight, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    "how,method,processes",
    [
        pytest.param("ddp", "sampled", 2, marks=pytest.mark.slow),
        pytest.param("ddp", "exact", 2, marks=pytest.mark.slow),
        ("fsdp", "sampled", 2),
        pytest.param("fsdp", "exact", 4, marks=pytest.mark.slow),
        pytest.param("fsdp", "sampled", 4, marks=pytest.mark.slow),
        pytest.param("tp", "sampled", 2, marks=pytest.mark.slow),
        pytest.param("tp", "sampled", 4, marks=pytest.mark.slow),
        pytest.param("fsdp-tp", "sampled", 4, marks=pytest.mark.slow),
        pytest.param("ddp", "auto", 4, marks=pytest.mark.slow),
        pytest.param("ddp-batchnorm", "auto", 2, marks=pytest.mark.slow),
    ],
)
def test_ranks_find_what_one_process_finds(
    how: str, method: str, processes: int, tmp_path: Path
) -> None:
    """The same cotangents, so that only the order of sums differs; the same on all ranks."""
    ranks = results(how, method, processes, tmp_path)
    close(ranks[0], worker.run(ONE.get(how, "one"), method), rel=1e-3)
    for rank in ranks:
        if streamed := rank["streamed"]:
            assert streamed["same"]
            assert streamed["largest"] == max(streamed["sizes"])
            assert streamed["most"] <= 1.3 * streamed["largest"]  # with a bias
            assert streamed["most_ahead"] <= 2.3 * streamed["largest"]
            assert streamed["begun"] > len(streamed["sizes"])
            assert streamed["traffic"] <= 3 * sum(streamed["sizes"])
            assert streamed["alive"] == 0
    assert bool(ranks[0]["few"]) == (processes == 4)
    for other in ranks[1:]:
        assert other["few"] == ranks[0]["few"]
        assert other["start"] == ranks[0]["start"]
        assert other["course"] == ranks[0]["course"]
        assert repr(other["state"]) == repr(ranks[0]["state"])  # losses are not known: NaN
        for name, weight in ranks[0]["weights"].items():
            assert torch.equal(other["weights"][name], weight), name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp-dies", "fsdp-dies", "tp-dies", "fsdp-gathers"])
def test_when_a_rank_dies_the_others_end_with_an_error(how: str, tmp_path: Path) -> None:
    done = launch(2, "tests.distributed.worker", how, "sampled", str(tmp_path / "out"))
    assert done.returncode != 0
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_example_prints_the_same_multipliers_on_all_ranks(how: str) -> None:
    done = launch(2, "examples.distributed", "--how", how, "--steps", "12")
    assert done.returncode == 0, done.stderr[-3000:]
    # The lines of two ranks may run into each other.
    ranks = re.findall(r"rank (\d): loss [\d.]+, multipliers ([\d.e-]+ to [\d.e-]+)", done.stdout)
    assert sorted(rank for rank, _ in ranks) == ["0", "1"]
    assert len({multipliers for _, multipliers in ranks}) == 1


def test_a_process_ends_as_its_work_did_and_loses_nothing_it_printed() -> None:
    """Whatever is left then: what still runs at Python's end would wait, or abort."""
    code = (
        "import sys; from examples.distributed import process_group\n"
        "with process_group('gloo'):\n"
        "    print('worked')\n"
        "    if sys.argv[1:]:\n"
        "        raise ValueError('of the work')\n"
        "print('finalizes')\n"
    )
    env = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    for arguments, status in ([], 0), (["fails"], 1):
        command = [sys.executable, "-c", code, *arguments]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = {"MASTER_PORT": str(free.getsockname()[1])}
        done = subprocess.run(command, cwd=ROOT, env=env | port, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert done.stdout.endswith("worked\n")  # gloo may say something of its own before
        assert ("ValueError: of the work" in done.stderr) == bool(arguments)
