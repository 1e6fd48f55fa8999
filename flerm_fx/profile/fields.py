"""The fields of a base profile, and the checks that they agree."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from flerm_fx.errors import OptimizerError, ProfileError
from flerm_fx.model.inputs import Batch
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.packing import check_pool
from flerm_fx.profile.trajectory import Trajectory, check_estimate
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import settling_steps, start_steps
from flerm_fx.recipe.update_rule import UpdateRule

if TYPE_CHECKING:
    import networkx as nx

FORMAT = 1


def present_versions() -> dict[str, str | int]:
    """The versions that go into a profile: of the file format, flerm_fx and torch."""
    try:
        version = importlib.metadata.version("flerm_fx")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = "source"
    return {"format": FORMAT, "flerm_fx": version, "torch": str(torch.__version__)}


# Fields that the header holds as they are, with their types.
TYPES: dict[str, Any] = {
    "learning_rate": int | float,
    "settle": int,
    "warmup": int,
    "resolve_after": int,
    "loss": str | None,
    "method": str,
    "rtol": int | float,
    "seed": int,
    "training": bool,
}


@dataclass(frozen=True, eq=False)
class ProfileFields:
    """What :class:`~flerm_fx.profile.profile.BaseProfile` says it holds, in agreement with itself.

    Raises:
        ProfileError: if the fields contradict one another, or a number is not finite.
        InputError: if the pool holds something a file cannot.
    """

    parameters: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    start: Mapping[str, Estimate]
    trajectory: Trajectory
    graph: nx.DiGraph
    optimizer: UpdateRule
    learning_rate: float
    settle: int
    loss: str | None
    method: str
    rtol: float
    seed: int
    pool: tuple[Batch, ...]
    training: bool
    resolve_after: int = 0
    late: Mapping[str, Estimate] = field(default_factory=dict)
    warmup: int = 0
    settling: Trajectory = field(default_factory=Trajectory)
    output_rms: tuple[float, ...] = ()
    update_sizes: Mapping[str, float] = field(default_factory=dict)
    others: tuple[tuple[UpdateRule, float], ...] = ()
    held: Mapping[str, int] = field(default_factory=dict)
    belongs: tuple[int, ...] = ()
    versions: Mapping[str, str | int] = field(default_factory=present_versions)

    def __post_init__(self) -> None:
        for name, kind in TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ProfileError(f"{name} is {value!r}, a {type(value).__name__}")
        for name, least in (
            ("learning_rate", 0.0),
            ("rtol", 0.0),
            ("settle", -1),
            ("resolve_after", 0 if self.late else -1),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > least):
                raise ProfileError(f"{name} is {value!r}, out of range")
        if not -(2**63) <= self.seed < 2**64:  # what torch.Generator takes
            raise ProfileError(f"seed is {self.seed}; expected a whole number of 64 bits")
        if not self.parameters or len(set(self.parameters)) != len(self.parameters):
            raise ProfileError(f"parameters {self.parameters} are none, or named twice")
        described: list[tuple[str, Mapping[str, Any]]] = [
            ("shapes", self.shapes),
            ("start", self.start),
        ]
        if self.late:
            described.append(("late", self.late))
        if not 0 <= self.warmup <= max(self.settle - 1, 0):
            raise ProfileError(
                f"warmup is {self.warmup} of {self.settle} settling steps; expected fewer of them"
            )
        expected = start_steps(self.settle, self.warmup) if self.settle else ()
        if self.settling.steps != expected:
            raise ProfileError(
                f"settle is {self.settle}, and FSLRs were measured at steps {self.settling.steps} "
                f"on the way; expected {expected}, as this version's flerm_fx.record measures "
                "them: record again"
            )
        if len(self.output_rms) != len(self.sized):
            raise ProfileError(
                f"outputs were measured at {len(self.output_rms)} steps on the way; expected "
                f"{len(self.sized)}: record again"
            )
        if self.settle:
            described.append(("update_sizes", self.update_sizes))
        for what, sizes in (("outputs", self.output_rms), ("updates", self.update_sizes.values())):
            for size in sizes:
                if not (math.isfinite(size) and size >= 0):
                    raise ProfileError(f"{what} of size {size!r}; expected finite numbers >= 0")
        if self.settling.steps:
            described.append(("settling", self.settling.fslrs))
        if self.trajectory.steps:
            described.append(("trajectory", self.trajectory.fslrs))
        for what, mapping in described:
            if mapping.keys() != set(self.parameters):
                odd = sorted(mapping.keys() ^ set(self.parameters))
                raise ProfileError(f"{what} and parameters differ in {', '.join(map(repr, odd))}")
        for name, shape in self.shapes.items():
            if any(type(size) is not int or size < 0 for size in shape):
                raise ProfileError(
                    f"the shape of {name!r} is {shape}; expected whole numbers of at least 0"
                )
        for name, estimate in self.start.items():
            check_estimate(estimate, f"FSLR of {name!r} at the start")
        for name, estimate in self.late.items():
            check_estimate(estimate, f"late FSLR of {name!r}")
        for node, attributes in self.graph.nodes(data=True):
            if not attributes.get("junction") and node not in self.shapes:
                raise ProfileError(f"the parameter graph has {node!r}, which is no parameter")
        for rule in (self.optimizer, *(rule for rule, _ in self.others)):
            for key, setting in rule.settings.items():
                if any(number != number for number in floats_in(setting)):
                    raise ProfileError(f"setting {key!r} of {rule.source} is {setting!r}")
        for rule, rate in self.others:
            if not (math.isfinite(rate) and rate >= 0):
                raise ProfileError(f"learning rate {rate!r} of {rule.source} is out of range")
        for name, index in self.held.items():
            if name not in self.shapes or not 0 <= index <= len(self.others):
                raise ProfileError(
                    f"{name!r} is in parameter group {index!r}; there are {1 + len(self.others)}"
                )
        try:
            _ = self.optimizers
        except OptimizerError as error:
            raise ProfileError(str(error)) from error
        if not self.pool:
            raise ProfileError("the probe pool is empty; expected at least one batch")
        check_pool(self.pool)

    @property
    def optimizers(self) -> Optimizers:
        """The run's optimizers."""
        rules, rates = zip((self.optimizer, self.learning_rate), *self.others, strict=True)
        return Optimizers(rules, rates, self.held, self.belongs)

    @property
    def sized(self) -> tuple[int, ...]:
        """The steps at which the size of outputs was measured."""
        return settling_steps(self.settle, self.warmup) if self.settle else ()


def floats_in(setting: Any) -> Iterator[float]:
    """The floats in a setting of an optimizer."""
    if isinstance(setting, float):
        yield setting
    elif isinstance(setting, Mapping):
        yield from floats_in(tuple(setting.values()))
    elif isinstance(setting, list | tuple):
        for item in setting:
            yield from floats_in(item)


Fields = TypeVar("Fields", bound=ProfileFields)
"""A class of profile, so that what comes back is of the class that was asked for."""
