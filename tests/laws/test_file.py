"""The file of a law: what is written is read, and nothing else is."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx import BaseProfile, LawError, ScalingLaw
from flerm_fx.laws.points import Point


@pytest.fixture(scope="module")
def law() -> ScalingLaw:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    adam = torch.optim.Adam(base.parameters(), lr=1e-3)
    profile = flerm_fx.record(base, adam, x, y, settle=0).profile
    points = {
        name: tuple(
            Point(
                octave,
                4**octave,
                (octave * math.log(2),) * rank + (0.0,),
                -0.5 * octave,
                0.1,
                0.0,
                0.1,
                1.0,
            )
            for octave in (1, 2, 3)
        )
        for name, rank in (("2.weight", 2), ("0.bias", 1))
    }
    return ScalingLaw(profile, points, frozenset({"2.bias"}))


@pytest.fixture
def path(law: ScalingLaw, tmp_path: Path) -> Path:
    law.save(tmp_path / "law.json")
    return tmp_path / "law.json"


def test_a_law_comes_back_as_it_was(law: ScalingLaw, path: Path) -> None:
    found = ScalingLaw.load(path)
    assert found.points == law.points
    assert found.unresolved == law.unresolved
    assert found.profile.start == law.profile.start
    assert found.predict("2.weight", (16, 16)) == law.predict("2.weight", (16, 16))
    assert list(path.parent.iterdir()) == [path]


def test_a_law_that_cannot_be_written_leaves_what_was_there(law: ScalingLaw, path: Path) -> None:
    before = path.read_bytes()
    os.link(path, path.with_name("other"))
    with pytest.raises(LawError, match="the law was not saved .* nothing that was there"):
        law.save(path)
    assert path.read_bytes() == before


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_files_that_are_no_laws(path: Path) -> None:
    with pytest.raises(LawError, match=r"none\.json: no scaling law can be read there"):
        ScalingLaw.load(path.with_name("none.json"))
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(LawError, match=r"law\.json: it is not JSON"):
        ScalingLaw.load(path)
    path.write_bytes(
        b"\x80\x00\x00\x00\x00\x00\x00\x00{" + bytes(range(256))
    )  # as a profile begins
    with pytest.raises(LawError, match=r"law\.json: it is not JSON.*by flerm_fx.BaseProfile.load"):
        ScalingLaw.load(path)
    path.write_text("{}")
    with pytest.raises(LawError, match="it is no scaling law"):
        ScalingLaw.load(path)


@pytest.mark.parametrize("version", [1, 3, "2", 2.5, None])
def test_another_version_says_which_is_read(path: Path, version: Any) -> None:
    changed(path, version=version)
    expected = rf"law\.json: it is a law of version '?{version}'?, and .* reads 2; fit it again"
    with pytest.raises(LawError, match=expected):
        ScalingLaw.load(path)


def test_a_file_saved_before_depths_were_kept_is_refused_by_its_version(path: Path) -> None:
    """As version 1 was: no place of a point had a depth."""
    points = json.loads(path.read_text())["points"]
    for point in (point for of in points.values() for point in of):
        del point["log_sizes"][-1]
    changed(path, version=1, points=points)
    with pytest.raises(LawError, match="version 1, and this version of flerm_fx reads 2"):
        ScalingLaw.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_multiplier", None),
        ("log_multiplier", "1"),
        ("error", -1.0),
        ("model", 0.5),
        ("model", True),
        ("log_sizes", 3),
        ("log_sizes", [1.0, 2.0]),
        ("log_sizes", [1e999, 0.0, 0.0]),
        ("log_sizes", [1e3, 0.0, 0.0]),
        ("log_multiplier", -1e3),
        ("noise", 1e200),
    ],
)
def test_damaged_points(path: Path, name: str, value: Any) -> None:
    points = json.loads(path.read_text())["points"]
    points["2.weight"][0][name] = value
    changed(path, points=points)
    with pytest.raises(LawError, match="the law is damaged"):
        ScalingLaw.load(path)


@pytest.mark.parametrize("profile", [None, "no base64!", "AAAA"])
def test_damaged_profiles(path: Path, profile: Any) -> None:
    changed(path, profile=profile)
    with pytest.raises(LawError, match="the law is damaged"):
        ScalingLaw.load(path)


def test_a_role_that_the_base_has_not(path: Path) -> None:
    changed(path, unresolved=["other"])
    with pytest.raises(LawError, match="the base has no parameter 'other'"):
        ScalingLaw.load(path)


def test_the_profile_is_without_what_predicting_does_not_need(path: Path) -> None:
    profile = ScalingLaw.load(path).profile
    assert isinstance(profile, BaseProfile)
    assert len(profile.pool) == 1
    assert not profile.trajectory.steps
