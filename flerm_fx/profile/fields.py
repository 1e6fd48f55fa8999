"""A base profile has these fields, which are checked to agree."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from flerm_fx.errors import ProfileError
from flerm_fx.model.inputs import Batch
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.moment import Moment, check_measured, check_outputs, check_warmup
from flerm_fx.profile.packing import check_pool
from flerm_fx.profile.trajectory import Trajectory, check_estimate, known_losses
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import settling_steps
from flerm_fx.recipe.update_rule import UpdateRule

if TYPE_CHECKING:
    import networkx as nx

FORMAT = 1


def present_versions() -> dict[str, str | int]:
    """Return the versions that go into a profile: of the file format, flerm_fx and torch."""
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
    "model": str,
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ProfileError for a setting of another type, or out of the range that it has.

    Args:
        settings: those of :data:`TYPES` by name, and ``late``, whether there are late FSLRs.
    """
    for name, kind in TYPES.items():
        value = settings[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ProfileError(f"{name} is {value!r}, a {type(value).__name__}")
    for name, least in (
        ("learning_rate", 0.0),
        ("rtol", 0.0),
        ("settle", -1),
        ("resolve_after", 0 if settings["late"] else -1),
    ):
        value = settings[name]
        if not (math.isfinite(value) and value > least):
            raise ProfileError(f"{name} is {value!r}, out of range")


@dataclass(frozen=True, eq=False)
class ProfileFields:
    """A ``ProfileFields`` holds what :class:`~flerm_fx.profile.profile.BaseProfile` says, in
    agreement with itself.

    Raises:
        ProfileError: if the fields contradict one another, or a number is not finite.
        InputError: if the pool holds something a file cannot.
    """

    parameters: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    start: Mapping[str, Estimate]
    trajectory: Trajectory
    graph: nx.DiGraph
    optimizers: Optimizers
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
    moments: Mapping[int, Moment] = field(default_factory=dict)
    model: str = ""
    versions: Mapping[str, str | int] = field(default_factory=present_versions)

    def __post_init__(self) -> None:
        check_settings({name: getattr(self, name) for name in (*TYPES, "late")})
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
        check_warmup(self.settle, self.warmup)
        check_outputs(self.settle, self.warmup, len(self.moments))
        if tuple(self.moments) != self.sized:
            raise ProfileError(f"moments are of steps {tuple(self.moments)}; expected {self.sized}")
        measured = tuple(step for step, moment in self.moments.items() if moment.fslrs)
        check_measured(self.settle, self.warmup, measured)
        if self.settle:
            described.append(("update_sizes", self.update_sizes))
        for what, sizes in (("outputs", self.output_rms), ("updates", self.update_sizes.values())):
            for size in sizes:
                if not (math.isfinite(size) and size >= 0):
                    raise ProfileError(f"{what} of size {size!r}; expected finite numbers >= 0")
        losses = known_losses(moment.loss for moment in self.moments.values())
        if not all(map(math.isfinite, losses)):
            raise ProfileError(f"settling steps have losses {losses}; expected finite numbers")
        described += [("settling", m.fslrs) for m in self.moments.values() if m.fslrs]
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
        for step, moment in self.moments.items():
            for name, estimate in moment.fslrs.items():
                check_estimate(estimate, f"FSLR of {name!r} at step {step}")
        for node, attributes in self.graph.nodes(data=True):
            if not attributes.get("junction") and node not in self.shapes:
                raise ProfileError(f"the parameter graph has {node!r}, which is no parameter")
        for rule in self.optimizers.rules:
            for key, setting in rule.settings.items():
                if any(number != number for number in floats_in(setting)):
                    raise ProfileError(f"setting {key!r} of {rule.source} is {setting!r}")
        for rule, rate in self.optimizers.others:
            if not (math.isfinite(rate) and rate >= 0):
                raise ProfileError(f"learning rate {rate!r} of {rule.source} is out of range")
        for name, index in self.optimizers.held.items():
            if name not in self.shapes:
                raise ProfileError(
                    f"{name!r} is in parameter group {index!r}; there are "
                    f"{len(self.optimizers.rules)}, and no such parameter"
                )
        if not self.pool:
            raise ProfileError("the probe pool is empty; expected at least one batch")
        check_pool(self.pool)

    @property
    def optimizer(self) -> UpdateRule:
        """The update rule of the recorded run; see ``BaseProfile``."""
        return self.optimizers.rules[0]

    @property
    def learning_rate(self) -> float:
        """The learning rate that goes with :attr:`optimizer`."""
        return self.optimizers.learning_rates[0]

    @property
    def settling(self) -> Trajectory:
        """FSLRs at the steps that the start is the mean over, at :attr:`learning_rate`."""
        points = {step: moment.fslrs for step, moment in self.moments.items() if moment.fslrs}
        if not points:
            return Trajectory()
        return Trajectory(
            tuple(points),
            (self.learning_rate,) * len(points),
            {name: tuple(fslrs[name] for fslrs in points.values()) for name in self.parameters},
        )

    @property
    def output_rms(self) -> tuple[float, ...]:
        """The root mean square of the outputs at each settling step."""
        return tuple(moment.output_rms for moment in self.moments.values())

    @property
    def update_sizes(self) -> Mapping[str, float]:
        """The sizes of the first step's unit updates; empty for ``settle=0``."""
        return self.moments[0].update_sizes if self.moments else {}

    @property
    def sized(self) -> tuple[int, ...]:
        """The steps at which the size of outputs was measured."""
        return settling_steps(self.settle, self.warmup) if self.settle else ()


def floats_in(setting: Any) -> Iterator[float]:
    """Return the floats in a setting of an optimizer."""
    if isinstance(setting, float):
        yield setting
    elif isinstance(setting, Mapping):
        yield from floats_in(tuple(setting.values()))
    elif isinstance(setting, list | tuple):
        for item in setting:
            yield from floats_in(item)


Fields = TypeVar("Fields", bound=ProfileFields)
"""A class of profile, so that what comes back is of the class that was asked for."""
