"""This module writes a law to a file, and reads it."""

from __future__ import annotations

import base64
import binascii
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from flerm_fx.boundary.files import path_of, reason, write_whole
from flerm_fx.boundary.text import json_text
from flerm_fx.errors import LawError, ProfileError, shown
from flerm_fx.laws.points import Point
from flerm_fx.profile.profile import BaseProfile

FORMAT = "flerm_fx.law"
VERSION = 2
"""Points of version 1 had no depth behind their dimensions."""

_Law = tuple[BaseProfile, dict[str, tuple[Point, ...]], frozenset[str]]


def write(
    path: str | Path,
    profile: BaseProfile,
    points: Mapping[str, tuple[Point, ...]],
    unresolved: frozenset[str],
) -> None:
    """Write a law, whole or not at all.

    It is JSON: the points by role, and the base's profile, with the first batch of its pool alone,
    as the base64 of its own file.

    Raises:
        LawError: it cannot be written.
    """
    file = path_of(path)
    first = replace(profile, pool=profile.pool[:1])
    document = {
        "format": FORMAT,
        "version": VERSION,
        "points": {role: [asdict(point) for point in of] for role, of in points.items()},
        "unresolved": sorted(unresolved),
        "profile": base64.b64encode(_content(first)).decode(),
    }
    try:
        write_whole(file, json_text(document).encode())
    except OSError as error:
        raise LawError(
            f"{shown(file)}: the law was not saved ({reason(error)}); nothing that was there has "
            "changed. Save it to another path, or make room and save it again"
        ) from error


def read(path: str | Path) -> _Law:
    """Read what :func:`write` wrote; all of it is validated.

    Raises:
        LawError: there is no such file, it is no law, of another version, or damaged.
    """
    file = path_of(path)
    where = shown(file)
    try:
        text = file.read_bytes()
    except OSError as error:
        why = reason(error)
        raise LawError(f"{where}: no scaling law can be read there ({why})") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LawError(
            f"{where}: it is not JSON, as a scaling law is ({type(error).__name__}); read what "
            "ScalingLaw.save wrote, and a profile by flerm_fx.BaseProfile.load"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise LawError(f"{where}: it is no scaling law; write one with ScalingLaw.save")
    if document.get("version") != VERSION:
        raise LawError(
            f"{where}: it is a law of version {shown(document.get('version'))}, and this version "
            f"of flerm_fx reads {VERSION}; fit it again (flerm_fx.scaling_law or flerm-fx law fit)"
        )
    try:
        profile = _profile(document["profile"])
        points = {role: tuple(map(_point, of)) for role, of in document["points"].items()}
        unresolved = frozenset(document["unresolved"])
        unknown = (points.keys() | unresolved) - set(profile.parameters)
        if unknown:
            raise ValueError(f"the base has no parameter {sorted(unknown)[0]!r}")
        for role, of in points.items():
            axes = len(profile.shapes[role]) + 1  # and the depth
            if not of or any(len(point.log_sizes) != axes for point in of):
                raise ValueError(f"the points of {role!r} are none, or of another rank")
    except (KeyError, TypeError, ValueError, AttributeError, ProfileError) as error:
        raise LawError(
            f"{where}: the law is damaged ({type(error).__name__}: {error}); save it again"
        ) from error
    return profile, points, unresolved


_WHOLE = ("model", "parameters")
_LEAST_0 = ("model", "parameters", "error", "spread", "noise", "shares")
_LOGARITHMS = ("log_sizes", "log_multiplier")
_MOST_LOG, _MOST = 710.0, 1e100
"""Whose exponential, and whose square, is still a number."""


def _point(packed: Any) -> Point:
    names = [each.name for each in fields(Point)]
    if not isinstance(packed, dict) or packed.keys() != set(names):
        raise ValueError(f"a point must have {', '.join(names)}")
    sizes = packed["log_sizes"]
    if not isinstance(sizes, list):
        raise ValueError(f"log_sizes of a point are {sizes!r}")
    for name, value in [*packed.items(), *(("log_sizes", size) for size in sizes)]:
        if value is sizes:
            continue
        kinds = (int,) if name in _WHOLE else (int, float)
        if type(value) not in kinds or not math.isfinite(value):
            raise ValueError(f"{name} of a point is {value!r}")
        if name in _LEAST_0 and value < 0:
            raise ValueError(f"{name} of a point is {value!r}, below 0")
        if abs(value) > (_MOST_LOG if name in _LOGARITHMS else _MOST):
            raise ValueError(f"{name} of a point is {value!r}, which is too large to be one")
    return Point(**{**packed, "log_sizes": tuple(sizes)})


def _content(profile: BaseProfile) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        profile.save(path)
        return path.read_bytes()


def _profile(packed: Any) -> BaseProfile:
    if not isinstance(packed, str):
        raise ValueError("its profile is no text")
    try:
        content = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its profile is no base64: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        path.write_bytes(content)
        return BaseProfile.load(path)
