"""The probe pool becomes JSON, with its tensors put aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from flerm_fx.errors import InputError, ProfileError
from flerm_fx.model.inputs import Batch


def check_pool(pool: Sequence[Batch]) -> None:
    """Check that a file can hold a probe pool.

    Raises:
        InputError: it holds something else than dense tensors and plain values.
    """
    for index, batch in enumerate(pool):
        packed(batch, f"pool[{index}]", [])


def packed(value: Any, where: str, tensors: list[Tensor]) -> dict[str, Any]:
    """Return ``value`` as JSON; its tensors are appended to ``tensors`` and named by their index
    there.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            _refuse(value, f"a {value.layout} tensor on {value.device}", where)
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        items = [packed(item, f"{where}[{index}]", tensors) for index, item in enumerate(value)]
        return {kind: items}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                _refuse(key, f"a key of type {type(key).__name__}", where)
        return {
            "dict": {key: packed(item, f"{where}[{key!r}]", tensors) for key, item in value.items()}
        }
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    return _refuse(value, type(value).__name__, where)


def _refuse(value: Any, what: str, where: str) -> NoReturn:
    raise InputError(
        f"{where} of the probe pool is {what}; a profile holds dense tensors, tuples, lists, "
        "dicts with string keys, numbers, strings and None"
    )


def _unpack(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    [(kind, value)] = packed.items()
    if kind == "tensor":
        name = f"pool.{int(value)}"
        if name not in tensors:
            raise ProfileError(f"tensor {name!r} is missing")
        return tensors[name]
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in value)
    if kind == "list":
        return [_unpack(item, tensors) for item in value]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if kind == "value":
        return value
    raise ValueError(f"pool item of kind {kind!r}")


def batch_of(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Batch:
    """Return the batch of a pool that :func:`packed` was given."""
    batch = _unpack(packed, tensors)
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise ValueError("a batch of the pool is no (inputs, targets)")
    inputs, targets = batch
    if not isinstance(inputs, Tensor | tuple | dict):
        raise ValueError(f"inputs of the pool are a {type(inputs).__name__}")
    return inputs, targets
