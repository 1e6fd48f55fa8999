"""A model whose weights are elsewhere has a graph without a copy of them."""

import functools
from typing import Any

import torch
from torch import fx, nn

from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import CaptureError, shown
from flerm_fx.model.inputs import Inputs, OutputFn, to_device
from flerm_fx.model.outline import outline, with_buffers_of

META = torch.device("meta")


def capture_outline(
    model: nn.Module,
    inputs: Inputs,
    output_fn: OutputFn | None = None,
    *,
    device: torch.device,
    twin: nn.Module | None = None,
) -> Capture:
    """Capture a model by its shapes, to be measured with weights that are gathered as it runs.

    The graph is that of a copy on the device ``meta``, which has the model's buffers alone.

    Args:
        model: any module; its parameters may be sharded over ranks, and its modules tensor
            parallel.
        inputs: as for :func:`~flerm_fx.capture.tracing.capture`.
        output_fn: picks the output tensor.
        device: where the graph will compute.
        twin: the copy; made of ``model`` if None.

    Raises:
        CaptureError: the model does not export to a graph.
        InputError: as for :func:`~flerm_fx.capture.tracing.capture`.

    >>> cpu = torch.device("cpu")
    >>> captured = capture_outline(nn.BatchNorm1d(2), torch.zeros(3, 2), device=cpu)
    >>> captured.parameters["weight"].device, captured.model.running_mean.device
    (device(type='meta'), device(type='cpu'))
    """
    twin = outline(model) if twin is None else twin
    inputs = to_device(inputs, META)
    anew = functools.partial(capture, twin, inputs, output_fn, original=model, on_meta=True)
    try:
        try:
            captured = anew()
        except CaptureError:  # tensors that the forward pass makes without a word on their device
            with META:
                captured = anew()
    except CaptureError as error:
        raise CaptureError(
            f"{type(model).__name__} is to be measured with weights that are gathered as a graph "
            f"reads them, and has none: {shown(str(error))}. Measure it in one process, before it "
            "is sharded, or change what is in the way"
        ) from error
    captured = captured.bound(with_buffers_of(model, twin, device))
    for graph_module in (captured.graph_module, captured.probe_module):
        assert graph_module is not None
        _move(graph_module, device)
    return captured


def _move(graph_module: fx.GraphModule, device: torch.device) -> None:
    """Let a graph that was captured on ``meta`` make what it makes on a device."""

    def moved(value: Any) -> Any:
        return device if value == META else value

    for node in graph_module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    graph_module.recompile()
