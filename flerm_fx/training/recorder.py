"""A recorder holds what was measured at the start, and what each measurement adds."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from flerm_fx.boundary.notebook import folded_table
from flerm_fx.boundary.options import number
from flerm_fx.boundary.warned import warn
from flerm_fx.errors import InputError, OptimizerError, ProfileError, shown
from flerm_fx.probe.estimate import Estimate, rows
from flerm_fx.profile.moment import Moment
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory, known_losses
from flerm_fx.recipe.optimizers import listed
from flerm_fx.recipe.schedule import Schedule
from flerm_fx.start.procedure import MODEL_LOSS, StartProcedure
from flerm_fx.training.logs import FSLR, Log, log_call
from flerm_fx.training.observer import Attached, Observed, UpdateObserver, measured_at
from flerm_fx.training.running import RunningProber
from flerm_fx.training.states import State, a_loss, a_rate, a_step, items

if TYPE_CHECKING:
    import networkx as nx

FAR = 2.0
"""How many times the rate of the settled start a run's may be without a warning."""


@dataclass(frozen=True)
class Beginning:
    """A ``Beginning`` is what is measured of a base before its run is followed.

    Attributes:
        graph: its parameter graph.
        shapes: of its trainable parameters, in execution order.
        start: their FSLRs at the start.
        late: their FSLRs ``resolve_after`` steps later; empty where no FSLR is 0 at the start.
        settling: the moments on the way to the start; empty where it is the first step.
        resolve_after: as it was asked for.
    """

    graph: "nx.DiGraph"
    shapes: Mapping[str, tuple[int, ...]]
    start: Mapping[str, Estimate]
    late: Mapping[str, Estimate]
    settling: Mapping[int, Moment]
    resolve_after: int


class Recorder(Attached):
    """A ``Recorder`` is a recording in progress; see :func:`flerm_fx.record`.

    Leaving the ``with`` block, or :meth:`close`, takes the hooks off the optimizer; the profile
    stays.

    Args:
        model: the base, which trains.
        optimizer: its optimizer, or a list of them.
        procedure: by which the start was measured.
        beginning: what was measured.
        prober: measures the run's own updates.
        schedule: the steps to measure at.
        log: as for :func:`flerm_fx.record`.

    Example::

        >>> import flerm_fx, torch
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.ones(8).long()
        >>> adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> with flerm_fx.record(model, adam, x, y, settle=0, every=1) as recorder:
        ...     nn.functional.cross_entropy(model(x), y).backward()
        ...     adam.step()
        >>> recorder.profile.trajectory.steps
        (0,)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        procedure: StartProcedure,
        beginning: Beginning,
        prober: RunningProber,
        schedule: Schedule,
        log: Log | None,
    ) -> None:
        optimizers, run = listed(optimizer), procedure.optimizers
        self.model = model
        self.optimizer = optimizer
        self.resolve_after = beginning.resolve_after
        self.procedure = procedure
        self._graph = beginning.graph
        self._shapes = dict(beginning.shapes)
        self._start = dict(beginning.start)
        self._late = dict(beginning.late)
        self._settling = dict(beginning.settling)
        self._training = model.training
        self._prober = prober
        self._log = log
        self._steps: list[int] = []
        self._rates: list[float] = []
        self._losses: list[float] = []
        self._fslrs: dict[str, list[Estimate]] = {name: [] for name in self._shapes}
        self._warned: set[str] = set()
        self._settled_at = {
            id(p): run.rate(name) for name, p in model.named_parameters() if p.requires_grad
        }
        self._observer = UpdateObserver(
            model, optimizers, run, schedule.due, self._observed, self._saved
        )
        super().__init__(optimizers, self._before, self._observer.after)

    @property
    def step(self) -> int:
        """Optimizer steps seen so far; those that a gradient scaler skipped are none."""
        return self._observer.step

    @property
    def profile(self) -> BaseProfile:
        """What has been recorded so far."""
        loss = self.procedure.loss
        run = self.procedure.optimizers
        held = {name: run.index(name) for name in self._shapes} if run.others else {}
        return BaseProfile(
            parameters=tuple(self._shapes),
            shapes=dict(self._shapes),
            start=dict(self._start),
            late=dict(self._late),
            moments=dict(self._settling),
            trajectory=Trajectory(
                steps=tuple(self._steps),
                learning_rates=tuple(self._rates),
                fslrs={name: tuple(estimates) for name, estimates in self._fslrs.items()},
                losses=known_losses(self._losses),
            ),
            graph=self._graph,
            optimizers=replace(run, held=held),
            settle=self.procedure.settle,
            warmup=self.procedure.warmup,
            resolve_after=self.resolve_after,
            loss=MODEL_LOSS if loss is None else loss.name,
            method=self.procedure.method,
            rtol=self.procedure.rtol,
            seed=self.procedure.seed,
            pool=self.procedure.pool,
            training=self._training,
            model=shown(type(self.model).__name__),
        )

    def __repr__(self) -> str:
        return (
            f"Recorder({type(self.model).__name__}, {len(self._shapes)} parameters, "
            f"{self.profile.settled}; step {self.step}, {measured_at(self._steps)})"
        )

    def _repr_html_(self) -> str:
        columns = {"start": self._start} | {
            f"step {step}": {name: of[i] for name, of in self._fslrs.items()}
            for i, step in list(enumerate(self._steps))[-1:]
        }
        rows = [
            (name, *(f"{fslrs[name].value:.4g}" for fslrs in columns.values()))
            for name in self._shapes
        ]
        header = ("parameter", *(f"FSLR, {column}" for column in columns))
        return folded_table(repr(self), header, rows, header[1:])

    def state_dict(self) -> dict[str, Any]:
        """Return what has been recorded and seen so far, in plain numbers, for a checkpoint.

        Save it with the model's and the optimizer's; see :meth:`load_state_dict`.
        """
        measured = len(self._steps)
        return {
            "step": self._observer.step,
            "waiting": self._observer.waiting,
            "learning_rates": list(self.procedure.optimizers.learning_rates),
            "start": rows(self._start),
            "late": rows(self._late),
            "settling": {
                step: (
                    rows(moment.fslrs),
                    moment.output_rms,
                    dict(moment.update_sizes),
                    moment.loss,
                )
                for step, moment in self._settling.items()
            },
            "steps": list(self._steps),
            "rates": list(self._rates),
            "losses": list(self._losses),
            "fslrs": [rows({n: es[i] for n, es in self._fslrs.items()}) for i in range(measured)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a recording: the profile becomes that of one run, as if never interrupted.

        Attach a recorder as in the first run, then load the states of model, optimizer and
        recorder.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            InputError: the state is of other parameters or of another version, or has a number that
                is none of a recording; the recorder is as it was.
        """
        given = State("recorder", state, self.state_dict(), self._shapes)

        def moment(what: str, value: Any) -> Moment:
            fslrs, output_rms, sizes, loss = items(what, value, 4)
            return Moment(
                given.estimates(what, fslrs) if fslrs else {},
                number(what, output_rms, least=0),
                {n: number(what, size, least=0) for n, size in given.of_all(what, sizes).items()}
                if sizes
                else {},
                a_loss(what, loss),
            )

        step, waiting = given.step(), given.waiting()
        twin = copy.copy(self)
        twin._start = given.part("start", given.estimates)
        twin._late = given.part("late", given.estimates) if state["late"] else {}
        settling = given.by("settling", moment)
        twin._settling = {a_step("a step of settling", at): that for at, that in settling.items()}
        twin._steps = given.each("steps", a_step)
        twin._rates = given.each("rates", a_rate)
        twin._losses = given.each("losses", a_loss)
        measured = given.each("fslrs", given.estimates)
        twin._fslrs = {name: [fslrs[name] for fslrs in measured] for name in self._shapes}
        rates = given.each("learning_rates", lambda what, rate: number(what, rate, least=0))
        try:
            twin.procedure = self.procedure.at_rates(rates)
            _ = twin.profile  # which raises where its parts do not agree
        except (OptimizerError, ProfileError) as error:
            raise InputError(f"the recorder's state is of another recording: {error}") from error
        vars(self).update(vars(twin))
        self._observer.step, self._observer.waiting = step, waiting

    def _before(self, optimizer: Optimizer) -> None:
        self._observer.before(optimizer)
        for group in optimizer.param_groups:
            rate, settled = group["lr"], self._settled_at.get(id(next(iter(group["params"]), None)))
            on_host = not isinstance(rate, Tensor) or rate.device.type == "cpu"
            if settled and on_host and float(rate) > FAR * settled:
                self._warn(
                    "far",
                    f"the learning rate is {float(rate):g} at step {self.step}, and the start was "
                    f"settled at {settled:g}; multipliers of a start at another rate than the "
                    "run's are off: record with lr=… set to its largest",
                )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warn(message, stacklevel=3)

    def _saved(self) -> Callable[[], None]:
        """Return what undoes :meth:`_observed`."""
        measured = len(self._steps)

        def undo() -> None:
            recorded: list[list[Any]] = [self._steps, self._rates, self._losses]
            recorded += self._fslrs.values()
            for rows_so_far in recorded:
                del rows_so_far[measured:]

        return undo

    def _observed(self, observed: Observed) -> Callable[[], None]:
        fslrs, loss = self._prober.estimate(observed), self._prober.loss(observed)
        self._losses.append(loss)
        self._steps.append(observed.step)
        held = self.procedure.optimizers.held
        first = [r for name, r in observed.rates.items() if r > 0 and not held.get(name)]
        self._rates.append(next(iter(first), None) or next(r for r in observed.rates.values() if r))
        frozen = Estimate(0.0, 0.0, "exact", 0, "not trained at this step")
        for name in self._shapes:
            self._fslrs[name].append(fslrs.get(name, frozen))
        numbers = {FSLR + name: estimate.value for name, estimate in fslrs.items()}
        return log_call(self._log, numbers, observed.step)
