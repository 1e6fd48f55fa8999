"""Files for Model Explorer: every value belongs to a node of the saved graph."""

import errno
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from flerm_fx.capture.exporting import exporting
from flerm_fx.capture.tracing import capture
from flerm_fx.dump import dump
from flerm_fx.dump.model_explorer import GRAPH_ID, MODEL, NODE_DATA
from flerm_fx.errors import InputError
from flerm_fx.ops.scale import ScaleNodes
from tests.cases import CASES, make
from tests.commands.calling import run
from tests.dump.examples import assignments_for, one


def written(case: str, folder: Path) -> dict[str, Any]:
    """The node data of a case, after its folder is written; one FSLR is not finite."""
    model, inputs = make(case)
    graph_module = capture(model, inputs).graph_module
    assert graph_module is not None
    ScaleNodes()(graph_module)
    first, *others = assignments_for(model, graph_module)
    first = replace(first, target=replace(first.target, value=math.nan))
    path = dump([first, *others], graph_module, "model-explorer", folder, inputs=inputs)
    assert path == str(folder)
    data = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in NODE_DATA}
    assert all(list(one) == [GRAPH_ID] for one in data.values())
    return {name: one[GRAPH_ID]["results"] for name, one in data.items()}


def loaded(folder: Path) -> ExportedProgram:
    with exporting():
        return torch.export.load(folder / MODEL)


def test_each_parameter_and_its_scale_have_values(tmp_path: Path) -> None:
    results = written("mlp", tmp_path / "out")
    program = loaded(tmp_path / "out")
    status, fslr = results["status.json"], results["fslr.json"]
    assert status.keys() <= {node.name for node in program.graph.nodes}
    parameters = program.graph_signature.inputs_to_parameters
    assert {parameters[key] for key in status if key in parameters} == {
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    }
    scales = [node for node in program.graph.nodes if node.name in status.keys() - parameters]
    assert len(scales) == 4
    stacks = [list(node.meta["nn_module_stack"].values())[-1][0] for node in scales]
    assert stacks == ["0", "0", "2", "2"]
    assert len(fslr) == len(status) - 2  # one parameter's is not finite
    assert {entry["value"] for entry in status.values()} == {"matched"}


def test_a_failure_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make("mlp")
    graph_module = capture(model, inputs).graph_module
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    (old / MODEL).write_text("old")
    synced, calls = os.fsync, list[int]()

    def third_fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    for folder in (new, old):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", third_fails)
            with pytest.raises(InputError, match=r"\(No space left on device\); nothing that was"):
                dump([one()], graph_module, "model-explorer", folder, inputs=inputs)
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(old) == [MODEL]
    assert (old / MODEL).read_text() == "old"


def test_a_folder_is_tried_before_the_graph_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make("mlp")
    graph_module = capture(model, inputs).graph_module
    (file := tmp_path / "file").write_text("old")
    (taken := tmp_path / "taken").mkdir()
    os.mkfifo(taken / NODE_DATA[0])
    (dangling := tmp_path / "dangling").symlink_to(tmp_path / "none")
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("exported"))
    for path, why in (
        (file, "Not a directory"),
        (dangling, "Not a directory"),
        (taken, "it is a FIFO, and nothing but a regular file"),
        (tmp_path / "none" / "out", "No such file"),
        (tmp_path / "null\0", "null"),
    ):
        with pytest.raises(InputError, match=f"cannot write to .*{why}"):
            dump([one()], graph_module, "model-explorer", path, inputs=inputs)
    assert file.read_text() == "old"


def test_what_it_needs(tmp_path: Path) -> None:
    graph_module = capture(*make("mlp")).graph_module
    with pytest.raises(InputError, match="'model-explorer' is no text .* written to a folder"):
        dump([one()], graph_module, "model-explorer")
    with pytest.raises(InputError, match="saves the graph for given inputs"):
        dump([one()], graph_module, "model-explorer", tmp_path / "out")
    with pytest.raises(InputError, match="draws the captured graph.*could not capture"):
        dump([one()], None, "model-explorer", tmp_path / "out")
    inputs, nowhere = make("mlp")[1], tmp_path / "missing" / "out"
    with pytest.raises(InputError, match="cannot write to .*missing"):
        dump([one()], graph_module, "model-explorer", nowhere, inputs=inputs)


def test_explore_without_its_files_or_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, out, err = run(capsys, "explore", str(tmp_path))
    assert (code, out) == (1, "")
    assert f"'{tmp_path}' has no model.pt2, status.json, fslr.json, multiplier.json" in err
    for name in (MODEL, *NODE_DATA):
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "model_explorer", None)
    code, out, err = run(capsys, "explore", str(tmp_path))
    assert (code, out) == (1, "")
    assert "model_explorer is not installed; install it with: pip install 'flerm_fx[explorer]'" in (
        err
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_model_explorer_finds_every_node(case: str, tmp_path: Path) -> None:
    pytest.importorskip("model_explorer")
    from model_explorer.builtin_pytorch_exportedprogram_adapter import (
        BuiltinPytorchExportedProgramAdapter,
    )
    from model_explorer.consts import DEFAULT_SETTINGS

    results = written(case, tmp_path)
    adapter = BuiltinPytorchExportedProgramAdapter()
    with exporting():
        (graph,) = adapter.convert(str(tmp_path / MODEL), DEFAULT_SETTINGS)["graphs"]
    assert graph.id == GRAPH_ID
    ids = {node.id for node in graph.nodes}
    assert all(values and values.keys() <= ids for values in results.values())
