"""The base profile: what was recorded on the small model, and the one file that holds it."""

from __future__ import annotations

import bisect
import importlib.metadata
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save as serialize
from torch import Tensor

from flerm_fx.align.parameter_graph import from_json, to_json
from flerm_fx.boundary.files import kind_of, path_of, reason, write_whole
from flerm_fx.boundary.text import unprintable
from flerm_fx.errors import FlermError, InputError, OptimizerError, ProfileError, shown
from flerm_fx.model.inputs import Batch
from flerm_fx.probe.estimate import Estimate
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import settling_steps, start_steps
from flerm_fx.recipe.update_rule import UpdateRule

if TYPE_CHECKING:
    import networkx as nx

FORMAT = 1
_KEY = "flerm_fx"  # the header's key in the file's safetensors metadata
_RECORD_AGAIN = "record the base model again with flerm_fx.record"

LOAD = "; read a file with flerm_fx.BaseProfile.load(path)"
"""What to do with what is no profile."""

PathLike = str | os.PathLike[str]


def _versions() -> dict[str, str | int]:
    try:
        version = importlib.metadata.version("flerm_fx")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = "source"
    return {"format": FORMAT, "flerm_fx": version, "torch": str(torch.__version__)}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """FSLRs of the run's own updates, every so many steps.

    Attributes:
        steps: the S steps that were measured, ascending, counted from 0.
        learning_rates: the learning rate at each step.
        fslrs: for each parameter, one estimate a step, per unit of learning rate.

    Raises:
        ProfileError: if the lengths differ, steps do not ascend, or a number is not finite.

    >>> trajectory = Trajectory((0,), (0.1,), {"weight": (Estimate(2.0, 0.0, "exact", 0),)})
    >>> len(trajectory), trajectory.at(0)["weight"].value
    (1, 2.0)
    """

    steps: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = ()
    fslrs: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.learning_rates) != len(self.steps):
            raise ProfileError(
                f"the trajectory has {len(self.steps)} steps, but {len(self.learning_rates)} "
                "learning rates"
            )
        ascending = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not ascending or any(step < 0 for step in self.steps):
            raise ProfileError(f"the trajectory's steps {self.steps} do not ascend from 0")
        for step, rate in zip(self.steps, self.learning_rates, strict=True):
            if not (math.isfinite(rate) and rate >= 0):
                raise ProfileError(f"learning rate {rate} at step {step} is no finite number >= 0")
        for name, estimates in self.fslrs.items():
            if len(estimates) != len(self.steps):
                raise ProfileError(
                    f"the trajectory has {len(self.steps)} steps, but {len(estimates)} FSLRs of "
                    f"{name!r}"
                )
            for step, estimate in zip(self.steps, estimates, strict=True):
                _check_estimate(estimate, f"FSLR of {name!r} at step {step}")

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: int) -> dict[str, Estimate]:
        """The FSLRs at a recorded step.

        Raises:
            InputError: if that step was not recorded.
        """
        if step not in self.steps:
            raise InputError(f"step {step} was not recorded; the trajectory has {self.steps}")
        index = self.steps.index(step)
        return {name: estimates[index] for name, estimates in self.fslrs.items()}

    def between(self, step: float) -> dict[str, Estimate]:
        """The FSLRs at any step, logarithms interpolated between recorded ones.

        Before the first recorded step they are as there, after the last as there; beside an FSLR
        of 0, which has no logarithm, the FSLRs themselves are interpolated.

        Raises:
            InputError: no step was recorded.

        >>> fslrs = [Estimate(value, 0.0, "exact", 0) for value in (1.0, 4.0)]
        >>> Trajectory((0, 10), (0.1, 0.1), {"weight": tuple(fslrs)}).between(5)["weight"].value
        2.0
        """
        if not self.steps:
            raise InputError("the trajectory is empty; record the base while it trains")
        right = bisect.bisect_left(self.steps, step)
        if right == len(self.steps) or right == 0 or self.steps[right] == step:
            return self.at(self.steps[min(right, len(self.steps) - 1)])
        left = right - 1
        weight = (step - self.steps[left]) / (self.steps[right] - self.steps[left])
        return {
            name: _interpolated(estimates[left], estimates[right], weight)
            for name, estimates in self.fslrs.items()
        }

    def smoothed(self, decay: float) -> Trajectory:
        r"""Roots of moving averages of the squared FSLRs, corrected for their start.

        .. math:: \bar F_k^2 = \frac{\sum_{i \le k} d^{k-i} F_i^2}{\sum_{i \le k} d^{k-i}}

        The same trajectory for a decay d of 0. Errors are kept as they are.
        """
        if not decay:
            return self
        course = {}
        for name, estimates in self.fslrs.items():
            total = weight = 0.0
            averaged = []
            for estimate in estimates:
                total = decay * total + estimate.value**2
                weight = decay * weight + 1.0
                averaged.append(replace(estimate, value=math.sqrt(total / weight)))
            course[name] = tuple(averaged)
        return replace(self, fslrs=course)


@dataclass(frozen=True, eq=False)
class BaseProfile:
    """Function-space learning rates of the base model, and how to measure them again elsewhere.

    Attributes:
        parameters: names of the trainable parameters, in execution order.
        shapes: their shapes.
        start: their FSLRs at the start of training, per unit of learning rate.
        trajectory: their FSLRs during the recorded run.
        graph: the parameter graph.
        optimizer: the update rule of the recorded run; of its first parameter group that has a
            rate above 0 where it had several.
        learning_rate: learning rate of that group, at which the start was settled.
        settle: simulated steps to the start.
        warmup: over how many of them the rate rises in equal parts.
        settling: FSLRs at those of these steps that the start is the mean over, see
            :func:`flerm_fx.recipe.schedule.start_steps`.
        output_rms: root mean square of the outputs at each of
            :func:`flerm_fx.recipe.schedule.settling_steps`, on the batch that the step is taken on;
            of those entries that the weights make, so that a mask has no size, whichever number it
            is (:func:`flerm_fx.start.output_size.output_rms`).
        update_sizes: sizes of the first step's unit updates, from which a target's first guess is
            made (:func:`flerm_fx.start.update_size.update_sizes`); empty for ``settle=0``.
        resolve_after: further simulated steps before the late start; 0 if it was turned off.
        loss: name in ``torch.nn.functional``, or ``"output.loss"`` for one that the model returns;
            ``None`` for a loss that the caller passed.
        method: estimator asked for, such as ``"auto"``.
        rtol: relative error asked of it.
        seed: seed of its random draws.
        pool: the probe pool, ``(inputs, targets)`` batches; FSLRs are measured on the first.
        training: whether the model was in training mode.
        late: FSLRs of all parameters ``resolve_after`` steps after the start, where one that is
            used had an FSLR of exactly 0 at the start; else empty.
        others: rules and learning rates of the run's other parameter groups, be they of the same
            optimizer or of another, as of AdamW beside Muon.
        held: the group of each parameter, counted from 0; missing ones are in the first.
        belongs: the optimizer of each group, counted from 0; each has its own if empty.
        versions: of the file format, flerm_fx and torch.

    Raises:
        ProfileError: if the fields contradict one another, or a number is not finite.
        InputError: if the pool holds something a file cannot.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import networkx as nx
    >>> graph = nx.DiGraph()
    >>> graph.add_node("weight")
    >>> profile = BaseProfile(
    ...     parameters=("weight",),
    ...     shapes={"weight": (2, 3)},
    ...     start={"weight": Estimate(0.5, 0.0, "exact", 0)},
    ...     trajectory=Trajectory(),
    ...     graph=graph,
    ...     optimizer=UpdateRule.from_name("AdamW"),
    ...     learning_rate=0.01,
    ...     settle=0,
    ...     loss="mse_loss",
    ...     method="auto",
    ...     rtol=0.05,
    ...     seed=0,
    ...     pool=((torch.zeros(4, 3), torch.zeros(4, 2)),),
    ...     training=True,
    ... )
    >>> with TemporaryDirectory() as folder:
    ...     profile.save(Path(folder) / "base.safetensors")
    ...     BaseProfile.load(Path(folder) / "base.safetensors").start["weight"].value
    0.5
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
    versions: Mapping[str, str | int] = field(default_factory=_versions)

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
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
        if len(self.output_rms) != len(self._sized):
            raise ProfileError(
                f"outputs were measured at {len(self.output_rms)} steps on the way; expected "
                f"{len(self._sized)}: record again"
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
            _check_estimate(estimate, f"FSLR of {name!r} at the start")
        for name, estimate in self.late.items():
            _check_estimate(estimate, f"late FSLR of {name!r}")
        for node, attributes in self.graph.nodes(data=True):
            if not attributes.get("junction") and node not in self.shapes:
                raise ProfileError(f"the parameter graph has {node!r}, which is no parameter")
        for rule in (self.optimizer, *(rule for rule, _ in self.others)):
            for key, setting in rule.settings.items():
                if any(number != number for number in _numbers(setting)):
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
    def _sized(self) -> tuple[int, ...]:
        """The steps at which the size of outputs was measured."""
        return settling_steps(self.settle, self.warmup) if self.settle else ()

    def way_from(self, output_rms: Mapping[int, float], step: int) -> float:
        r"""How much further a target has to go at a settling step than the base had.

        .. math:: \rho_t = \min(\max(r_t / b_t,\ 1),\ E), \quad
                  E = \max\Big(\frac{r_0}{\max(b_0, b_T)},\ 1\Big)

        with r and b the root mean squares of the target's and the base's outputs at the settling
        steps 0 to T. A model whose outputs begin larger than training makes them has to undo them
        first: while they are larger than the base's its steps are to be as much larger, up to the
        excess E that it began with. Without one, :math:`\rho` is 1.

        Args:
            output_rms: of the target, at steps up to this one.
            step: one of the settling steps.

        Raises:
            InputError: if that step was not recorded.

        Example::

            >>> import flerm_fx, torch
            >>> _ = torch.manual_seed(0)
            >>> model, x, y = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
            >>> adam = torch.optim.Adam(model.parameters(), lr=1e-3)
            >>> profile = flerm_fx.record(model, adam, x, y, settle=2).profile
            >>> largest = max(profile.output_rms[0], profile.output_rms[-1])
            >>> profile.way_from({0: largest}, 0), profile.way_from({0: 3 * largest}, 0) > 2.9
            (1.0, True)
        """
        if step not in self._sized:
            raise InputError(f"step {step} was not recorded; there are {self._sized}")
        base = dict(zip(self._sized, self.output_rms, strict=True))
        usual = max(base[0], self.output_rms[-1])
        excess = output_rms[0] / usual if usual else 1.0
        larger = output_rms[step] / base[step] if base[step] else excess
        return min(max(larger, 1.0), max(excess, 1.0))

    def save(self, path: PathLike) -> None:
        """Write the profile to one ``.safetensors`` file, whole or not at all.

        The file is written under a temporary name beside ``path``, flushed to the disk and renamed,
        so that whatever interrupts it, a file already at ``path`` stays as it was; its mode stays.

        Raises:
            ProfileError: if the file cannot be written, ``path`` holds anything but a regular file
                of one name, or text of the profile has characters that are not printable, which
                :meth:`load` would refuse.
            InputError: if ``path`` is no path.
        """
        path = path_of(path)
        where = shown(path)
        tensors: list[Tensor] = []
        kinds: list[list[str]] = []
        header = {
            **{name: getattr(self, name) for name in _TYPES},
            "parameters": [[name, list(self.shapes[name])] for name in self.parameters],
            "versions": dict(self.versions),
            "graph": to_json(self.graph),
            "optimizer": self.optimizer.spec(),
            "others": [[rule.spec(), rate] for rule, rate in self.others],
            "held": dict(self.held),
            "belongs": list(self.belongs),
            "pool": [
                _pack(batch, f"pool[{index}]", tensors) for index, batch in enumerate(self.pool)
            ],
            "steps": list(self.trajectory.steps),
            "late": bool(self.late),
            "settling": list(self.settling.steps),
            "output_rms": list(self.output_rms),
            "update_sizes": [self.update_sizes[name] for name in self.parameters if self.settle],
            "kinds": kinds,
        }
        start = [[self.start[name] for name in self.parameters]]
        late = {}
        if self.late:
            rows = [[self.late[name] for name in self.parameters]]
            late = _estimate_tensors("late", rows, len(self.parameters), kinds)
        named = {
            **_estimate_tensors("start", start, len(self.parameters), kinds),
            **self._trajectory_tensors("trajectory", self.trajectory, kinds),
            **(self._trajectory_tensors("settling", self.settling, kinds) if self.settle else {}),
            **late,
            # Cloned one by one: a file has no tensors that share memory.
            **{
                f"pool.{index}": tensor.detach().to("cpu", copy=True).contiguous()
                for index, tensor in enumerate(tensors)
            },
        }
        try:
            check_printable(_texts(header))
            content = serialize(named, {_KEY: _to_text(header)})
        except ProfileError as error:
            raise ProfileError(f"{where}: the profile was not saved: {error}") from error
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"{where}: the profile cannot be serialized: {error}") from error
        try:
            write_whole(path, content)
        except OSError as error:
            raise ProfileError(
                f"{where}: the profile was not saved ({reason(error)}); nothing that was "
                "there has changed. Save it to another path, or make room and save it again"
            ) from error

    def _trajectory_tensors(
        self, prefix: str, trajectory: Trajectory, kinds: list[list[str]]
    ) -> dict[str, Tensor]:
        course = [
            [trajectory.fslrs[name][step] for name in self.parameters]
            for step in range(len(trajectory))
        ]
        rates = torch.tensor(trajectory.learning_rates, dtype=torch.float64, device="cpu")
        return {
            **_estimate_tensors(prefix, course, len(self.parameters), kinds),
            f"{prefix}.learning_rates": rates,
        }

    @classmethod
    def load(cls, path: PathLike) -> BaseProfile:
        """Read a profile and check all of it. Nothing in the file is run.

        Raises:
            ProfileError: if the file is missing, truncated, no profile, of another format, or
                contradicts itself; or if text in it has characters that are not printable, such as
                the end of a line in a parameter's name. What the pool holds may be any text.
            InputError: if ``path`` is no path.
        """
        import networkx as nx

        path = path_of(path)
        where = shown(path)
        metadata, tensors = _read(path)
        try:
            if _KEY not in metadata:
                raise ProfileError(
                    "a safetensors file without a flerm_fx header; expected a base profile, as "
                    "recorder.profile.save writes (is it a model's checkpoint?)"
                )
            header, constants = _from_text(metadata[_KEY])
            check_printable(_texts(header))
            versions = header["versions"]
            if versions["format"] != FORMAT:
                raise ProfileError(
                    f"profile format {versions['format']!r}, written by flerm_fx "
                    f"{versions.get('flerm_fx')}; this flerm_fx {_versions()['flerm_fx']} reads "
                    f"format {FORMAT}: install the version that wrote it, or {_RECORD_AGAIN}"
                )
            profile = cls._unpack(header, tensors)
            if constants:
                raise ValueError(f"{constants[0]} is no JSON")
            return profile
        except FlermError as error:
            raise ProfileError(f"{where}: {error}") from error
        except (*_INCONSISTENT, nx.NetworkXException) as error:
            raise ProfileError(
                f"{where}: the header is damaged ({type(error).__name__}: {shown(error)}); copy "
                f"the file again, or {_RECORD_AGAIN}"
            ) from error

    @classmethod
    def _unpack(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BaseProfile:
        header = {**_ADDED, **header}
        shapes = {str(name): tuple(shape) for name, shape in header["parameters"]}
        names = tuple(str(name) for name, _ in header["parameters"])
        kinds = [(str(method), str(note)) for method, note in header["kinds"]]
        [start] = _estimates("start", tensors, 1, len(names), kinds)
        late = _estimates("late", tensors, 1, len(names), kinds)[0] if header["late"] else []
        settling = Trajectory()
        if header["settling"]:
            settling = _trajectory("settling", header["settling"], names, tensors, kinds)
        return cls(
            parameters=names,
            shapes=shapes,
            start=dict(zip(names, start, strict=True)),
            late=dict(zip(names, late, strict=True)) if late else {},
            settling=settling,
            output_rms=tuple(float(rms) for rms in header["output_rms"]),
            update_sizes={
                name: float(size)
                for name, size in zip(names, header["update_sizes"], strict=bool(header["settle"]))
            },
            trajectory=_trajectory("trajectory", header["steps"], names, tensors, kinds),
            graph=from_json(header["graph"]),
            optimizer=UpdateRule.from_spec(header["optimizer"]),
            others=tuple(
                (UpdateRule.from_spec(spec), float(rate)) for spec, rate in header["others"]
            ),
            held={str(name): int(index) for name, index in header["held"].items()},
            belongs=tuple(int(index) for index in header["belongs"]),
            pool=tuple(_batch(packed, tensors) for packed in header["pool"]),
            versions=dict(header["versions"]),
            **{name: header[name] for name in _TYPES},
        )

    @classmethod
    def mean(cls, profiles: Sequence[BaseProfile]) -> BaseProfile:
        r"""The profile of several recordings of one base model, one for each seed.

        Outputs combine as their root mean square, and FSLRs as the geometric mean,

        .. math:: \mathrm{FSLR}_l = \exp \frac1n \sum_{i=1}^n \log \mathrm{FSLR}_{l,i},

        because they enter multipliers as ratios: the multipliers of the mean are then the geometric
        mean of the seeds' multipliers, whichever side of the ratio the base is on. A parameter
        whose FSLR is 0 under some seed has no logarithm there, and takes the arithmetic mean. Late
        FSLRs are kept if every profile has them; otherwise no parameter in use is 0 under every
        seed.

        The standard error is that of a mean over seeds, from the spread of the n values, which
        contains each one's own error, and not less than those alone would give:
        :math:`\max(s^2 / n,\ \sum_i \sigma_i^2 / n^2)^{1/2}`, in logarithms (relative errors) for
        the geometric mean. One profile comes back as it is. Pool and seed are the first one's.

        Raises:
            InputError: if there is no profile, something else is among them, or two differ in
                parameters, shapes, parameter graph, steps or any setting other than the seed.
        """
        if not isinstance(profiles, Iterable):
            raise InputError(
                f"BaseProfile.mean takes a list of profiles; got {type(profiles).__name__}"
            )
        profiles = tuple(profiles)
        if not profiles:
            raise InputError("BaseProfile.mean takes at least one profile; got none")
        for index, profile in enumerate(profiles):
            if not isinstance(profile, cls):
                raise InputError(
                    f"BaseProfile.mean takes profiles; number {index} is of type "
                    f"{type(profile).__name__}: load a file with BaseProfile.load"
                )
        first, *others = profiles
        for index, other in enumerate(others, start=1):
            _check_same(first, other, index)
        if not others:
            return first
        return replace(
            first,
            start={
                name: _mean([profile.start[name] for profile in profiles])
                for name in first.parameters
            },
            late={
                name: _mean([profile.late[name] for profile in profiles])
                for name in first.parameters
                if all(profile.late for profile in profiles)
            },
            settling=_mean_trajectory([profile.settling for profile in profiles]),
            output_rms=tuple(
                math.sqrt(sum(rms**2 for rms in each) / len(each))
                for each in zip(*(profile.output_rms for profile in profiles), strict=True)
            ),
            update_sizes={
                name: math.fsum(profile.update_sizes[name] for profile in profiles) / len(profiles)
                for name in first.update_sizes
            },
            trajectory=_mean_trajectory([profile.trajectory for profile in profiles]),
            versions=_versions(),
        )

    def __repr__(self) -> str:
        return (
            f"BaseProfile({len(self.parameters)} parameters, {self.optimizer.source} at lr "
            f"{self.learning_rate:g}, settle {self.settle}, loss {self.loss or 'of the caller'}, "
            f"trajectory of {len(self.trajectory)} steps)"
        )


# What the header of a file lacks that was written before there were late starts, several
# optimizers or groups, or matching on the way to the start.
_ADDED: dict[str, Any] = {
    "resolve_after": 0,
    "late": False,
    "others": [],
    "held": {},
    "belongs": [],
    "settling": [],
    "output_rms": [],
    "update_sizes": [],
    "warmup": 0,
}

# Fields that the header holds as they are, with their types.
_TYPES: dict[str, Any] = {
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

# What reading a damaged or hostile header can raise.
_INCONSISTENT = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def _check_estimate(estimate: Estimate, what: str) -> None:
    for number in (estimate.value, estimate.stderr):
        if not (math.isfinite(number) and number >= 0):
            raise ProfileError(
                f"{what} is {estimate.value} ± {estimate.stderr}; expected finite numbers >= 0"
            )
    if estimate.samples < 0:
        raise ProfileError(f"{what} has {estimate.samples} samples; expected at least 0")


def _trajectory(
    prefix: str,
    steps: Sequence[Any],
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    kinds: Sequence[tuple[str, str]],
) -> Trajectory:
    course = _estimates(prefix, tensors, len(steps), len(names), kinds)
    rates = _tensor(tensors, f"{prefix}.learning_rates", (len(steps),), torch.float64)
    return Trajectory(
        tuple(int(step) for step in steps),
        tuple(rates.tolist()),
        {name: tuple(row[index] for row in course) for index, name in enumerate(names)},
    )


def _interpolated(left: Estimate, right: Estimate, weight: float) -> Estimate:
    """Between two estimates, in logarithms where both have one."""

    def between(a: float, b: float) -> float:
        return (1 - weight) * a + weight * b

    if left.value > 0 and right.value > 0:
        value = math.exp(between(math.log(left.value), math.log(right.value)))
    else:
        value = between(left.value, right.value)
    return replace(left, value=value, stderr=between(left.stderr, right.stderr))


def _check_same(first: BaseProfile, other: BaseProfile, index: int) -> None:
    """Whether two profiles record one model under one setting, seeds apart."""

    def settings(profile: BaseProfile) -> Iterator[tuple[str, Any]]:
        yield "optimizer", profile.optimizer.source
        yield "optimizer settings", profile.optimizer.spec()["settings"]
        yield "other parameter groups", [(rule.spec(), rate) for rule, rate in profile.others]
        yield "which group holds what", dict(profile.held)
        yield "which optimizer a group is of", profile.belongs
        for name in profile.parameters:
            yield f"the shape of {name!r}", profile.shapes[name]
        for name in _TYPES:
            if name != "seed":
                yield name, getattr(profile, name)
        yield "trajectory steps", profile.trajectory.steps
        yield "trajectory learning rates", profile.trajectory.learning_rates

    hint = "a mean takes recordings of one model with equal settings, seeds apart"
    if first.parameters != other.parameters:
        names = sorted(set(first.parameters) ^ set(other.parameters))
        where = ", ".join(map(repr, names[:5])) or "their execution order"
        raise InputError(f"profiles 0 and {index} differ in parameters, in {where}; {hint}")
    for (what, expected), (_, came) in zip(settings(first), settings(other), strict=True):
        if came != expected:
            raise InputError(
                f"profiles 0 and {index} differ in {what}: {expected!r} and {came!r}; {hint}"
            )
    import networkx as nx

    if not nx.utils.graphs_equal(first.graph, other.graph):
        odd = sorted(
            {str(item) for item in first.graph.nodes(data=True)}
            ^ {str(item) for item in other.graph.nodes(data=True)}
        )
        where = f"node {odd[0]}" if odd else "their edges"
        raise InputError(f"profiles 0 and {index} differ in parameter graph, at {where}; {hint}")


def _mean_trajectory(trajectories: Sequence[Trajectory]) -> Trajectory:
    first = trajectories[0]
    course = {
        name: tuple(
            _mean([trajectory.fslrs[name][step] for trajectory in trajectories])
            for step in range(len(first))
        )
        for name in first.fslrs
    }
    return replace(first, fslrs=course)


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over seeds with its standard error: see :meth:`BaseProfile.mean`."""
    n = len(estimates)
    geometric = all(estimate.value > 0 for estimate in estimates)
    if geometric:
        values = [math.log(estimate.value) for estimate in estimates]
        errors = [estimate.relative_error for estimate in estimates]
    else:
        values = [estimate.value for estimate in estimates]
        errors = [estimate.stderr for estimate in estimates]
    center = sum(values) / n
    spread = sum((value - center) ** 2 for value in values) / (n - 1) / n
    own = sum(error**2 for error in errors) / n**2
    error = math.sqrt(max(spread, own))
    methods = dict.fromkeys(estimate.method for estimate in estimates)
    notes = dict.fromkeys(estimate.note for estimate in estimates if estimate.note)
    value = math.exp(center) if geometric else center
    return Estimate(
        value=value,
        stderr=value * error if geometric else error,
        method="+".join(methods),
        samples=sum(estimate.samples for estimate in estimates),
        note="; ".join([f"mean of {n} profiles", *notes]),
    )


# Estimates as tensors: (rows, L) values with the method and note of each as an index into a list.


def _estimate_tensors(
    prefix: str, rows: list[list[Estimate]], width: int, kinds: list[list[str]]
) -> dict[str, Tensor]:
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


def _estimates(
    prefix: str,
    tensors: Mapping[str, Tensor],
    rows: int,
    width: int,
    kinds: Sequence[tuple[str, str]],
) -> list[list[Estimate]]:
    def table(name: str, dtype: torch.dtype) -> list[Any]:
        values: list[Any] = _tensor(tensors, f"{prefix}.{name}", (rows, width), dtype).tolist()
        return values

    columns = zip(
        table("fslr", torch.float64),
        table("stderr", torch.float64),
        table("samples", torch.int64),
        table("kind", torch.int64),
        strict=True,
    )
    found = []
    for row in columns:
        estimates = []
        for value, stderr, samples, kind in zip(*row, strict=True):
            if not 0 <= kind < len(kinds):
                raise ProfileError(f"tensor '{prefix}.kind' has {kind}, of {len(kinds)} kinds")
            method, note = kinds[kind]
            estimates.append(Estimate(value, stderr, method, samples, note))
        found.append(estimates)
    return found


def _tensor(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    if name not in tensors:
        raise ProfileError(f"tensor {name!r} is missing; expected shape {shape}")
    tensor = tensors[name]
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ProfileError(
            f"tensor {name!r} has shape {tuple(tensor.shape)} and {tensor.dtype}; expected {shape} "
            f"and {dtype}"
        )
    return tensor


# The probe pool as JSON with its tensors put aside.


def check_pool(pool: Sequence[Batch]) -> None:
    """Whether a file can hold a probe pool.

    Raises:
        InputError: it holds something else than dense tensors and plain values.
    """
    for index, batch in enumerate(pool):
        _pack(batch, f"pool[{index}]", [])


def _pack(value: Any, where: str, tensors: list[Tensor]) -> dict[str, Any]:
    """``value`` as JSON, its tensors appended to ``tensors`` and named by their index there."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            _refuse(value, f"a {value.layout} tensor on {value.device}", where)
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        items = [_pack(item, f"{where}[{index}]", tensors) for index, item in enumerate(value)]
        return {kind: items}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                _refuse(key, f"a key of type {type(key).__name__}", where)
        return {
            "dict": {key: _pack(item, f"{where}[{key!r}]", tensors) for key, item in value.items()}
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


def _batch(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Batch:
    batch = _unpack(packed, tensors)
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise ValueError("a batch of the pool is no (inputs, targets)")
    inputs, targets = batch
    if not isinstance(inputs, Tensor | tuple | dict):
        raise ValueError(f"inputs of the pool are a {type(inputs).__name__}")
    return inputs, targets


# The file.


def check_printable(texts: Any) -> None:
    """Whether a profile with these strings, in lists and dicts, can be read by anyone.

    Raises:
        ProfileError: a string has characters that are not printable; commands and dumps would
            write them into terminals and code.
    """
    for text in unprintable(texts):
        raise ProfileError(
            f"{text!r} has characters that are not printable, and names in a profile have none; "
            "rename what is called so, and record again"
        )


def _texts(header: Any) -> Any:
    """The header but for the pool, which is the model's own data: text in it may be any."""
    if not isinstance(header, Mapping):
        return header
    return {key: value for key, value in header.items() if key != "pool"}


_NUMBER = "$number"  # the key of a number that JSON has no name for


def _to_text(header: Any) -> str:
    def packed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: packed(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [packed(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {_NUMBER: repr(value)}
        return value

    return json.dumps(packed(header), allow_nan=False)


def _from_text(text: str) -> tuple[Any, list[str]]:
    """What :func:`_to_text` was given, and what else stands for a number without being JSON."""
    constants: list[str] = []

    def unpacked(found: dict[str, Any]) -> Any:
        number = found.get(_NUMBER)
        return float(number) if len(found) == 1 and isinstance(number, str) else found

    def noted(constant: str) -> float:
        constants.append(constant)
        return float(constant)

    return json.loads(text, object_hook=unpacked, parse_constant=noted), constants


def _numbers(setting: Any) -> Iterator[float]:
    """The floats in a setting of an optimizer."""
    if isinstance(setting, float):
        yield setting
    elif isinstance(setting, Mapping):
        yield from _numbers(tuple(setting.values()))
    elif isinstance(setting, list | tuple):
        for item in setting:
            yield from _numbers(item)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    where = shown(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ProfileError(
                f"{where}: {kind_of(mode)}; expected a base profile that recorder.profile.save "
                "wrote"
            )
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            # Cloned: what comes is a view of the file, which may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except FileNotFoundError as error:
        raise ProfileError(
            f"{where}: no such file; expected a base profile that recorder.profile.save wrote"
        ) from error
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        raise ProfileError(f"{where}: cannot be read ({reason(error)})") from error
    except SafetensorError as error:
        truncated = any(sign in str(error) for sign in ("incomplete", "too small", "header length"))
        what = "a truncated file" if truncated else "not a safetensors file"
        raise ProfileError(
            f"{where}: {what}; expected a base profile that recorder.profile.save wrote "
            f"({shown(error)}). Copy the file again, or {_RECORD_AGAIN}"
        ) from error
