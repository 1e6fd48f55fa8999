"""What the parts of a model contribute to its change, by the trajectory of a profile."""

from pathlib import Path

import pytest

from experiments import dynamics
from experiments.axes import AXES, under
from experiments.work import Recording
from flerm_fx import BaseProfile
from tests.experiments.small import TINY


def test_the_shares_of_a_real_trajectory_add_up(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    Recording(under(TINY, "sgd"), dynamics.METHOD, 0.1, path)()
    profile = BaseProfile.load(path)
    assert profile.trajectory.steps == (0, 1, 2, 4)
    rows = list(dynamics.rows("sgd", profile))
    assert [row[1] for row in rows] == ["0", "1", "4"]
    for row, column in zip(rows, (0, 1, 3), strict=True):
        shares = [float(cell.removesuffix(" %")) for cell in row[-3:]]
        assert abs(sum(shares) - 100) <= 1.5  # each is rounded
        total = 0.1 * sum(e[column].value for e in profile.trajectory.fslrs.values())
        assert float(row[3]) == pytest.approx(total, rel=0.01)
        blocks = 0.1 * sum(
            e[column].value for n, e in profile.trajectory.fslrs.items() if "blocks" in n
        )
        assert shares[1] == pytest.approx(100 * blocks / total, abs=0.51)


def test_sites_are_before_in_and_behind_the_blocks() -> None:
    names = [n for n, _ in AXES["pre-width"].build(1).named_parameters()]
    sites = {name: dynamics.site_of(names, row) for row, name in enumerate(names)}
    assert sites["tokens.weight"] == "first"
    assert sites["blocks.1.attention.query.weight"] == "blocks"
    assert sites["logits.weight"] == "last"
