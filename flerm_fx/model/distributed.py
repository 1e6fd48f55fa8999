"""Models that several processes train together: DDP, and FSDP2's ``fully_shard``.

Parameters are named, measured and given multipliers as if one process had the whole model. Each
rank measures its share of the probe batch, and the shares of all ranks are put together.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flerm_fx.compat import (
    forward_hooks,
    is_hook_of_sharding,
    is_hook_of_tensor_parallelism,
    marks_of_sharding,
    pytree,
    remove_forward_hooks,
    unwrapped_by_dynamo,
    without_sharding_classes,
)
from flerm_fx.errors import InputError
from flerm_fx.model.inputs import Inputs, batch_size


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DDP, DataParallel and ``torch.compile``'s wrappers.

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
    """Whether parameters of a model are sharded over ranks."""
    return any(map(is_sharded_tensor, model.parameters()))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded over ranks; every rank has to call this."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, and this one among them.

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
        """The ranks that hold copies or shards of ``model``; one where it is neither."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        replicated = any(isinstance(m, DistributedDataParallel) for m in model.modules())
        if not replicated and not is_sharded(model):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, inputs: Inputs) -> Inputs | None:
        """This rank's rows of a batch; None where there are fewer than 2 for each rank.

        >>> Ranks(rank=1, count=2).share(torch.arange(6))
        tensor([3, 4, 5])
        """
        size = batch_size(inputs)
        if self.count == 1 or size % self.count or size < 2 * self.count:
            return None
        rows = self.rows(size)
        return pytree.tree_map_only(Tensor, lambda t: t[rows], inputs)  # type: ignore[no-any-return]

    def rows(self, size: int) -> slice:
        """Which rows of ``size`` this rank measures."""
        each = size // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def joined(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, one after another."""
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def agreed(self, value: Any) -> Any:
        """What the first rank has, so that no rounding sets ranks apart."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over ranks."""
    return hasattr(tensor, "full_tensor")


@contextlib.contextmanager
def as_plain(model: nn.Module) -> Iterator[dict[int, object]]:
    """While it lasts, a model that ``fully_shard`` has changed can be copied as a plain one.

    Yields what ``copy.deepcopy`` needs as its memo: whole parameters for the sharded ones.
    :func:`without_sharding` has to finish the copy.

    Raises:
        InputError: parameters that are distributed in another way, such as tensor parallel ones.
    """
    sharded = {name: p for name, p in model.named_parameters() if is_sharded_tensor(p)}
    if not sharded:
        yield {}
        return
    _refuse_tensor_parallel(model, sharded)
    memo: dict[int, object] = {
        id(p): nn.Parameter(whole(p.detach()).clone(), p.requires_grad) for p in sharded.values()
    }
    for module in model.modules():
        for hook in forward_hooks(module).values():
            if is_hook_of_sharding(hook):
                memo[id(hook)] = _removed
        # The state is in dictionaries; the rest of the marks are plain bools.
        held = (vars(module)[name] for name in marks_of_sharding(module))
        memo.update({id(state): None for state in held if isinstance(state, dict)})
    with without_sharding_classes(model):
        yield memo


def without_sharding(twin: nn.Module) -> None:
    """Take from a copy what ``fully_shard`` had put on the model that it was copied from."""
    for module in twin.modules():
        remove_forward_hooks(module, _removed)
        for name in marks_of_sharding(module):
            del vars(module)[name]


def _removed(*_: Any) -> None:
    """In the place of a hook of ``fully_shard`` in a copy."""


def _refuse_tensor_parallel(model: nn.Module, sharded: Mapping[str, Tensor]) -> None:
    for path, module in model.named_modules():
        for hook in forward_hooks(module).values():
            if is_hook_of_tensor_parallelism(hook):
                prefix = f"{path}." if path else ""
                named = next((n for n in sharded if n.startswith(prefix)), path)
                raise InputError(
                    f"parameter {named!r} is tensor parallel (a DTensor whose module exchanges "
                    "activations between ranks), which cannot be measured: measure the model "
                    "before parallelize_module, and train with compiled.param_groups(lr) of its "
                    "multipliers"
                )
