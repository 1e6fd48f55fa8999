"""A model whose weights are elsewhere has a graph without a copy of them."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from flerm_fx.boundary.compat import TorchFunctionMode
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
            with _Constants():
                captured = anew()
        except CaptureError:  # tensors that the forward pass makes without a word on their device
            with META, _Constants(also_by_default=True):
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


class _Constants(TorchFunctionMode):
    """The mode lets tensors that a forward pass makes of Python's numbers keep them on ``meta``.

    Args:
        also_by_default: if no device is named, too.
    """

    def __init__(self, also_by_default: bool = False) -> None:
        super().__init__()
        self._devices = (META, None) if also_by_default else (META,)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor and args[0].device == META:
            like, *args_of_tensor = args
            func, args = torch.tensor, tuple(args_of_tensor)
            kwargs = {"dtype": like.dtype, "device": META, **kwargs}
        device = kwargs.get("device")
        named = None if device is None else torch.device(device)
        if func in (torch.tensor, torch.as_tensor, torch.scalar_tensor) and named in self._devices:
            return func(*args, **{**kwargs, "device": "cpu"}).to(META)
        return func(*args, **kwargs)


def _move(graph_module: fx.GraphModule, device: torch.device) -> None:
    """Let a graph that was captured on ``meta`` make what it makes on a device."""

    def moved(value: Any) -> Any:
        return device if value == META else value

    for node in graph_module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    graph_module.recompile()
