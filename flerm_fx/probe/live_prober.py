"""A live prober plans how many passes of a live model a tolerance takes, and makes estimates of
them.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flerm_fx.boundary.compat import pytree
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import InputError
from flerm_fx.model.distributed import Ranks, is_sharded
from flerm_fx.model.inputs import Inputs, batch_size, difference
from flerm_fx.probe.coupling import (
    EXAMPLES,
    LARGE,
    TOLERANCE,
    apart,
    coarsest,
    copies_of_first,
    first_line,
)
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.live import LiveModel, alive
from flerm_fx.probe.live_shards import place_of
from flerm_fx.probe.live_signs import Signs, signs, unit
from flerm_fx.probe.planner import UNGRAPHED_EXAMPLE
from flerm_fx.probe.sampled import Samples, estimated, examples_of

MOST = 256
"""Passes over the probe batch at which draws end, whatever the tolerance: a standard error of 4.4 %
where a pass is one sample."""

FORWARD_AND_BACKWARD = 3.0
"""Forward passes in the time of a pass and its backward pass."""


@dataclass(frozen=True)
class LivePlan:
    """A ``LivePlan`` says into how many parts the output falls, and how often each is drawn.

    Attributes:
        parts: of each rank's rows, each of which has a sample of its own.
        ranks: that have rows.
        passes: over the whole probe batch.
        signs: what is drawn of a part.
    """

    parts: int
    ranks: int
    passes: int
    signs: Signs

    @property
    def cost(self) -> float:
        """Predicted work in forward passes of the whole batch."""
        of_pass = max(FORWARD_AND_BACKWARD, 2 * UNGRAPHED_EXAMPLE * self.parts * self.ranks)
        return self.passes * of_pass


def live_plan(
    rtol: float, examples: int, coordinates: int, ranks: int, passes: int | None = None
) -> LivePlan:
    r"""Return the fewest passes whose samples reach a tolerance.

    S samples have a relative standard error of :math:`\tfrac12 \sqrt{r / S}`, so
    :math:`S = r / (4\, \mathrm{rtol}^2)`, if all parts of the output change equally. Where half as
    many are needed as there are coordinates, each coordinate is taken by itself.

    Args:
        rtol: relative standard error to reach.
        examples: that do not influence each other; 1 if the batch is one example, which each rank
            runs as a whole, with draws of its own.
        coordinates: of an example.
        ranks: that share the data.
        passes: their number, whatever the tolerance.

    >>> live_plan(0.1, examples=16, coordinates=1000, ranks=2).passes
    4
    >>> live_plan(0.35, examples=64, coordinates=1000, ranks=4).parts
    2
    """
    coupled = examples == 1
    measuring = ranks if coupled else min(ranks, examples)
    samples = Signs(coordinates, 1).relative_variance / (4 * rtol**2)
    most = 1 if coupled else examples // measuring
    parts = min(max(1, math.ceil(samples / measuring)), most)
    needed = passes or max(1, math.ceil(samples / (measuring * parts)))
    share = measuring if coupled else 1  # coordinates are shared out, or each rank has them all
    single = coupled or parts * measuring == examples
    taken = needed * share * (1 if passes else 2)
    if single and taken >= coordinates and coordinates <= MOST * share:
        every = Signs(coordinates, coordinates, every=True)
        return LivePlan(parts, measuring, math.ceil(coordinates / share), every)
    largest = coordinates * (1 if coupled else math.ceil(examples / (measuring * parts)))
    needed = needed if passes else min(needed, MOST)
    return LivePlan(parts, measuring, needed, Signs(largest, needed * share))


class LiveProber:
    """A ``LiveProber`` measures a model by passes of it, and keeps whether examples are coupled.

    Args:
        captured: the model; its graph is not used.
        ranks: that measure it together.
    """

    def __init__(self, captured: Capture, ranks: Ranks) -> None:
        self._captured = captured
        self._ranks = ranks
        self._model = captured.model
        held = place_of(self._model)
        sharded = is_sharded(self._model)
        self._is_held = held is not None
        self._place: tuple[int, int] = held or ((0, 1) if sharded else (ranks.rank, ranks.count))
        self._is_shared = sharded or ranks.count > 1
        self._known: tuple[str, int] | None = None

    def plan(
        self,
        values: Mapping[str, Tensor],
        inputs: Inputs,
        rtol: float,
        samples: int | None = None,
    ) -> LivePlan:
        """Return what a tolerance takes; the first call runs the model on some examples.

        Raises:
            InputError: examples of one rank influence those of another.
        """
        _, examples, coordinates = self._look(values, inputs)
        return live_plan(rtol, examples, coordinates, self._place[1], samples)

    def coupling(self, values: Mapping[str, Tensor], inputs: Inputs) -> str:
        """Return why the batch is one example; empty if it is not."""
        return self._look(values, inputs)[0]

    def _look(self, values: Mapping[str, Tensor], inputs: Inputs) -> tuple[str, int, int]:
        """Return why the batch is one example, if it is; examples, and coordinates of each."""
        if self._known is None:
            with self._alive(values, {}) as live:
                self._known = self._looked_at(live, inputs)
        return self._sized(inputs)

    def _sized(self, inputs: Inputs) -> tuple[str, int, int]:
        """Return what is known, for this batch."""
        assert self._known is not None
        reason, coordinates = self._known
        return reason, 1 if reason else batch_size(inputs), coordinates

    def estimate(
        self,
        values: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        inputs: Inputs,
        *,
        rtol: float,
        samples: int | None,
        generator: torch.Generator,
        again: bool = True,
    ) -> dict[str, Estimate]:
        """Return estimates by as many passes as the tolerance takes, :data:`MOST` at most.

        Args:
            values: of all trainable parameters.
            updates: of those to measure.
            inputs: probe inputs, the same on all ranks.
            rtol: relative standard error to reach.
            samples: passes over the batch, whatever the tolerance.
            generator: seeds the signs.
            again: whether to draw more where the plan does not reach the tolerance.
        """
        plan = self.plan(values, inputs, rtol, samples)
        seed = self._ranks.agreed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )
        with self._alive(values, updates) as live:
            return self._drawn_until(live, inputs, plan, seed, rtol, again)

    def _drawn_until(
        self, live: LiveModel, inputs: Inputs, plan: LivePlan, seed: int, rtol: float, again: bool
    ) -> dict[str, Estimate]:
        """Draw by the plan, and if so asked, more until the tolerance is reached."""
        taken = [self._drawn(live, inputs, plan, seed, 0)]
        passes, note = plan.passes, self._note()
        while again and not plan.signs.every:
            found = estimated(taken, "live", note)
            worst = max(estimate.relative_error for estimate in found.values())
            if worst <= rtol:
                break
            if passes >= MOST:
                note = f"{note}; {rtol:g} would take more than {MOST} passes".removeprefix("; ")
                break
            more = min(max(1, round(passes * ((worst / rtol) ** 2 - 1))), MOST - passes)
            each = plan.signs.draws // plan.passes
            further = LivePlan(
                plan.parts, plan.ranks, more, Signs(plan.signs.coordinates, more * each)
            )
            taken.append(self._drawn(live, inputs, further, seed, passes))
            passes += more
        return estimated(taken, "live", note)

    def _alive(
        self, values: Mapping[str, Tensor], updates: Mapping[str, Tensor]
    ) -> AbstractContextManager[LiveModel]:
        return alive(
            self._captured,
            values,
            updates,
            place=self._place,
            is_held=self._is_held,
            is_shared=self._is_shared,
        )

    def _note(self) -> str:
        coupling = self._known[0] if self._known else ""
        return "; ".join(filter(None, (self._captured.reason, coupling)))

    def _drawn(
        self, live: LiveModel, inputs: Inputs, plan: LivePlan, seed: int, begun: int
    ) -> Samples:
        """Return squares of each part: the mean over passes, and over ranks if all run one."""
        _, examples, coordinates = self._sized(inputs)
        coupled = examples == 1
        place, ranks = self._place
        mine = [inputs] if coupled else self._parts(inputs, examples, plan)
        squares: list[Tensor] = []  # of each part, of shape (ranks, L)
        for part, rows in enumerate(mine):
            total: Any = 0.0
            for index in range(begun, begun + plan.passes):
                at = (index * plan.parts + part) * ranks + place
                coordinate = index * ranks + place if coupled else index

                def cotangent(output: Tensor, at: int = at, coordinate: int = coordinate) -> Tensor:
                    if not coupled and place >= plan.ranks:
                        return torch.zeros_like(output)
                    return (
                        unit(output, coordinate) if plan.signs.every else signs(output, seed + at)
                    )

                total = total + live.products(rows, cotangent)[: plan.ranks].square()
            squares.append(total)
        summed = torch.stack(squares)
        if coupled:
            summed = summed.sum(1, keepdim=True)
        groups = summed.shape[0] * summed.shape[1]
        draws = 1 if plan.signs.every else plan.signs.draws
        means = summed.flatten(0, 1) * (groups / (draws * examples * coordinates))
        return Samples(tuple(live.updates), means, plan.signs)

    def _parts(self, inputs: Inputs, examples: int, plan: LivePlan) -> list[Inputs]:
        """Return this rank's rows, in parts; the first rank's where it has none."""
        place = self._place[0] if self._place[0] < plan.ranks else 0
        rows = torch.arange(examples).tensor_split(plan.ranks)[place].tensor_split(plan.parts)
        return [
            pytree.tree_map_only(Tensor, lambda t, at=at: t[at[0] : at[-1] + 1], inputs)
            for at in rows
        ]

    def _looked_at(self, live: LiveModel, inputs: Inputs) -> tuple[str, int]:
        """Return why the batch is one example, if it is, and coordinates of each example."""
        whole_batch = live.output(inputs) if batch_size(inputs) <= EXAMPLES else None
        first = inputs
        if whole_batch is None:
            few = self._few(live, inputs)
            first = pytree.tree_map_only(Tensor, lambda t: t[:few], inputs)
        together = live.output(first) if whole_batch is None else whole_batch
        reason: str = self._ranks.agreed(self._coupling(live, first, together))
        self._check_apart(live, first, together)
        if reason:
            whole_batch = live.output(inputs) if whole_batch is None else whole_batch
            return reason, whole_batch.numel()
        return "", together.numel() // len(together)

    def _few(self, live: LiveModel, inputs: Inputs) -> int:
        """Return how many examples are run together and alone."""
        two = pytree.tree_map_only(Tensor, lambda t: t[:2], inputs)
        coordinates = live.output(two).numel() // 2
        return 2 if batch_size(inputs) * coordinates > LARGE else EXAMPLES

    def _coupling(self, live: LiveModel, first: Inputs, together: Tensor) -> str:
        if batch_size(first) == 1:
            return "the inputs' first dimensions differ, so all of them are one example"
        try:
            alone = torch.cat([live.output(one) for one in examples_of(first)])
        except Exception as error:  # a model may refuse a batch of 1 in any way
            return f"examples cannot be run one by one: {first_line(error)}"

        def of_copies() -> Tensor:
            return live.output(copies_of_first(first))

        return apart(alone, together, of_copies, *self._captured.parameters.values())

    def _check_apart(self, live: LiveModel, first: Inputs, together: Tensor) -> None:
        """Check that what other ranks run is nothing to the first one."""
        place, count = self._place
        if count == 1:
            return
        found = live.output(copies_of_first(first) if place else first)
        away = self._ranks.agreed(difference(found, together))
        if not away <= max(TOLERANCE, coarsest(together, *self._captured.parameters.values())):
            raise InputError(
                f"examples on one rank influence those on another (outputs differ by {away:.1e}), "
                "as SyncBatchNorm lets them, so that ranks have no samples of their own; measure "
                "the model in one process, or with BatchNorm in evaluation mode"
            )
