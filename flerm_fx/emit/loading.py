"""This module reads state dicts of scaled models, in every form that they have had."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from flerm_fx.emit.state import (
    EXTRA,
    check_factors,
    effective,
    packed_size,
    read_vector,
    restored,
    scale_in,
)
from flerm_fx.errors import InputError

_HOW = "load it into a model compiled in the same way, or load fold().state_dict()"


@dataclass
class Saved:
    """A ``Saved`` holds what a state dict says beside its weights.

    Attributes:
        scales: by canonical name.
        multipliers: by canonical name.
        units: see :func:`flerm_fx.emit.state.packed_units`.
        stored: the parameters whose weights in it are stored ones; others are effective.
    """

    scales: dict[str, float] = field(default_factory=dict)
    multipliers: dict[str, float] = field(default_factory=dict)
    units: dict[str, Tensor | None] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)


def as_stored(
    state_dict: dict[str, Any],
    prefix: str,
    parameters: Mapping[str, Tensor],
    scales: Mapping[str, float],
    multiplied: Collection[str] = (),
) -> Saved:
    """Turn the weights in a state dict into stored ones, under plain names.

    Weights that it has no scales for are effective, as a plain model's are. A parameter that it
    does not have, or in another shape, keeps its scale.

    Args:
        state_dict: what is to be loaded, and is changed.
        prefix: of the names in it.
        parameters: the model's, by every plain name.
        scales: the model's, by canonical name.
        multiplied: the parameters that have multipliers.

    Returns:
        The scales of the model once these weights are in it, and the multipliers that it has.

    Raises:
        InputError: scales or multipliers that are no finite numbers above 0, or that are of other
            parameters.
    """
    canonical: dict[int, str] = {}
    for name in (*scales, *parameters):
        canonical.setdefault(id(parameters[name]), name)
    uses = Counter(map(id, parameters.values()))
    sizes = {name: packed_size(parameters[name]) for name in sorted(scales)}
    saved = from_extra_state(state_dict.get(prefix + EXTRA), prefix, scales, multiplied, sizes)
    _from_parametrizations(saved, state_dict, prefix, parameters, canonical)
    following = dict(scales)
    tied: dict[str, nn.Parameter] = {}
    for alias, parameter in parameters.items():
        key, name = prefix + alias, canonical[id(parameter)]
        if key not in state_dict:
            continue
        theirs, ours = saved.scales.get(name), scales.get(name)
        weight = state_dict[key]
        if ours is None:
            if theirs is not None and name in saved.stored:
                state_dict[key] = effective(weight, theirs)
        elif theirs is None:
            state_dict[key] = restored(weight, ours)
        elif weight.shape == parameter.shape:
            following[name] = theirs
            if name not in saved.stored:
                state_dict[key] = restored(weight, theirs, saved.units.get(name))
        if ours is not None and uses[id(parameter)] > 1 and weight.shape == parameter.shape:
            # One object, so that load_state_dict(..., assign=True) leaves them tied.
            one = nn.Parameter(state_dict[key], parameter.requires_grad)
            state_dict[key] = tied.setdefault(name, one)
    return Saved(following, saved.multipliers)


def from_extra_state(
    state: Any,
    prefix: str,
    scales: Collection[str],
    multiplied: Collection[str],
    sizes: Mapping[str, int],
) -> Saved:
    """Return the extra state of a compiled model, as it is saved now or was by version 0.1.0.

    Args:
        state: what is in the state dict; None if there is nothing.
        prefix: of the names in the state dict.
        scales: the parameters that have scales in the model.
        multiplied: those that have multipliers.
        sizes: how much of the units is each parameter's.

    Raises:
        InputError: as for :func:`as_stored`.
    """
    if state is None:
        return Saved()
    if isinstance(state, Tensor):
        (factors, multipliers), units = read_vector(state, 2, prefix + EXTRA)
        saved = Saved()
        for kind, numbers, names, into in (
            ("scales", factors, scales, saved.scales),
            ("multipliers", multipliers, multiplied, saved.multipliers),
        ):
            if names and numbers and len(names) != len(numbers):
                raise InputError(
                    f"the state dict has {kind} of {len(numbers)} parameters and the model of "
                    f"{len(names)}; {_HOW}"
                )
            into.update(zip(sorted(names), numbers, strict=False))
        if saved.scales and len(units) == sum(sizes.values()):
            saved.units.update(zip(sizes, units.split(list(sizes.values())), strict=True))  # type: ignore[no-untyped-call]
    else:
        theirs = dict(state["scales"])
        if theirs and scales and theirs.keys() != set(scales):
            odd = sorted(theirs.keys() ^ set(scales))
            raise InputError(
                f"the state dict's scales and the model's differ in {', '.join(map(repr, odd))}; "
                f"{_HOW}"
            )
        saved = Saved(theirs, dict(state.get("multipliers", {})), stored=set(theirs))
    check_factors("scale", saved.scales)
    check_factors("multiplier", saved.multipliers)
    return saved


def _from_parametrizations(
    saved: Saved,
    state_dict: dict[str, Any],
    prefix: str,
    parameters: Mapping[str, Tensor],
    canonical: Mapping[int, str],
) -> None:
    tail = f".0.{EXTRA}"
    for key in [k for k in state_dict if k.startswith(prefix) and k.endswith(tail)]:
        held = key.removesuffix(tail)
        path, _, name = held.removeprefix(prefix).rpartition("parametrizations.")
        if path + name not in parameters:
            continue
        own = canonical[id(parameters[path + name])]
        saved.scales[own], saved.units[own] = scale_in(state_dict.pop(key), key, path + name)
        if held + ".original" in state_dict:
            state_dict[prefix + path + name] = state_dict.pop(held + ".original")
            saved.stored.add(own)
