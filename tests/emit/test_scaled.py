"""Scale nodes: the function is unchanged, whatever the multipliers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.ops.scale import is_scale
from tests.cases import NORMS_SLOW, DataDependent, features, make
from tests.rounding import assert_close, rounding, terms


def scaled(model: nn.Module, exponents: list[float]) -> ScaledModel:
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    scales = {n: 2.0 ** exponents[i % len(exponents)] for i, n in enumerate(names)}
    return ScaledModel(copy.deepcopy(model), scales)


def logits(output: object) -> torch.Tensor:
    found = output["logits"] if isinstance(output, dict) else output
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NORMS_SLOW)
def test_the_function_is_unchanged_up_to_rounding(name: str, mode: str) -> None:
    model, inputs = make(name)
    model.train(mode == "train")
    compiled = scaled(model, [3.3, -2.7, 0.4, 9.9, -7.1])
    assert list(dict(compiled.named_parameters())) == list(dict(model.named_parameters()))
    expected, found = logits(model(inputs)), logits(compiled(inputs))
    count = terms(model) + inputs.numel()  # norms also sum over the batch
    assert (found - expected).norm() <= rounding(count) * expected.norm()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=6))
def test_for_any_multipliers(exponents: list[float]) -> None:
    model, inputs = make("mlp")
    expected, found = model(inputs), scaled(model, exponents)(inputs)
    assert (found - expected).norm() <= rounding(terms(model)) * expected.norm()


def test_every_trainable_parameter_has_a_scale_node_with_its_name() -> None:
    model, inputs = make("oddity")
    graph_module = scaled(model, [1.0]).graph_for((inputs,), {})
    assert graph_module is not None
    nodes = [node for node in graph_module.graph.nodes if is_scale(node)]
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {node.meta["parameter"] for node in nodes} == trainable
    for node in nodes:
        assert node.meta["shape"] == tuple(model.get_parameter(node.meta["parameter"]).shape)
    assert "flerm_fx_ops_scale_scale(" in graph_module.code


def test_modes_shapes_and_single_examples_capture_again_and_share_everything() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)
    )
    compiled = scaled(model, [2.0, -1.0])
    x = features(6, 2, 8, 8)
    compiled(x).sum().backward()
    gradients = [p.grad for p in compiled.parameters()]
    assert all(g is not None for g in gradients)
    running = compiled[1].running_mean.clone() if hasattr(compiled, "__getitem__") else None
    assert running is None
    mean = dict(compiled.named_buffers())["1.running_mean"]
    assert not torch.equal(mean, torch.zeros(4))
    model(x)  # the original sees the same batch once
    count = terms(model) + x.numel()  # the norm sums over the batch, the pool over places
    assert_close(mean, model[1].running_mean, count)
    compiled.eval()
    model.eval()
    for batch in (x, x[:1], features(3, 2, 10, 10)):
        assert_close(compiled(batch), model(batch), count)
    compiled.train()
    assert not torch.equal(compiled(x), compiled(x))  # dropout is on again


def test_moving_to_another_dtype_and_copying_keep_it_whole() -> None:
    model, inputs = make("oddity")
    compiled = scaled(model, [1.5, -0.5])
    compiled(inputs)
    twin = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_close(logits(compiled(inputs)), logits(model(inputs)), terms(model))
    assert not logits(twin(inputs)).any()
    double = compiled.double()
    expected = logits(model.double()(inputs))
    assert logits(double(inputs)).dtype == torch.float64
    # Its weights were rounded to float32 when they were divided by the scales.
    assert_close(logits(double(inputs)), expected, terms(model), dtype=torch.float32)


def test_a_state_dict_has_the_models_names_and_loads() -> None:
    model, inputs = make("pre-norm")
    compiled = scaled(model, [1.0, 2.0])
    other = scaled(model, [1.0, 2.0])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(compiled.state_dict())
    assert compiled.state_dict().keys() == {*model.state_dict(), "_extra_state"}
    assert torch.equal(other(inputs), compiled(inputs))


def test_what_does_not_export_is_scaled_without_a_graph() -> None:
    torch.manual_seed(0)
    model, x = DataDependent(), features(5, 4)
    compiled = scaled(model, [3.0, -1.0])
    assert compiled.graph_for((x,), {}) is None
    assert_close(compiled(x), model(x), terms(model))
    compiled(x).sum().backward()
    model(x).sum().backward()
    count = 2 * terms(model) + len(x)  # forward, backward and the sum over the batch
    for (name, p), q in zip(model.named_parameters(), compiled.parameters(), strict=True):
        assert_close(q.grad, p.grad * compiled.scales[name], count)


def test_plain_gives_back_the_original_class_and_weights() -> None:
    model, inputs = make("tied")
    plain = scaled(model, [2.3, -1.1]).plain()
    assert type(plain) is type(model)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=rounding(2), atol=0, msg=name)
    assert_close(plain(inputs), model(inputs), terms(model))
