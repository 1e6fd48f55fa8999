"""A scaling law gives multipliers as powers of size, role by role."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flerm_fx.align.aligning import Match, OnUnmatched
from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.align.patterns import Mapped
from flerm_fx.assign.assignment import Assignment, Status
from flerm_fx.assign.matches import leader, wanted
from flerm_fx.assign.predictor import Predictor
from flerm_fx.boundary.notebook import folded_table
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import LawError, shown
from flerm_fx.laws.courses import course_of, followed
from flerm_fx.laws.file import read, write
from flerm_fx.laws.holding import Finding, drift_of
from flerm_fx.laws.points import (
    Compiled,
    Point,
    Role,
    base_roles,
    check_points,
    depths,
    listed,
    log_sizes,
    one_profile,
    points,
    share_of,
)
from flerm_fx.laws.role_law import UNMOVED, Prediction, RoleLaw
from flerm_fx.probe.estimate import NOT_MEASURED, Estimate
from flerm_fx.profile.profile import BaseProfile


@dataclass(frozen=True, eq=False)
class ScalingLaw(Predictor):
    r"""A ``ScalingLaw`` gives multipliers as powers of size, relative to a base.

    .. math:: \log m_l = \log \mathrm{share}_l + \sum_a e_{r, a} \log \frac{n_a}{n_a^{base}}

    with one exponent :math:`e_{r, a}` for each role r, which are the parameters at one place of the
    base's repeated blocks, and each axis a: the dimensions of their shape, and the depth. What has
    grown as one is one axis. The law goes through the base, whose multipliers are 1. The share of
    the base's mass that a parameter answers to (:func:`flerm_fx.align.align`) is not fitted, and is
    all that depth does where no model of the fit is deeper than the base.

    Attributes:
        profile: of the base.
        points: by role, the multipliers that it was fitted to.
        unresolved: roles whose FSLRs were zero or noise in all models; their multiplier is 1.

    Example::

        >>> import flerm_fx, torch
        >>> from torch import nn
        >>> def mlp(width):
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> _ = torch.manual_seed(0)
        >>> base, x, y = mlp(16), torch.randn(32, 4), torch.randint(3, (32,))
        >>> adam = torch.optim.Adam(base.parameters(), lr=1e-3)
        >>> profile = flerm_fx.record(base, adam, x, y, settle=0).profile
        >>> law = flerm_fx.ScalingLaw.fit(
        ...     [flerm_fx.compile(mlp(width), profile) for width in (32, 64, 128, 256)]
        ... )
        >>> large = flerm_fx.compile(mlp(1024), law)
        >>> large.assignments[0].status
        'predicted'
    """

    profile: BaseProfile
    points: Mapping[str, tuple[Point, ...]]
    unresolved: frozenset[str] = frozenset()

    @classmethod
    def fit(cls, compiled_models: Iterable[Compiled]) -> ScalingLaw:
        """Fit a law to the multipliers of models of several sizes.

        All that belongs to one role in one model is one point; points are weighted by their errors
        and by how much they scatter, and the error of the base's own FSLRs, which all of them
        share, is told from the exponents (:func:`flerm_fx.laws.regression.fitted`).

        Args:
            compiled_models: what :func:`flerm_fx.compile` made of each, all against one profile.
                Several of one size, of other initial weights, tell scatter from law.

        Raises:
            LawError: there are none, they were compiled against several profiles, were themselves
                predicted, have multipliers that are not finite, or are all of the base's size.
        """
        models: list[Compiled] = listed("compiled_models", compiled_models)
        profile = one_profile(models)
        by_role = points(models, profile)
        check_points(by_role)
        of_base = base_roles(profile)
        seen = {
            of_base[leader(profile.optimizers, row.base)].name
            for compiled in models
            for row in compiled.assignments
            if row.base
        }
        law = cls(
            profile,
            {role: tuple(of) for role, of in by_role.items()},
            frozenset(seen - by_role.keys()),
        )
        law._check_moved()
        return law

    @classmethod
    def fit_trajectories(
        cls,
        base_profile: BaseProfile,
        profiles: Iterable[BaseProfile],
        *,
        mapping: Mapped | None = None,
        on_unmatched: OnUnmatched = "error",
    ) -> ScalingLaw:
        """Fit a law to FSLRs of the real updates of runs, in place of starts.

        The base and larger models are recorded as they train, at the same steps, each at rates that
        train it well: with the multipliers of :func:`flerm_fx.compile`, say
        (:func:`flerm_fx.laws.courses.followed`).

        Args:
            base_profile: with the trajectory of the base, best the mean over several seeds.
            profiles: of larger models, with theirs. Their starts are not read: ``settle=0`` saves
                the steps.
            mapping: as for :func:`flerm_fx.compile`.
            on_unmatched: as for :func:`flerm_fx.compile`.

        Returns:
            A law that :func:`flerm_fx.compile` takes in place of a profile.

        Raises:
            LawError: the base has no trajectory behind its warm-up, another one lacks its steps, or
                as for :meth:`fit`.
            MatchError: parameters that structure cannot match.
            OptimizerError: another rule than the base's trained a parameter.
        """
        runs = listed("profiles", profiles)
        profile = course_of(base_profile)
        return cls.fit(followed(profile, each, mapping, on_unmatched) for each in runs)

    def _check_moved(self) -> None:
        if not any(any(point.log_sizes) for of in self.points.values() for point in of):
            raise LawError(
                "the models do not differ from the base in size, so there is nothing to fit: "
                "compile models that are, say, 2, 4 and 8 times as wide or deep"
            )

    @cached_property
    def _of_base(self) -> dict[str, Role]:
        return base_roles(self.profile)

    @cached_property
    def roles(self) -> dict[str, RoleLaw]:
        """The law of each role that was matched, by the role's name, in execution order."""
        laws = {}
        for name in self.profile.parameters:
            if name in self.points:
                laws[name] = RoleLaw.fit(self._of_base[name], self.points[name])
        drift = drift_of(of.held_out for of in laws.values() if of.held_out)
        return {name: replace(of, drift=drift) for name, of in laws.items()}

    def check(self) -> tuple[Finding, ...]:
        """Return where the law does not hold, or is not known to; nothing, if it does everywhere.

        Such roles are predicted all the same, with a warning that counts them.
        """
        all_findings = [finding for of_role in self.roles.values() for finding in of_role.findings]
        if all(role.recordings == 1 for role in self._of_base.values()):
            text = (
                "the base is one recording, and other initial weights move its FSLRs by 0.4, "
                "which no interval here knows of; record several (flerm_fx.record_seeds)"
            )
            all_findings.append(Finding("", "one base", text))
        return tuple(all_findings)

    @property
    def held_out_error(self) -> float | None:
        """Root mean square, over roles, of the logarithm by which the largest size is missed.

        The largest is predicted by the law of the others. None where no role has another size.
        """
        tested = [of.held_out for of in self.roles.values() if of.held_out]
        return math.sqrt(sum(t.miss**2 for t in tested) / len(tested)) if tested else None

    def predict(
        self, role: str, sizes: Sequence[float], share: float = 1.0, depth: float | None = None
    ) -> Prediction:
        """Return the multiplier of a parameter of a role.

        Args:
            role: name of the first base parameter that has it.
            sizes: ratio of each of its dimensions to the base's.
            share: of the base's mass that it answers to.
            depth: times the base's, 1 over the share if None.

        Raises:
            LawError: the law knows nothing of the role, or of sizes in these directions, or its
                multiplier there is no finite number above 0.
        """
        if role in self.unresolved:
            return Prediction(1.0, 0.0, math.inf, math.inf)
        if role not in self.roles:
            raise LawError(self._unknown(role, role))
        of = self.roles[role]
        logs = [math.log(size) for size in (*sizes, 1 / share if depth is None else depth)]
        obstacle = of.obstacle(logs)
        if obstacle:
            raise LawError(f"{shown(role)}: {obstacle}")
        return of.predict(logs, share)

    def predicted(self, captured: Capture, matches: Mapping[str, Match]) -> tuple[Assignment, ...]:
        """Return what the law makes of each parameter of a captured model; see :func:`compile`.

        Args:
            captured: the model.
            matches: the base parameters that each of its parameters answers to.

        Raises:
            LawError: parameters that the law does not reach; the message names the first four.
        """
        graph = capture_graph(captured)
        nodes = {
            node.meta["parameter"]: node.name
            for node in (captured.graph_module.graph.nodes if captured.graph_module else ())
            if "parameter" in node.meta
        }
        deep = depths({n: m.base for n, m in matches.items() if m.base}, self._of_base)
        refused, rows = [], []
        for name, parameter in captured.parameters.items():
            op = graph.nodes[name]["op"]
            try:
                shape = tuple(parameter.shape)
                rows.append(
                    self._row(name, nodes.get(name, ""), op, shape, matches[name], deep.get(name))
                )
            except LawError as error:
                refused.append(f"{name!r}: {str(error).removeprefix(f'{shown(name)}: ')}")
        if refused:
            more = f", and {len(refused) - 4} more" if len(refused) > 4 else ""
            raise LawError("the law does not reach " + "; ".join(refused[:4]) + more)
        for text in self._cautions(rows, deep):
            warn(text, stacklevel=3)
        return tuple(rows)

    def _cautions(self, rows: Sequence[Assignment], depths: Mapping[str, float]) -> Iterator[str]:
        """Return what is to be said of predictions that are made all the same."""
        predicted = [row for row in rows if row.status == "predicted"]
        of_role = {row.parameter: self.roles[self._role(row)] for row in predicted}
        odd = dict.fromkeys(of.role.name for of in of_role.values() if of.findings)
        if odd:
            first = self.roles[next(iter(odd))]
            yield (
                f"the law does not hold, or is not known to, for {len(odd)} of "
                f"{len(set(map(id, of_role.values())))} roles; of {shown(first.role.name)}, "
                f"{first.findings[0].text}. See check()"
            )
        places = {row.parameter: self._log_sizes(row, depths[row.parameter]) for row in predicted}
        deep = [
            row
            for row in predicted
            if abs(places[row.parameter][-1]) > UNMOVED and not of_role[row.parameter].knows_depth
        ]
        if deep:
            row = max(deep, key=lambda row: abs(math.log(share_of(row))))
            yield (
                "the model has another depth than the base and all that the law was fitted to: "
                f"mass is conserved, by which {shown(row.parameter)} has {share_of(row):.3g} of "
                f"it. That is assumed and not fitted, of {len(deep)} parameters; fit some models "
                "in which the depth differs"
            )
        below = [row for row in predicted if of_role[row.parameter].is_below(places[row.parameter])]
        if below:
            yield (
                f"{len(below)} parameters, such as {shown(below[0].parameter)}, are smaller than "
                "the base's and than all that the law was fitted to, which says little of them"
            )

    def _role(self, row: Assignment) -> str:
        return self._of_base[leader(self.profile.optimizers, row.base)].name

    def _log_sizes(self, row: Assignment, depth: float) -> tuple[float, ...]:
        of_base = self.roles[self._role(row)].role.shape
        return (*log_sizes(row.shape, of_base), math.log(depth))

    def _row(
        self,
        name: str,
        node: str,
        op: str,
        shape: tuple[int, ...],
        match: Match,
        depth: float | None,
    ) -> Assignment:
        if not op or not match.base:
            status: Status = "unmatched" if op else "unused"
            return Assignment(name, node, op, shape, match.base, 0.0, NOT_MEASURED, 1.0, status)
        run = self.profile.optimizers
        first = leader(run, match.base)
        role, share = self._of_base[first].name, sum(part for _, part in match.base)
        start, late = self.profile.start, self.profile.late or self.profile.start
        fslrs = {b: start[b].value or late[b].value for b, _ in match.base}
        to_meet = wanted(run, match.base, fslrs)
        if role in self.unresolved:
            return Assignment(
                name, node, op, shape, match.base, to_meet, NOT_MEASURED, 1.0, "unresolved"
            )
        if role not in self.roles:
            raise LawError(self._unknown(role, name))
        of_base = self.profile.shapes[first]
        if len(shape) != len(of_base):
            raise LawError(
                f"it has shape {shape}, and its counterpart {self.profile.shapes[first]}"
            )
        ratios = [math.exp(x) for x in log_sizes(shape, of_base)]
        predicted = self.predict(role, ratios, share, depth)
        value = to_meet / predicted.multiplier
        target = Estimate(value, value * min(predicted.error, 1e3), "predicted", 0)
        return Assignment(
            name,
            node,
            op,
            shape,
            match.base,
            to_meet,
            target,
            predicted.multiplier,
            "predicted",
            error=predicted.error,
            interval=(predicted.low, predicted.high),
        )

    def _unknown(self, role: str, name: str) -> str:
        return (
            f"the law has no role {shown(role)}, to which {shown(name)} belongs; compile models "
            "that have such a parameter, and fit the law to them as well"
        )

    def __repr__(self) -> str:
        exponents = [e for of in self.roles.values() for e in of.line.exponents]
        models = {point.model for of in self.points.values() for point in of}
        text = f"ScalingLaw({len(self.roles)} roles, fitted to {len(models)} models"
        if exponents:
            text += f"; exponents {min(exponents):.2g} to {max(exponents):.2g}"
        error = self.held_out_error
        if error is not None:
            text += f"; largest size missed by {error:.0%}"
        return f"{text}; {len(self.check())} findings)"

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                "; ".join(", ".join(map(str, axis)) for axis in of.line.axes) or "-",
                "; ".join(f"{exponent:+.2f}" for exponent in of.line.exponents) or "-",
                ", ".join(finding.kind for finding in of.findings) or "-",
            )
            for name, of in self.roles.items()
        ]
        return folded_table(repr(self), ("role", "dimension", "exponent", "findings"), rows)

    def save(self, path: str | Path) -> None:
        """Write the law, and of its base what predicting needs, to one JSON file, or nothing.

        Args:
            path: of the file.

        Raises:
            LawError: it cannot be written; what was at the path stays.
        """
        write(path, self.profile, self.points, self.unresolved)

    @classmethod
    def load(cls, path: str | Path) -> ScalingLaw:
        """Return the law in a file.

        Args:
            path: of the file.

        Raises:
            LawError: there is no such file, it is no law, of another version, or damaged.
        """
        law = cls(*read(path))
        try:
            check_points(law.points)
            law._check_moved()
        except LawError as error:
            raise LawError(f"{shown(path)}: {error}") from error
        return law
