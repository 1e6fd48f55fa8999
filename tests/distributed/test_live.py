"""Live models on several ranks: the FSLRs of one process, and training as if none was measured."""

import math
from pathlib import Path

import pytest
import torch

from tests.distributed import live_worker
from tests.distributed.launching import launch

SIGMAS = 5.0


@pytest.mark.parametrize(
    "how,processes,samples",
    [
        ("fsdp", 2, 2),
        pytest.param("fsdp-checkpoint", 2, 2, marks=pytest.mark.slow),
        pytest.param("fsdp-batchnorm", 2, 2, marks=pytest.mark.slow),
        pytest.param("ddp", 2, 1, marks=pytest.mark.slow),
        pytest.param("tp", 2, 1, marks=pytest.mark.slow),
        pytest.param("hsdp", 4, 4, marks=pytest.mark.slow),
        pytest.param("fsdp-tp", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_ranks_measure_a_live_model_and_leave_it(
    how: str, processes: int, samples: int, tmp_path: Path
) -> None:
    done = launch(processes, "tests.distributed.live_worker", how, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(f"{tmp_path / 'out'}.{rank}") for rank in range(processes)]
    exact = live_worker.exact(how)
    largest = max(exact.values())
    for rank in ranks:
        assert rank["found"] == ranks[0]["found"]
        assert all(rank["same"])
        assert rank["steps"] == (0, 2)
    for name, (value, error, note) in ranks[0]["found"].items():
        assert abs(value - exact[name]) <= SIGMAS * error + 1e-5 * largest, name
        if how.endswith("batchnorm"):  # one sample of the whole batch on each rank
            assert "examples cannot be run one by one" in note
            count = live_worker.PASSES * samples
            assert error / value == pytest.approx(0.5 * math.sqrt(2 / (count + 2)), rel=1e-2)


@pytest.mark.slow
def test_when_a_rank_dies_amid_a_pass_the_others_end(tmp_path: Path) -> None:
    done = launch(2, "tests.distributed.live_worker", "fsdp-dies", str(tmp_path / "out"))
    assert done.returncode != 0
    assert not list(tmp_path.glob("out.*"))
