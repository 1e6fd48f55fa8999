"""Several processes may train one model together: DDP, FSDP2's ``fully_shard``, tensor parallelism.

Parameters are named, measured and given multipliers as if one process had the whole model. Each
rank measures its share of the probe batch, and the shares of all ranks are put together.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flerm_fx.boundary.compat import (
    forward_hooks,
    is_hook_of_sharding,
    is_hook_of_tensor_parallelism,
    marks_of_sharding,
    outside_transforms,
    pytree,
    remove_forward_hooks,
    unwrapped_by_dynamo,
    without_sharding_classes,
)
from flerm_fx.model.inputs import Inputs, batch_size, check_finite


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of DDP, DataParallel and ``torch.compile``'s wrappers.

    >>> model = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(model)) is model
    True
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif (inner := unwrapped_by_dynamo(model)) is not None:
            model = inner
        else:
            return model


def is_sharded(model: nn.Module) -> bool:
    """Tell whether parameters of a model are sharded over ranks."""
    return any(map(is_sharded_tensor, model.parameters()))


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded over ranks, for which every rank has to call
    this.
    """
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    value = tensor if full is None else full()
    wait: Callable[[], Tensor] | None = getattr(value, "wait", None)  # it is on its way
    return value if wait is None else wait()


def begun(tensor: Tensor) -> Tensor:
    """Send for all of a tensor that may be sharded over ranks, without waiting for it.

    Every rank has to call this and then :func:`gathered`, for the same tensors in the same order.
    """
    if not is_sharded_tensor(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    sharded = tensor.detach()
    assert isinstance(sharded, DTensor)
    everywhere = [Replicate()] * sharded.device_mesh.ndim
    with torch.no_grad(), outside_transforms():
        coming: Tensor = sharded.redistribute(placements=everywhere, async_op=True)
    return coming


def gathered(tensor: Tensor, device: torch.device) -> Tensor:
    """Return all of a tensor that may be sharded over ranks or elsewhere, on a device.

    Every rank has to call this, for the same tensors in the same order.
    """
    with torch.no_grad(), outside_transforms():
        return whole(tensor.detach()).to(device)


def check_finite_on_ranks(name: str, value: Tensor, what: str) -> None:
    """Check a value as :func:`~flerm_fx.model.inputs.check_finite` does, and raise on all ranks if
    on one.
    """
    if not is_sharded_tensor(value):
        check_finite(name, value, what)
    elif not holds(torch.isfinite(value).all()):
        check_finite(name, whole(value), what)


def holds(condition: Tensor) -> bool:
    """Tell whether a condition, a tensor without dimensions, holds, which is the same on all
    ranks.
    """
    return bool(whole(condition))


@dataclass(frozen=True)
class Ranks:
    """A ``Ranks`` stands for the processes that train one model together, and this one among them.

    Attributes:
        rank: of this process.
        count: how many there are.

    >>> Ranks.of(nn.Linear(2, 2))
    Ranks(rank=0, count=1)
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, model: nn.Module) -> "Ranks":
        """Return the ranks that hold copies or shards of ``model``, or one where it is neither."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        replicated = any(isinstance(m, DistributedDataParallel) for m in model.modules())
        if not replicated and not is_sharded(model):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def rows(self, size: int) -> slice:
        """Return which rows of ``size`` this rank measures: 2 at least, which a graph takes, or
        none.

        >>> [Ranks(rank, count=3).rows(5) for rank in range(3)]
        [slice(0, 3, None), slice(3, 5, None), slice(5, 5, None)]
        """
        return self._split(size)[self.rank]

    def rows_run(self, size: int) -> slice:
        """Return which rows this rank runs: its own, or if it has none the first rank's.

        All of them gather alike then.
        """
        rows = self.rows(size)
        return rows if rows.start < rows.stop else self._split(size)[0]

    def share(self, inputs: Inputs) -> Inputs | None:
        """Return the rows of a batch that this rank runs, or None where no two can have rows of
        their own.

        >>> Ranks(rank=1, count=2).share(torch.arange(6))
        tensor([3, 4, 5])
        """
        size = batch_size(inputs)
        if self.count == 1 or size < 4:
            return None
        rows = self.rows_run(size)
        return pytree.tree_map_only(Tensor, lambda t: t[rows], inputs)  # type: ignore[no-any-return]

    def shares(self, inputs: Inputs) -> Iterator[Inputs]:
        """Give a share of each size that some rank runs."""
        size = batch_size(inputs)
        for rows in {rows.stop - rows.start: rows for rows in self._split(size)}.values():
            if rows.start < rows.stop:
                yield pytree.tree_map_only(Tensor, lambda t, rows=rows: t[rows], inputs)

    def joined(self, rows: Tensor, size: int) -> Tensor:
        """Return the rows of all ranks, ``size`` of them, one after another."""
        split = self._split(size)
        padded = rows.new_zeros(split[0].stop, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in split]
        dist.all_gather(parts, padded)
        return torch.cat([part[: r.stop - r.start] for part, r in zip(parts, split, strict=True)])

    def summed(self, value: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def _split(self, size: int) -> list[slice]:
        measuring = max(1, min(self.count, size // 2))
        each, more = divmod(size, measuring)
        starts = [min(i, measuring) * each + min(i, more) for i in range(self.count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(starts)]

    def agreed(self, value: Any) -> Any:
        """Return what the first rank has, so that no rounding sets ranks apart."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Tell whether a tensor is sharded over ranks."""
    return hasattr(tensor, "full_tensor")


def resharded(model: nn.Module) -> None:
    """Let go of what ``fully_shard`` gathered for a forward pass without a backward pass."""
    if is_sharded(model):
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def is_tensor_parallel(model: nn.Module) -> bool:
    """Tell whether modules exchange activations between ranks, as ``parallelize_module`` has them
    do.
    """
    hooks = (hook for module in model.modules() for hook in forward_hooks(module).values())
    return any(map(is_hook_of_tensor_parallelism, hooks))


def _clone_of_whole(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).clone()


@contextlib.contextmanager
def as_plain(
    model: nn.Module, twin_of: Callable[[Tensor], Tensor] = _clone_of_whole
) -> Iterator[dict[int, object]]:
    """Let a model that ``fully_shard`` has changed be copied as a plain one, while it lasts.

    Yields what ``copy.deepcopy`` needs as its memo: plain tensors for the sharded ones.
    :func:`without_sharding` has to finish the copy.

    Args:
        model: any module.
        twin_of: makes a plain tensor of a sharded one; every rank has to call it.
    """
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, object] = {
        id(t): as_like(t, twin_of(t)) for t in filter(is_sharded_tensor, tensors)
    }
    for module in model.modules():
        for hook in forward_hooks(module).values():
            if is_hook_of_sharding(hook) or is_hook_of_tensor_parallelism(hook):
                memo[id(hook)] = _removed
        # The state is in dictionaries; the rest of the marks are plain bools.
        held = (vars(module)[name] for name in marks_of_sharding(module))
        memo.update({id(state): None for state in held if isinstance(state, dict)})
    with without_sharding_classes(model):
        yield memo


def as_like(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a value as a parameter, if the tensor that it stands for is one."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, tensor.requires_grad)
    return value


def without_sharding(twin: nn.Module) -> None:
    """Take from a copy what sharding had put on the model that it was copied from."""
    for module in twin.modules():
        remove_forward_hooks(module, _removed)
        for name in marks_of_sharding(module):
            del vars(module)[name]


def _removed(*_: Any) -> None:
    """Stand in the place of a hook of ``fully_shard`` in a copy."""
