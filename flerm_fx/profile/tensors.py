"""Estimates and trajectories become tensors, and are read from them.

They are (rows, L) values with the method and note of each as an index into a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flerm_fx.errors import ProfileError
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.trajectory import Trajectory


def estimate_tensors(
    prefix: str, rows: list[list[Estimate]], width: int, kinds: list[list[str]]
) -> dict[str, Tensor]:
    """Return rows of estimates as four tensors; kinds that are new are appended to ``kinds``."""

    def table(read: Callable[[Estimate], Any], dtype: torch.dtype) -> Tensor:
        values = [[read(estimate) for estimate in row] for row in rows]
        return torch.tensor(values, dtype=dtype, device="cpu").reshape(len(rows), width)

    def kind(estimate: Estimate) -> int:
        key = [estimate.method, estimate.note]
        if key not in kinds:
            kinds.append(key)
        return kinds.index(key)

    return {
        f"{prefix}.fslr": table(lambda estimate: estimate.value, torch.float64),
        f"{prefix}.stderr": table(lambda estimate: estimate.stderr, torch.float64),
        f"{prefix}.samples": table(lambda estimate: estimate.samples, torch.int64),
        f"{prefix}.kind": table(kind, torch.int64),
    }


def trajectory_tensors(
    prefix: str, trajectory: Trajectory, names: Sequence[str], kinds: list[list[str]]
) -> dict[str, Tensor]:
    """Return a trajectory of these parameters, as :func:`trajectory_in` reads it."""
    course = [[trajectory.fslrs[name][step] for name in names] for step in range(len(trajectory))]
    rates = torch.tensor(trajectory.learning_rates, dtype=torch.float64, device="cpu")
    return {
        **estimate_tensors(prefix, course, len(names), kinds),
        f"{prefix}.learning_rates": rates,
        **(
            {f"{prefix}.losses": torch.tensor(trajectory.losses, dtype=torch.float64, device="cpu")}
            if trajectory.losses
            else {}
        ),
    }


def estimates_in(
    prefix: str,
    tensors: Mapping[str, Tensor],
    rows: int,
    width: int,
    kinds: Sequence[tuple[str, str]],
) -> list[list[Estimate]]:
    """Return the rows of estimates that :func:`estimate_tensors` was given, checked."""

    def table(name: str, dtype: torch.dtype) -> list[Any]:
        values: list[Any] = tensor_in(tensors, f"{prefix}.{name}", (rows, width), dtype).tolist()
        return values

    columns = zip(
        table("fslr", torch.float64),
        table("stderr", torch.float64),
        table("samples", torch.int64),
        table("kind", torch.int64),
        strict=True,
    )
    table_rows = []
    for row in columns:
        estimates = []
        for value, stderr, samples, kind in zip(*row, strict=True):
            if not 0 <= kind < len(kinds):
                raise ProfileError(f"tensor '{prefix}.kind' has {kind}, of {len(kinds)} kinds")
            method, note = kinds[kind]
            estimates.append(Estimate(value, stderr, method, samples, note))
        table_rows.append(estimates)
    return table_rows


def trajectory_in(
    prefix: str,
    steps: Sequence[Any],
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    kinds: Sequence[tuple[str, str]],
) -> Trajectory:
    """Return the trajectory that :func:`trajectory_tensors` was given, checked."""
    course = estimates_in(prefix, tensors, len(steps), len(names), kinds)
    rates = tensor_in(tensors, f"{prefix}.learning_rates", (len(steps),), torch.float64)
    losses, known = f"{prefix}.losses", ()
    if losses in tensors:
        known = tuple(tensor_in(tensors, losses, (len(steps),), torch.float64).tolist())
    return Trajectory(
        tuple(int(step) for step in steps),
        tuple(rates.tolist()),
        {name: tuple(row[index] for row in course) for index, name in enumerate(names)},
        known,
    )


def tensor_in(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return a tensor of a file, of the shape and type that it must have."""
    if name not in tensors:
        raise ProfileError(f"tensor {name!r} is missing; expected shape {shape}")
    tensor = tensors[name]
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ProfileError(
            f"tensor {name!r} has shape {tuple(tensor.shape)} and {tensor.dtype}; expected {shape} "
            f"and {dtype}"
        )
    return tensor
