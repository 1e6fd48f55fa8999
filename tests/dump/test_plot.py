"""Pictures of trajectories: what they show, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.commands.cli import main
from flerm_fx.dump.plot import MOST_LABELS, draw, kind, trajectory, write_plot

AT = (0, 1, 4, 16)


def profile(layers: int = 3, at: tuple[int, ...] = AT) -> flerm_fx.BaseProfile:
    """A recording of a chain of linear maps, the last of which is not trained at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
    x, y = torch.randn(8, 3), torch.randn(8, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with flerm_fx.record(model, optimizer, x, y, at=at, method="exact") as recorder:
        for step in range(max(at, default=-1) + 1):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            if step > 4:
                model[-1].weight.grad = None
            optimizer.step()
    return recorder.profile


def test_a_heat_map_has_each_change_of_the_output_and_a_line_each_kind() -> None:
    found = profile()
    figure = draw({"run": found})
    heat_map, lines = figure.axes[:2]
    shown = np.ma.filled(heat_map.collections[0].get_array(), 0.0)  # type: ignore[arg-type]
    rates = np.array([1e-2 / (step + 1) for step in AT])
    for row, name in enumerate(found.parameters):
        expected = [e.value for e in found.trajectory.fslrs[name]] * rates
        np.testing.assert_allclose(shown[row], expected, rtol=1e-6)
    assert shown[found.parameters.index("2.weight"), -1] == 0
    assert [label.get_text() for label in heat_map.get_yticklabels()] == list(found.parameters)
    weights = [found.parameters.index(f"{layer}.weight") for layer in range(3)]
    labels = {line.get_label(): line for line in lines.lines}
    assert set(labels) == {"*.weight (3)", "*.bias (3)"}
    mean = np.exp(np.log(shown[weights, 0]).mean())
    assert np.asarray(labels["*.weight (3)"].get_ydata())[0] == pytest.approx(mean)


def test_the_loss_is_a_line_with_an_axis_of_its_own() -> None:
    found = profile()
    [own] = [axes for axes in draw({"run": found}).axes if axes.get_ylabel() == "loss (dotted)"]
    [line] = own.lines
    assert tuple(np.asarray(line.get_ydata())) == found.trajectory.losses
    assert len(found.trajectory.losses) == len(AT)
    unknown = replace(found, trajectory=replace(found.trajectory, losses=()))
    assert "loss (dotted)" not in {axes.get_ylabel() for axes in draw({"run": unknown}).axes}


def test_per_rate_shows_the_fslrs_themselves() -> None:
    found = profile()
    rates = np.array(found.trajectory.learning_rates)
    np.testing.assert_allclose(trajectory(found, True) * rates, trajectory(found, False))


def test_lines_of_several_profiles_share_an_axis_that_holds_them_all() -> None:
    small = profile()
    course = {
        name: tuple(replace(each, value=1e3 * each.value) for each in row)
        for name, row in small.trajectory.fslrs.items()
    }
    large = replace(small, trajectory=replace(small.trajectory, fslrs=course))
    panels = draw({"small": small, "large": large}).axes
    highest = trajectory(large, False).max()
    for lines in (panels[1], panels[3]):
        assert lines.get_ylim()[1] > highest


def test_of_many_parameters_every_so_many_is_named() -> None:
    figure = draw({"deep": profile(layers=MOST_LABELS // 2 + 1, at=(0, 1))})
    assert len(figure.axes[0].get_yticklabels()) == MOST_LABELS // 2 + 1


def test_numbers_are_no_part_of_a_kind() -> None:
    assert kind("h.11.mlp.c_fc.weight") == kind("h.2.mlp.c_fc.weight") == "h.*.mlp.c_fc.weight"


def test_a_profile_without_a_trajectory_is_named(tmp_path: Path) -> None:
    empty = profile(at=())
    with pytest.raises(flerm_fx.InputError, match="small: the profile has no trajectory; train in"):
        write_plot({"large": profile(), "small": empty}, tmp_path / "fslr.png")


@pytest.mark.parametrize("name", ["nowhere/fslr.png", "fslr.txt"])
def test_a_path_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(flerm_fx.InputError, match=f"{name}: the picture cannot be written there"):
        write_plot({"run": profile(at=(0,))}, tmp_path / name)


def test_a_picture_s_path_ends_in_its_format(tmp_path: Path) -> None:
    with pytest.raises(
        flerm_fx.InputError, match=r"picture: the ending of .* \.png, \.svg or \.pdf"
    ):
        write_plot({"run": profile(at=(0,))}, tmp_path / "picture")
    assert not list(tmp_path.iterdir())


def test_the_command_draws_several_profiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a" / "run.safetensors", tmp_path / "b" / "run.safetensors"]
    for path in paths:
        path.parent.mkdir()
        profile().save(path)
    out = tmp_path / "dynamics.svg"
    with pytest.raises(SystemExit) as stopped:
        main(["plot", *map(str, paths), "--out", str(out)])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"{out}: 2 profiles\n"
    assert out.read_text().startswith("<?xml")
