"""This module gives the graph that measures, to be read or run."""

import torch
from torch import fx

from flerm_fx.boundary.options import checked
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import FlermError
from flerm_fx.model.distributed import unwrapped
from flerm_fx.model.inputs import OutputFn, device_of, to_device
from flerm_fx.ops.scale import ScaleNodes
from flerm_fx.probe.frontier import ProbeNodes
from flerm_fx.recipe.pool import Pool, probe_batch


def instrument(
    model: torch.nn.Module, inputs: Pool, output_fn: OutputFn | None = None
) -> fx.GraphModule:
    r"""Return the model's graph with a scale node and a JVP probe for every trainable parameter.

    The graph module takes ``epsilon`` (one number for each parameter) before the model's flattened
    inputs and returns the one output tensor that is measured. Its code is meant to be read:
    ``print(instrument(model, inputs).code)``. Unit updates are the buffers
    ``unit_update_<parameter>``.

    Args:
        model: any module that exports.
        inputs: as for :func:`flerm_fx.measure`.
        output_fn: picks the output tensor.

    Raises:
        InputError: unusable inputs.
        FlermError: the model does not export to a graph.

    Example::

        >>> model = torch.nn.Linear(2, 1)
        >>> gm = instrument(model, torch.zeros(3, 2))
        >>> _ = gm.unit_update_weight.fill_(1.0)
        >>> x, zero = torch.ones(3, 2), torch.zeros(2)
        >>> weight_only = torch.tensor([1.0, 0.0])
        >>> torch.func.jvp(lambda e: gm(e, x), (zero,), (weight_only,))[1].T
        tensor([[2., 2., 2.]])
    """
    model = checked("model", model)
    batch = to_device(probe_batch(unwrapped(model), inputs), device_of(model))
    captured = capture(model, batch, checked("output_fn", output_fn))
    if captured.probe_module is None:
        raise FlermError(f"the model has no graph to instrument: {captured.reason}")
    ScaleNodes()(captured.probe_module)
    ProbeNodes(tuple(captured.parameters))(captured.probe_module)
    return captured.probe_module
