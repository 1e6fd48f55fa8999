"""Models of several sizes are built, compiled and fitted."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.options import described, instance, integer
from flerm_fx.boundary.progress import Progress, counting
from flerm_fx.emit.compiling import compile
from flerm_fx.errors import InputError
from flerm_fx.laws.law import ScalingLaw
from flerm_fx.model.randomness import preserved_rng
from flerm_fx.profile.profile import LOAD, BaseProfile
from flerm_fx.recipe.factories import ModelFactory

_LOG = logging.getLogger("flerm_fx")

Sizes = Mapping[str, Sequence[Any]] | Iterable[Mapping[str, Any]]
"""Keyword arguments of a factory: those of each model, or the values that each one takes while the
others stay as the factory has them."""


@dataclass(frozen=True)
class _Measured:
    """A ``_Measured`` keeps what a law needs of a compiled model, without its weights."""

    assignments: tuple[Assignment, ...]
    base_profile: BaseProfile | None


def scaling_law(
    factory: Callable[..., nn.Module],
    sizes: Sizes,
    base_profile: BaseProfile,
    *,
    seeds: int | Iterable[int] = 3,
    **options: Any,
) -> ScalingLaw:
    """Measure models of several sizes, and fit the law of their multipliers.

    Each size is built and compiled under each seed. Progress goes to the logger ``flerm_fx``. One
    size beside the base gives exponents, two or more tell whether powers of size hold, and the
    largest is predicted by the others (:attr:`ScalingLaw.held_out_error`).

    Args:
        factory: makes a model from keyword arguments, at new initial weights from torch's random
            state.
        sizes: the arguments, as ``{"width": [64, 128, 256]}``, with several names one after the
            other, each with the factory's defaults for the rest; or as a list of dicts, one a
            model.
        base_profile: recorded on the base, best over several seeds
            (:func:`flerm_fx.record_seeds`).
        seeds: how many of each size, counted from 0, or the seeds themselves.
        options: those of :func:`flerm_fx.compile`: ``loss_fn``, ``rtol``, ``inputs`` and so on.

    Returns:
        The law; the random state is as it was.

    Raises:
        InputError: no sizes or seeds, one of them twice, or a factory that does not take the sizes,
            makes no model of them, or makes the same trainable weights under another seed.
        LawError: the sizes do not differ from the base's.
        FlermError: as for :func:`flerm_fx.compile`.

    Example::

        >>> import flerm_fx, torch
        >>> def mlp(width=8):
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> def adam(model):
        ...     return torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(16, 4), torch.randint(3, (16,))
        >>> profile = flerm_fx.record_seeds(mlp, adam, x, y, seeds=2, settle=0)
        >>> law = flerm_fx.scaling_law(mlp, {"width": [16, 32, 64]}, profile, seeds=2)
        >>> list(law.roles)
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> law.roles["2.weight"].line.axes
        ((1,),)
    """
    instance("base_profile", base_profile, BaseProfile, "a BaseProfile", LOAD)
    made = ModelFactory(factory)
    models = _arguments(sizes)
    for arguments in models:
        made.check_takes(**arguments)
    _refuse_twice("sizes have", models, "more models of one size take more seeds")
    chosen = list(range(integer("seeds", seeds, 1)) if isinstance(seeds, int) else seeds)
    if not chosen:
        raise InputError("seeds are none; expected at least one")
    _refuse_twice("seeds have", chosen, "one more model takes another seed")
    measured = []
    plan = list(itertools.product(models, chosen))
    told = Progress("scaling_law", options.get("progress", True))
    with told("measuring"), counting(f"{len(plan)} models", len(plan)) as done:
        for count, (arguments, seed) in enumerate(plan, start=1):
            began = time.monotonic()
            with preserved_rng():
                model = made(seed, **arguments)
                compiled = compile(
                    model.train(base_profile.training), base_profile, emit="param_groups", **options
                )
            measured.append(_Measured(compiled.assignments, base_profile))
            _LOG.info(
                "measured model %d of %d (%s, seed %d) in %.1f s",
                count,
                len(plan),
                ", ".join(f"{name}={value}" for name, value in arguments.items()),
                seed,
                time.monotonic() - began,
            )
            done(1)
    return ScalingLaw.fit(measured)


def _refuse_twice(what: str, given: Sequence[Any], instead: str) -> None:
    for i, each in enumerate(given):
        if each in given[:i]:
            raise InputError(f"{what} {each!r} twice, which makes the same model; {instead}")


def _arguments(sizes: Any) -> list[dict[str, Any]]:
    """Return the arguments of each model."""
    if isinstance(sizes, Mapping):
        listed: Any = [
            {name: value}
            for name, values in sizes.items()
            for value in (values if isinstance(values, list | tuple | range) else [None])
        ]
        wrong = any(not isinstance(values, list | tuple | range) for values in sizes.values())
    else:
        listed = list(sizes) if isinstance(sizes, Iterable) and not isinstance(sizes, str) else []
        wrong = not all(isinstance(each, Mapping) for each in listed)
    if wrong or not listed:
        raise InputError(
            f"sizes must be like {{'width': [64, 128, 256]}} or a list of dicts of the factory's "
            f"arguments, got {described(sizes) if not isinstance(sizes, Mapping) else dict(sizes)}"
        )
    return [dict(each) for each in listed]
