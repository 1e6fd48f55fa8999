"""Live models on several ranks: the FSLRs of one process, and training as if none was measured."""

import math
from pathlib import Path
from typing import Any

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
        pytest.param("fsdp-nosync", 2, 2, marks=pytest.mark.slow),
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
        assert rank["multipliers"] == ranks[0]["multipliers"]
    for name, (value, error, note) in ranks[0]["found"].items():
        assert abs(value - exact[name]) <= SIGMAS * error + 1e-5 * largest, name
        if how.endswith("batchnorm"):  # one sample of the whole batch on each rank
            assert "examples cannot be run one by one" in note
            half = torch.tensor(live_worker.PASSES * samples / 2)
            expected = 0.5 * math.sqrt(torch.polygamma(1, half))
            assert error / value == pytest.approx(expected, rel=1e-2) or name == "input.bias"
    if how == "fsdp":
        check_courses(ranks[0]["courses"])


def check_courses(found: list[Any]) -> None:
    """Compare the runs with those of one process, which are exact; both see the same batches.

    The second one's weights are at other multipliers from its first measurement on.
    """
    recorded, matched = live_worker.matched("one", "exact")["courses"]
    for course, expected, points in ((found[0], recorded, 2), (found[1], matched, 1)):
        for name, exact in expected.items():
            for (value, error, method), (wanted, _, _) in zip(
                course[name][:points], exact[:points], strict=True
            ):
                assert method == "live"
                assert abs(value - wanted) <= SIGMAS * error + 1e-5, name


@pytest.mark.slow
def test_ranks_that_exchange_activations_over_the_data_are_refused(tmp_path: Path) -> None:
    done = launch(2, "tests.distributed.live_worker", "fsdp-syncs", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "InputError: examples on one rank influence those on another" in done.stderr


@pytest.mark.slow
def test_when_a_rank_dies_amid_a_pass_the_others_end(tmp_path: Path) -> None:
    done = launch(2, "tests.distributed.live_worker", "fsdp-dies", str(tmp_path / "out"))
    assert done.returncode != 0
    assert not list(tmp_path.glob("out.*"))
