"""A model that ``fully_shard`` holds runs as it is, and every rank's own gradient is heard.

In a backward pass each rank has gradients of its own rows, whole, until they are reduced. In the
place of the sum, ranks send each other the shards themselves: that moves what a reduce-scatter
moves. The rank that holds the update of a shard takes its product with the gradient of every rank,
so that a pass gives as many samples as ranks have rows of their own.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from flerm_fx.boundary.compat import memory_of, without_gradient_hooks
from flerm_fx.boundary.compat_sharding import (
    groups_of_sharding,
    keeps_on_cpu,
    place_of_data,
    reduced_by,
)
from flerm_fx.boundary.interrupts import deferred_interrupt
from flerm_fx.errors import InputError
from flerm_fx.model.distributed import is_sharded_tensor, resharded

Hear = Callable[[str, int, Tensor, Tensor], None]
"""Takes the inner product of a parameter's gradient, of a row of the data, with its update."""


class Exchange:
    """An ``Exchange`` stands in for a reduce-scatter: the parts of all ranks arrive, and no sum.

    Attributes:
        received: gradients of the shard that is this rank's, by the rank that they come from; None
            before the first.
        first: which of this rank's group comes first among all that have rows.
    """

    def __init__(self, place: int) -> None:
        self.received: Tensor | None = None
        self.first = 0
        self._place = place

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for gradients."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Send each rank its shard of the gradients, and receive this one's of all."""
        parts = input_tensor.view(group.size(), -1)
        self.received = torch.empty_like(parts)
        dist.all_to_all_single(self.received, parts, group=group)
        self.first = self._place - group.rank()
        output_tensor.zero_()

    def shards(self, gradient: Tensor) -> Tensor:
        """Return the gradients of all ranks where ``fully_shard`` puts the sum of one shard."""
        assert self.received is not None
        return self.received.as_strided(
            (len(self.received), *gradient.shape),
            (self.received.shape[1], *gradient.stride()),
            gradient.storage_offset(),
        )


def place_of(model: nn.Module) -> tuple[int, int] | None:
    """Return which part of the data a sharded model's rank has, and of how many; None if it is not
    ``fully_shard`` that says so.

    Raises:
        InputError: shards are kept on the CPU, or on meshes of several shapes, whose gradients are
            not each other's.
    """
    groups = groups_of_sharding(model)
    if not groups:
        return None
    if any(map(keeps_on_cpu, groups)):
        raise InputError(
            f"the weights of {type(model).__name__} are kept on the CPU by CPUOffloadPolicy, which "
            "a model without a graph cannot be measured with; leave it out of fully_shard while "
            "measuring"
        )
    places = {place_of_data(group) for group in groups}
    if len(places) > 1 or any(group_is_replicated(group) for group in groups):
        raise InputError(
            f"parts of {type(model).__name__} are sharded over meshes of different shapes, or "
            "replicated alone, so that a rank's gradient cannot be told from the others'; use one "
            "mesh for all calls of fully_shard, or measure the model before it is sharded"
        )
    return places.pop()


def group_is_replicated(group: Any) -> bool:
    """Tell whether a group sums gradients over replicas and shards nothing."""
    _, parts = place_of_data(group)
    return parts > 1 and getattr(group.mesh_info, "shard_mesh_size", 1) == 1


@contextmanager
def heard_on_shards(
    model: nn.Module,
    own: Mapping[str, nn.Parameter],
    values: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    place: int,
    hear: Hear,
) -> Iterator[None]:
    """Hear gradients of a sharded model's own parameters while a block lasts; they are no one
    else's.

    Gradients that there are, those that accumulate elsewhere, hooks on them, and weights come back
    as they were.

    Args:
        model: that ``fully_shard`` holds.
        own: its trainable parameters.
        values: that they have meanwhile.
        updates: like the parameters, to take products with.
        place: which part of the data is this rank's.
        hear: takes a product.
    """
    resharded(model)
    exchange = Exchange(place)

    def heard(name: str, parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        if name not in updates or gradient is None:
            return
        update = local(updates[name])
        if not is_sharded_tensor(gradient) or exchange.received is None:
            hear(name, place, local(gradient), update)
            return
        for source, shard in enumerate(exchange.shards(local(gradient))):
            hear(name, exchange.first + source, shard, update)

    gradients = {name: parameter.grad for name, parameter in own.items()}
    with (
        _holding(own, values),
        without_gradient_hooks(own.values()),
        reduced_by(groups_of_sharding(model), exchange),
    ):
        handles = []
        try:
            for name, parameter in own.items():
                parameter.grad = None
                handles.append(on_gradient(parameter, functools.partial(heard, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, parameter in own.items():
                parameter.grad = gradients[name]
            resharded(model)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds; all of it, if it is not sharded."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def on_gradient(parameter: nn.Parameter, heard: Callable[[nn.Parameter], None]) -> Any:
    """Call a function with a parameter each time that it has a gradient."""
    return parameter.register_post_accumulate_grad_hook(heard)  # type: ignore[no-untyped-call]


@contextmanager
def _holding(own: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters have other values while a block lasts."""
    others = [
        (local(parameter.detach()), local(values[name].detach()))
        for name, parameter in own.items()
        if name in values and memory_of(values[name]) != memory_of(parameter)
    ]
    before = [held.clone() for held, _ in others]

    def put_back() -> None:
        with torch.no_grad():
            for (held, _), value in zip(others, before, strict=True):
                held.copy_(value)

    try:
        with torch.no_grad():
            for held, value in others:
                held.copy_(value)
        yield
    finally:
        try:
            with deferred_interrupt():
                put_back()
        finally:
            put_back()
