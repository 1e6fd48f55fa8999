"""Instrumented graphs: probes whose derivatives are the updates' function changes."""

import ast

import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.ops.scale import ScaleNodes
from flerm_fx.probe.frontier import ProbeNodes, probe, unit_update_name
from tests.cases import NORMS_SLOW, DataDependent, features, make, random_updates


@pytest.mark.parametrize("name", NORMS_SLOW)
def test_each_epsilon_moves_the_output_by_its_parameters_update(name: str) -> None:
    model, inputs = make(name)
    model.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    updates = random_updates(model)
    instrumented = flerm_fx.instrument(model, inputs)
    index = {
        node.meta["parameter_probed"]: node.args[3]
        for node in instrumented.graph.nodes
        if node.target is probe
    }
    for parameter in index:
        instrumented.get_buffer(unit_update_name(parameter)).copy_(updates[parameter])
    exact = flerm_fx.measure(model, updates, inputs, method="exact")
    assert index.keys() == {parameter for parameter in updates if parameter != "unused"}
    zero = torch.zeros(len(updates), dtype=torch.float64)
    for parameter, position in index.items():
        direction = zero.clone()
        direction[position] = 1.0
        _, tangent = torch.autograd.functional.jvp(
            lambda e: instrumented(e, inputs), zero, direction, strict=False
        )
        assert tangent.square().mean().sqrt().item() == pytest.approx(
            exact[parameter].value, rel=1e-6, abs=1e-10
        )


def test_the_code_reads_as_python_with_scale_and_probe_nodes() -> None:
    code = flerm_fx.instrument(nn.Linear(3, 2), features(4, 3)).code
    ast.parse(code.strip())
    assert "scale = flerm_fx_ops_scale_scale(weight, 1.0)" in code
    assert "linear_jvp(input_1, scale, scale_1, tangents = {1: scale_jvp})" in code
    assert "flerm_fx_probe_frontier_probe(linear, linear_jvp, epsilon, 0)" in code


def test_what_does_not_export_cannot_be_instrumented() -> None:
    with (
        pytest.warns(flerm_fx.CaptureWarning),
        pytest.raises(flerm_fx.FlermError, match=r"no graph to instrument.*h\.sum\(\)"),
    ):
        flerm_fx.instrument(DataDependent(), features(4, 4))


def test_passes_state_what_they_require() -> None:
    from flerm_fx.capture.tracing import capture

    captured = capture(nn.Linear(3, 2), features(4, 3))
    assert captured.graph_module is not None and captured.probe_module is not None
    with pytest.raises(flerm_fx.InputError, match="no parameter 'missing'"):
        ProbeNodes(("missing",))(captured.probe_module)
    with pytest.raises(flerm_fx.InputError, match="scales name 'missing'"):
        ScaleNodes({"missing": 2.0})(captured.graph_module)
    ScaleNodes()(captured.graph_module)
    with pytest.raises(flerm_fx.FlermError, match="scale nodes already"):
        ScaleNodes()(captured.graph_module)
