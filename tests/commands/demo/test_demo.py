"""The whole demo, in a configuration of seconds."""

import dataclasses
import errno
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

import flerm_fx
from flerm_fx.commands.demo.demo import PROFILE, RESULTS, run_demo, write
from flerm_fx.commands.demo.optimum import Curve
from flerm_fx.commands.demo.settings import Settings
from flerm_fx.commands.demo.train import Task
from flerm_fx.errors import InputError

TINY = Settings(
    base_width=16,
    width=2,
    depth=1,
    rates=(2.0**-11, 2.0**-9, 2.0**-7),
    task=Task(steps=6, batch=4, context=16, validation_windows=8),
)


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_the_demo_trains_compiles_and_writes_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    screen = console()
    curves = run_demo(dataclasses.replace(TINY, out=out), screen)
    assert sorted(path.name for path in out.iterdir()) == [
        "base.safetensors",
        "multipliers.txt",
        "results.json",
        "sweep.html",
        "sweep.png",
    ]
    assert isinstance(screen.file, io.StringIO)
    text = screen.file.getvalue()
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert " ".join(results["verdict"].split()) in " ".join(text.split())
    for curve, name in zip(curves, ["16", "32, standard", "32, compiled"], strict=True):
        assert curve.name == f"width {name}"
        assert curve.name in text
        assert all(loss < 6 for loss in curve.losses)
    assert curves[1].losses != curves[2].losses
    assert (out / "multipliers.txt").read_text(encoding="utf-8").startswith("parameter ")
    assert isinstance(flerm_fx.BaseProfile.load(out / "base.safetensors"), flerm_fx.BaseProfile)


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="cannot write there") as raised:
        run_demo(dataclasses.replace(TINY, out=file / "out"), console())
    assert str(file / "out") in str(raised.value)


def test_results_that_could_not_be_written_are_named_before_anything_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sweep.png")
    (tmp_path / ".writable").write_text("the user's own")
    with pytest.raises(InputError, match="cannot write there .it is a FIFO, and nothing but a reg"):
        run_demo(dataclasses.replace(TINY, out=tmp_path), console())
    assert sorted(os.listdir(tmp_path)) == [".writable", "sweep.png"]
    with pytest.raises(InputError, match="cannot write there .*null byte"):
        run_demo(dataclasses.replace(TINY, out=tmp_path / "null\0"), console())


def test_a_full_disk_leaves_the_results_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = [Curve(name, TINY.rates, (3.0, 2.0, 2.5)) for name in ("a", "b", "c")]
    settings = dataclasses.replace(TINY, out=tmp_path)
    write(settings, curves, "the verdict", 1.0, "dump")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {*RESULTS} - {PROFILE}
    synced, calls = os.fsync, list[int]()

    def last_fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == len(before):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", last_fails)
    with pytest.raises(InputError, match=r"\(No space left on device\); the verdict was: another"):
        write(settings, curves, "another", 2.0, "another dump")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_rates_at_which_all_diverge_are_refused(tmp_path: Path) -> None:
    hopeless = dataclasses.replace(TINY, out=tmp_path, rates=(2.0**40, 2.0**41, 2.0**42))
    with pytest.raises(InputError, match=r"diverged at every rate from 1\.1e\+12 to 4\.4e\+12"):
        run_demo(hopeless, console())
