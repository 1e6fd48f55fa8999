"""One file holds a base profile: safetensors, with the rest as JSON in its header."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError
from safetensors.torch import save as serialize
from torch import Tensor

from flerm_fx.align.parameter_graph import from_json, to_json
from flerm_fx.boundary.files import kind_of, path_of, reason, write_whole
from flerm_fx.errors import FlermError, ProfileError, shown
from flerm_fx.profile.fields import (
    FORMAT,
    TYPES,
    Fields,
    ProfileFields,
    check_settings,
    present_versions,
)
from flerm_fx.profile.moment import Moment, check_measured, check_outputs, check_warmup
from flerm_fx.profile.packing import batch_of, packed
from flerm_fx.profile.tensors import (
    estimate_tensors,
    estimates_in,
    trajectory_in,
    trajectory_tensors,
)
from flerm_fx.profile.text import check_printable, from_text, to_text
from flerm_fx.profile.trajectory import Trajectory, known_losses
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import settling_steps
from flerm_fx.recipe.update_rule import UpdateRule

PathLike = str | os.PathLike[str]

_KEY = "flerm_fx"  # the header's key in the file's safetensors metadata

RECORD_AGAIN = "record the base model again with flerm_fx.record"

# What the header of a file lacks that was written before there were late starts, several
# optimizers or groups, or matching on the way to the start.
_ADDED: dict[str, Any] = {
    "model": "",
    "resolve_after": 0,
    "late": False,
    "others": [],
    "held": {},
    "belongs": [],
    "settling": [],
    "output_rms": [],
    "update_sizes": [],
    "warmup": 0,
    "losses": [],
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


def write(profile: ProfileFields, path: PathLike) -> None:
    """Write a profile, whole or not at all: see ``BaseProfile.save``."""
    path = path_of(path)
    where = shown(path)
    tensors: list[Tensor] = []
    kinds: list[list[str]] = []
    header = {
        **{name: getattr(profile, name) for name in TYPES},
        "parameters": [[name, list(profile.shapes[name])] for name in profile.parameters],
        "versions": dict(profile.versions),
        "graph": to_json(profile.graph),
        "optimizer": profile.optimizer.spec(),
        "others": [[rule.spec(), rate] for rule, rate in profile.optimizers.others],
        "held": dict(profile.optimizers.held),
        "belongs": list(profile.optimizers.belongs) if profile.optimizers.others else [],
        "pool": [
            packed(batch, f"pool[{index}]", tensors) for index, batch in enumerate(profile.pool)
        ],
        "steps": list(profile.trajectory.steps),
        "late": bool(profile.late),
        "settling": list(profile.settling.steps),
        "output_rms": list(profile.output_rms),
        "update_sizes": [
            profile.update_sizes[name] for name in profile.parameters if profile.settle
        ],
        "losses": list(known_losses(moment.loss for moment in profile.moments.values())),
        "kinds": kinds,
    }
    start = [[profile.start[name] for name in profile.parameters]]
    late = {}
    if profile.late:
        rows = [[profile.late[name] for name in profile.parameters]]
        late = estimate_tensors("late", rows, len(profile.parameters), kinds)
    named = {
        **estimate_tensors("start", start, len(profile.parameters), kinds),
        **trajectory_tensors("trajectory", profile.trajectory, profile.parameters, kinds),
        **(
            trajectory_tensors("settling", profile.settling, profile.parameters, kinds)
            if profile.settle
            else {}
        ),
        **late,
        # Cloned one by one: a file has no tensors that share memory.
        **{
            f"pool.{index}": tensor.detach().to("cpu", copy=True).contiguous()
            for index, tensor in enumerate(tensors)
        },
    }
    try:
        check_printable(_texts(header))
        content = serialize(named, {_KEY: to_text(header)})
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


def loaded(path: PathLike, kind: type[Fields]) -> Fields:
    """Return the profile of a kind that a file holds: see ``BaseProfile.load``."""
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
        header, constants = from_text(metadata[_KEY])
        check_printable(_texts(header))
        versions = header["versions"]
        if versions["format"] != FORMAT:
            raise ProfileError(
                f"profile format {versions['format']!r}, written by flerm_fx "
                f"{versions.get('flerm_fx')}; this flerm_fx {present_versions()['flerm_fx']} reads "
                f"format {FORMAT}: install the version that wrote it, or {RECORD_AGAIN}"
            )
        profile = kind(**_fields(header, tensors))
        if constants:
            raise ValueError(f"{constants[0]} is no JSON")
        return profile
    except FlermError as error:
        raise ProfileError(f"{where}: {error}") from error
    except (*_INCONSISTENT, nx.NetworkXException) as error:
        raise ProfileError(
            f"{where}: the header is damaged ({type(error).__name__}: {shown(error)}); copy "
            f"the file again, or {RECORD_AGAIN}"
        ) from error


def _fields(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of the profile that a header and tensors make."""
    header = {**_ADDED, **header}
    check_settings(header)
    shapes = {str(name): tuple(shape) for name, shape in header["parameters"]}
    names = tuple(str(name) for name, _ in header["parameters"])
    kinds = [(str(method), str(note)) for method, note in header["kinds"]]
    [start] = estimates_in("start", tensors, 1, len(names), kinds)
    late = estimates_in("late", tensors, 1, len(names), kinds)[0] if header["late"] else []
    return dict(
        parameters=names,
        shapes=shapes,
        start=dict(zip(names, start, strict=True)),
        late=dict(zip(names, late, strict=True)) if late else {},
        moments=_moments(header, names, tensors, kinds),
        trajectory=trajectory_in("trajectory", header["steps"], names, tensors, kinds),
        graph=from_json(header["graph"]),
        optimizers=_optimizers(header),
        pool=tuple(batch_of(packed, tensors) for packed in header["pool"]),
        versions=dict(header["versions"]),
        **{name: header[name] for name in TYPES if name != "learning_rate"},
    )


def _optimizers(header: Mapping[str, Any]) -> Optimizers:
    """Return the run's optimizers, of which a file holds the first rule and rate apart from the
    others.
    """
    groups = [(header["optimizer"], header["learning_rate"]), *header["others"]]
    return Optimizers(
        tuple(UpdateRule.from_spec(spec) for spec, _ in groups),
        tuple(float(rate) for _, rate in groups),
        {str(name): int(index) for name, index in header["held"].items()},
        tuple(int(index) for index in header["belongs"]),
    )


def _moments(
    header: Mapping[str, Any],
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    kinds: Sequence[tuple[str, str]],
) -> dict[int, Moment]:
    """Return the moments of the settling steps, of which a file holds each quantity as a list."""
    settle, warmup = header["settle"], header["warmup"]
    check_warmup(settle, warmup)
    settling = Trajectory()
    if header["settling"]:
        settling = trajectory_in("settling", header["settling"], names, tensors, kinds)
    check_measured(settle, warmup, settling.steps)
    sizes = [float(size) for size in header["output_rms"]]
    check_outputs(settle, warmup, len(sizes))
    if not settle:
        return {}
    losses = [float(loss) for loss in header["losses"]] or [math.nan] * len(sizes)
    moments = {
        step: Moment(settling.at(step) if step in settling.steps else {}, size, loss=loss)
        for step, size, loss in zip(settling_steps(settle, warmup), sizes, losses, strict=True)
    }
    updates = zip(names, map(float, header["update_sizes"]), strict=True)
    return {**moments, 0: replace(moments[0], update_sizes=dict(updates))}


def _texts(header: Any) -> Any:
    """Return the header but for the pool, which is the model's own data: text in it may be any."""
    if not isinstance(header, Mapping):
        return header
    return {key: value for key, value in header.items() if key != "pool"}


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
            f"({shown(error)}). Copy the file again, or {RECORD_AGAIN}"
        ) from error
