"""A graph is run with weights that stream: gathered where it reads them, and let go behind it.

A weight may be sharded over ranks, or on another device than the one that computes. What depends
on weights and not on data is made anew at each place that reads it, so that no more is whole at a
time than what one operation reads. Autograd keeps of it where it came from, and the backward pass
gathers it again; taps keep updates in the same way. The operations and their order are those of
the graph run whole, and so is every bit of what comes out.
"""

import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks

from flerm_fx.capture.captured import Capture
from flerm_fx.errors import InputError
from flerm_fx.model.distributed import gathered, is_sharded_tensor
from flerm_fx.model.inputs import Inputs
from flerm_fx.ops.operation import is_random
from flerm_fx.probe.frontier import data_nodes
from flerm_fx.probe.later import Later, has_later, now

Packed = Tensor | tuple[Later, torch.Size, tuple[int, ...], int]
"""What autograd keeps: a tensor, or where it came from and how it lies there."""


def device_of_inputs(flat_inputs: Sequence[Any]) -> torch.device:
    """Return where a graph computes: on the device of its first tensor; the CPU if it has none."""
    return next((v.device for v in flat_inputs if isinstance(v, Tensor)), torch.device("cpu"))


def streams(graph_module: fx.GraphModule | None, *values: Mapping[str, Tensor]) -> bool:
    """Tell whether a graph has no weights of its own, or is given some that are sharded over
    ranks.
    """
    if graph_module is None:
        return False
    given = (value for part in values for value in part.values())
    return any(map(is_sharded_tensor, given)) or any(p.is_meta for p in graph_module.parameters())


class Streamed(fx.Interpreter):
    """A ``Streamed`` runs a functional graph; see the module.

    Args:
        graph_module: with or without taps.
        held: by the name of an attribute, what is made where it is read; all weights that are not
            where it computes. Ranks make them in the same order.
        device: that computes.

    Raises:
        InputError: an attribute of the graph is elsewhere, and not among ``held``.

    >>> from flerm_fx.capture.tracing import capture
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> graph = capture(layer, torch.zeros(3, 2)).probe_module
    >>> cpu = torch.device("cpu")
    >>> Streamed(graph, {"weight": Later(torch.ones, (1, 2))}, cpu).run(torch.ones(1, 2))
    tensor([[2.]])
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        held: Mapping[str, Later],
        device: torch.device,
    ) -> None:
        super().__init__(graph_module, garbage_collect_values=True)
        self._held, self._device = held, device
        self._data = data_nodes(graph_module.graph)
        self._sources: dict[int, tuple[weakref.ref[Any], Later]] = {}

    def differentiable(self, *flat_inputs: Any) -> Tensor:
        """Return the output, with its backward pass, which gathers anew what it reads."""
        with torch.enable_grad(), saved_tensors_hooks(self._pack, self._unpack):
            return self.run(*flat_inputs)  # type: ignore[no-any-return]

    def run_node(self, n: fx.Node) -> Any:
        """Run an operation on data; leave one on weights alone for where it is read."""
        if n.op == "get_attr":
            return self._attribute(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if self._is_of_weights(n) and has_later((args, kwargs)):
            assert callable(n.target)
            return Later(n.target, args, kwargs, _blank(n, self._device), self._made)
        if "axes" not in n.meta:  # a tap makes what it needs in the backward pass
            args, kwargs = now((args, kwargs))
        return getattr(self, n.op)(n.target, args, kwargs)

    def _is_of_weights(self, node: fx.Node) -> bool:
        """Tell whether an operation reads no data, and does the same whenever it is run."""
        if node.op != "call_function" or node in self._data:
            return False
        return node.target is operator.getitem or not is_random(node.target)

    def _attribute(self, node: fx.Node) -> Any:
        target = str(node.target)
        if target in self._held:
            held = self._held[target]
            return Later(_same, (held,), blank=held.blank, made=self._made)
        value = self.fetch_attr(target)
        if isinstance(value, Tensor) and (value.is_meta or is_sharded_tensor(value)):
            raise InputError(
                f"{target!r} has no values on {self._device} and is no parameter that could be "
                "gathered; register it with register_parameter or register_buffer"
            )
        return value

    def _made(self, later: Later, value: Any) -> None:
        storage = _storage(value) if isinstance(value, Tensor) else None
        if storage is not None and self._source(value) is None:
            self._sources[storage.data_ptr()] = weakref.ref(storage), later

    def _source(self, tensor: Tensor) -> Later | None:
        """Return what a tensor is memory of, if that was made of weights alone."""
        storage = _storage(tensor)
        if storage is None:
            return None
        reference, later = self._sources.get(storage.data_ptr(), (None, None))
        return later if reference is not None and reference() is storage else None

    def _pack(self, tensor: Tensor) -> Packed:
        later = self._source(tensor)
        kind = None if later is None or later.blank is None else later.blank.dtype
        if later is None or kind != tensor.dtype or tensor.is_conj() or tensor.is_neg():
            return tensor
        return later, tensor.size(), tensor.stride(), int(tensor.storage_offset())

    def _unpack(self, packed: Packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        later, *layout = packed
        with torch.no_grad():
            return later.value().as_strided(*layout)  # type: ignore[no-any-return]


def to_gather(
    tensors: Mapping[str, Tensor],
    device: torch.device,
    take: Callable[[str], Tensor] | None = None,
) -> dict[str, Later]:
    """Return tensors that may be elsewhere, each to be whole on a device where it is read.

    Args:
        tensors: by name.
        device: that reads them.
        take: brings one by its name; by itself, if None.
    """

    def by_itself(name: str) -> Tensor:
        return gathered(tensors[name], device)

    return {
        name: Later(take or by_itself, (name,), blank=_blank_like(tensor, device))
        for name, tensor in tensors.items()
    }


def applied(captured: Capture, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the output f(inputs) at given parameters, without a gradient; no buffer is changed."""
    with torch.no_grad():
        module = captured.probe_module
        if module is None or not streams(module, parameters):
            return captured.apply(parameters, inputs)
        flat = captured.flat(inputs)
        device = device_of_inputs(flat)
        return Streamed(module, to_gather(parameters, device), device).run(*flat)  # type: ignore[no-any-return]


def _same(value: Any) -> Any:
    return value


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the memory of a tensor, one object for all its views; None where there is none."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse, or batched by vmap
        return None


def _blank(node: fx.Node, device: torch.device) -> Tensor | None:
    value = node.meta.get("val")
    return _blank_like(value, device) if isinstance(value, Tensor) else None


def _blank_like(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of a shape and type that takes no memory."""
    return torch.zeros((), dtype=tensor.dtype, device=device).expand(tensor.shape)
