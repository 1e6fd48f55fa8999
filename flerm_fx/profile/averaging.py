"""Several recordings of one base model make one profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from flerm_fx.errors import InputError
from flerm_fx.profile.fields import TYPES, Fields, ProfileFields, present_versions
from flerm_fx.profile.moment import Moment, mean_of_recordings
from flerm_fx.profile.trajectory import Trajectory, known_losses


def averaged(profiles: Any, kind: type[Fields]) -> Fields:
    """Return the profile whose numbers are means over profiles of a kind: see
    ``BaseProfile.mean``.
    """
    if not isinstance(profiles, Iterable):
        raise InputError(
            f"BaseProfile.mean takes a list of profiles; got {type(profiles).__name__}"
        )
    profiles = tuple(profiles)
    if not profiles:
        raise InputError("BaseProfile.mean takes at least one profile; got none")
    for index, profile in enumerate(profiles):
        if not isinstance(profile, kind):
            raise InputError(
                f"BaseProfile.mean takes profiles; number {index} is of type "
                f"{type(profile).__name__}: load a file with BaseProfile.load"
            )
    first: Fields
    first, *others = profiles
    for index, other in enumerate(others, start=1):
        _check_same(first, other, index)
    if not others:
        return first
    return replace(
        first,
        start={
            name: mean_of_recordings([profile.start[name] for profile in profiles])
            for name in first.parameters
        },
        late={
            name: mean_of_recordings([profile.late[name] for profile in profiles])
            for name in first.parameters
            if all(profile.late for profile in profiles)
        },
        moments={
            step: Moment.mean([profile.moments[step] for profile in profiles])
            for step in first.moments
        },
        trajectory=_mean_trajectory([profile.trajectory for profile in profiles]),
        versions=present_versions(),
    )


def _check_same(first: ProfileFields, other: ProfileFields, index: int) -> None:
    """Check that two profiles record one model under one setting, seeds apart."""

    def settings(profile: ProfileFields) -> Iterator[tuple[str, Any]]:
        yield "optimizer", profile.optimizer.source
        yield "optimizer settings", profile.optimizer.spec()["settings"]
        run = profile.optimizers
        yield "other parameter groups", [(rule.spec(), rate) for rule, rate in run.others]
        yield "which group holds what", dict(run.held)
        yield "which optimizer a group is of", run.belongs
        for name in profile.parameters:
            yield f"the shape of {name!r}", profile.shapes[name]
        for name in TYPES:
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
    """Return the trajectory whose every FSLR, and loss, is the mean over recordings."""
    first = trajectories[0]
    course = {
        name: tuple(
            mean_of_recordings([trajectory.fslrs[name][step] for trajectory in trajectories])
            for step in range(len(first))
        )
        for name in first.fslrs
    }
    losses = zip(*(trajectory.every_loss for trajectory in trajectories), strict=True)
    return replace(first, fslrs=course, losses=known_losses(sum(at) / len(at) for at in losses))
