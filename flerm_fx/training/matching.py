"""A target is matched again and again while it trains, along the base's recorded trajectory."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flerm_fx.align.aligning import OnUnmatched
from flerm_fx.align.patterns import Mapped
from flerm_fx.assign.matches import find_matches, held_as_matched
from flerm_fx.assign.multipliers import floor
from flerm_fx.assign.pooling import trusted
from flerm_fx.assign.predictor import Predictor, profile_and_law
from flerm_fx.boundary.options import checked, choice
from flerm_fx.boundary.progress import Progress
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture
from flerm_fx.capture.ungraphed import capture_sharded, capture_ungraphed
from flerm_fx.emit.compiled import CompiledModel
from flerm_fx.emit.module import ModuleEmitter, scales_of
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.errors import InputError, OptimizerError
from flerm_fx.model.copying import copied
from flerm_fx.model.distributed import Ranks, is_sharded, unwrapped
from flerm_fx.model.inputs import Inputs, OutputFn, device_of, output_of, to_device
from flerm_fx.model.outline import outline
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.parallel import check_parallel
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.as_base import check_as_base, check_rates
from flerm_fx.recipe.likeness import check_state_is_free
from flerm_fx.recipe.loss import Loss
from flerm_fx.recipe.optimizers import Optimizers, listed
from flerm_fx.recipe.pool import Pool, probe_batch
from flerm_fx.start.precision import is_coarse, measurable, refined
from flerm_fx.start.procedure import MODEL_LOSS
from flerm_fx.training.course import Course
from flerm_fx.training.logs import Log
from flerm_fx.training.matcher import Matcher
from flerm_fx.training.plan import Plan
from flerm_fx.training.running import LossOfOutput, RunningProber, probe_loss
from flerm_fx.training.targets import PlainTarget, ScaledTarget


def match(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    base_profile: BaseProfile | Predictor,
    inputs: Pool | None = None,
    *,
    every: int = 100,
    at: Iterable[int] | Literal["start"] | None = None,
    stretch: float = 1.0,
    ema: float | None = None,
    output_fn: OutputFn | None = None,
    mapping: Mapped | None = None,
    on_unmatched: OnUnmatched = "error",
    method: Method = "auto",
    rtol: float | None = None,
    log: Log | None = None,
    progress: bool = True,
) -> Matcher:
    r"""Match a model to a base in its own run (Milsom et al. 2025, algorithm 1).

    At steps 0, ``every``, 2 ``every``, … hooks on the optimizer measure the FSLRs of the step's own
    unit updates, and set the multipliers

    .. math:: m_l(t) = \frac{\sum_b \mathrm{share}_{b \to l}\,
                             \mathrm{FSLR}_b(t / \mathrm{stretch})}{\mathrm{FSLR}_l(t)},

    for that step already and for those that follow. The base's FSLRs come from the trajectory that
    :func:`flerm_fx.record` followed, between its steps by interpolation of their logarithms, and
    after the last as they were there.

    *If the base's start was settled*, single measurements are not followed, since they scatter by a
    factor of 2:

    - A plain model begins with multipliers at which its first update is as large as the base's
      there (:func:`flerm_fx.start.update_size.update_sizes`), what :func:`flerm_fx.compile` returns
      with its own.
    - The run is also measured at the steps of the base's start (``settling``), beside those of
      ``every`` or ``at``, and compared with it there. Up to the last of them multipliers stay.
    - From there on both sides of the ratio are geometric means over all measurements behind the
      warm-up, of which older ones fade once there are eight, and multipliers are pooled over the
      parameters of a role as those of :func:`flerm_fx.compile` are
      (:func:`flerm_fx.assign.pooling.pooled`).

    A :class:`flerm_fx.ScalingLaw` in place of the profile says what a model begins with: what it
    predicts is there from the first step on, and is what measurements are drawn to, as far as its
    intervals trust it, in place of sizes of updates. Followed is the base that the law goes
    through.

    Otherwise, and where ``ema`` is given, each parameter has the multiplier that was just measured,
    and keeps it where an FSLR is zero or within its noise; at first it is 1, or the first guess.

    While the run warms up, below half of the rate that its groups have as a peak, multipliers are
    not matched: FSLRs at the first steps hold a wide model back.

    - A plain model keeps its weights, and its optimizer the groups that it has: multipliers enter
      during the step alone, so that schedulers, checkpoints and edits of the groups see the rates
      that they set. Several multipliers in one group are several groups during the step.
    - A model from :func:`flerm_fx.compile` with scale nodes starts from its own multipliers. Stored
      weights, gradients and optimizer state are rescaled with the nodes, so that neither the
      function nor the effective state moves.

    Args:
        model: the target, in the mode in which it trains; DDP, ``fully_shard`` and
            ``torch.compile`` may be around it.
        optimizer: its optimizer, or a list of them.
        base_profile: recorded on the base while it trained; or a law, which goes through such a
            base.
        inputs: probe batch for this model, the same on all ranks, or a list or DataLoader, of
            which the first is read; the profile's if None.
        every: steps between measurements.
        at: the steps to measure at, in place of every so many; ``"start"``, those of the base's
            start alone: multipliers are found once, in the run's own first steps, and stay. That
            needs no trajectory, and takes no simulated steps.
        stretch: length of this run over the length of the base's.
        ema: decay of a moving average over measurements of squared FSLRs, of both sides, corrected
            for its start, for each parameter by itself; 0 for none. The paper's code has 0.9. Base
            and target are to be measured equally often then. None as described above.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor).
        mapping: as for :func:`flerm_fx.compile`.
        on_unmatched: as for :func:`flerm_fx.compile`.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`, of one measurement; by default 0.05, and 0.2 where
            means are followed. A measurement is of a quarter of the examples then, which take
            turns.
        log: called with ``{"flerm/fslr/<parameter>": …, "flerm/multiplier/<parameter>": …}`` and
            the step at each measurement.
        progress: whether to show in a terminal or a notebook what a step
            waits for; the logger ``flerm_fx`` tells the same at the level ``INFO``.

    Returns:
        A :class:`Matcher`: a context manager that has the present ``multipliers``.

    Raises:
        InputError: unusable inputs or options, a profile without a trajectory, or with
            ``at="start"`` one whose start was not settled.
        MatchError: parameters that structure cannot match.
        LawError: parameters that a law does not reach.
        OptimizerError: a parameter outside the optimizer, another optimizer than the base's,
            several rates where the base had one, a rule whose state holds weights or learning
            rates, or scale nodes under one whose state does not follow them.
        EstimateError: a NaN or infinite update or FSLR; the step is undone first.

    Warns:
        UserWarning: at a step, once: the run still warms up where the base's start ends, or the
            base's targets do not fit this model's outputs, so that the trajectory has no losses.

    Example::

        >>> import flerm_fx, torch
        >>> def mlp(width):
        ...     torch.manual_seed(0)
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        >>> def train(model, optimizer):
        ...     for x, y in batches:
        ...         optimizer.zero_grad()
        ...         nn.functional.cross_entropy(model(x), y).backward()
        ...         optimizer.step()
        >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
        >>> small, large = mlp(8), mlp(64)
        >>> adam = torch.optim.Adam(small.parameters(), lr=1e-3)
        >>> with flerm_fx.record(small, adam, batches, every=10) as recorder:
        ...     train(small, adam)
        >>> adam = torch.optim.Adam(large.parameters(), lr=1e-3)
        >>> with match(large, adam, recorder.profile, every=10) as matcher:
        ...     train(large, adam)
        >>> matcher.trajectory.steps
        (0, 10, 20)
    """
    model = checked("model", model)
    base_profile, law = profile_and_law(base_profile)
    stretch = checked("stretch", stretch)
    plan = Plan.of(base_profile, every, at, stretch, ema)
    rtol = plan.rtol if rtol is None else checked("rtol", rtol)
    told = Progress("match", progress)
    choice("method", method, METHODS)
    choice("on_unmatched", on_unmatched, get_args(OnUnmatched))
    for name, value in (("output_fn", output_fn), ("mapping", mapping), ("log", log)):
        checked(name, value)
    ranks = Ranks.of(model)
    model = unwrapped(model)
    compiled = dict(model.multipliers) if isinstance(model, CompiledModel) else {}
    scaled = _scaled(model)
    model = model if scaled is None else scaled
    optimizers = listed(optimizer)
    run = Optimizers.of(model, optimizers)
    plain = model if scaled is None else scaled.skeleton
    probe = base_profile.pool[0][0] if inputs is None else probe_batch(plain, inputs)
    as_given = probe = to_device(ranks.agreed(probe), device_of(model))
    if method != "live":
        check_parallel(model, probe, output_fn, on_copy=False)
    sharded = scaled is None and is_sharded(model)
    copied_anew = (
        functools.partial(outline if sharded else copied, model) if scaled is None else scaled.plain
    )
    twin, ((probe, _),), obstacle = measurable(
        copied_anew, ((probe, None),), lambda m, batch: output_of(m, batch[0], output_fn)
    )
    capture_of = functools.partial(_captured, model, as_given, probe, output_fn, sharded)
    with told("capturing the model"):
        captured = capture_of(twin)
    ungraphed = sharded and (method == "live" or captured.probe_module is None)
    if obstacle:
        warn(
            "the model has weights in half precision and does not run in float32 "
            f"({obstacle}), so its steps are measured as it is: FSLRs are off by some "
            f"hundredths, and those below {floor(captured):.1%} of the largest are taken for "
            "rounding",
            stacklevel=2,
        )
    precise = is_coarse(model) and not obstacle
    matches = find_matches(base_profile, captured, mapping, on_unmatched)
    held = held_as_matched(base_profile, captured, matches)
    given = {name: (run.rule(name), run.rate(name)) for name in run.held}
    base = replace(base_profile.optimizers, held=held)
    check_as_base(base, given)
    check_rates(base, given)
    for rule in run.rules:
        check_state_is_free(rule)
    target: PlainTarget | ScaledTarget = (
        PlainTarget(model, optimizers, run)
        if scaled is None
        else ScaledTarget(scaled, optimizers, run)
    )
    measured = captured
    if ungraphed and captured.probe_module is not None:
        measured = capture_ungraphed(model, as_given, output_fn)
    prober = RunningProber(
        (lambda: model) if scaled is None else (lambda: scaled.skeleton),
        CaptureProber(measured, ranks),
        as_given if ungraphed else probe,
        output_fn=output_fn,
        method=method,
        rtol=rtol,
        seed=base_profile.seed,
        progress=told,
        loss=None if sharded else _loss(base_profile, inputs is None, output_fn, device_of(model)),
        captured=(lambda: capture_of(refined(copied_anew()) if precise else copied_anew()))
        if not ungraphed
        and (precise or sharded or (scaled is not None and scaled.emitter.in_place))
        else None,
        ungraphed=ungraphed,
    )
    course = Course(base_profile, captured, matches, plan.trajectory, stretch)
    rows = law.predicted(captured, matches) if law else ()
    predicted = {row.parameter: row.multiplier for row in rows} or compiled
    following = plan.following(course, run, trusted(rows))
    return Matcher(model, optimizers, run, target, predicted, following, prober, plan.schedule, log)


def _captured(
    model: nn.Module,
    given: Inputs,
    inputs: Inputs,
    output_fn: OutputFn | None,
    sharded: bool,
    twin: nn.Module,
) -> Capture:
    """Return a copy of a model, without weights if they are to be gathered; of a sharded one that
    does not export, the model itself, which takes the inputs as they were given.
    """
    if not sharded:
        return capture(twin, inputs, output_fn, original=model)
    return capture_sharded(model, inputs, output_fn, twin=twin, given=given)


def _loss(
    profile: BaseProfile, on_its_batch: bool, output_fn: OutputFn | None, device: torch.device
) -> LossOfOutput | None:
    """Return the base's loss on its own probe batch, as far as a profile holds it."""
    if profile.loss == MODEL_LOSS:
        return probe_loss(None, None, output_fn)
    if profile.loss is None or not on_its_batch:
        return None
    try:
        loss = Loss.from_name(profile.loss)
    except OptimizerError:  # of another version of torch: matching needs no loss
        return None
    return _where_it_fits(probe_loss(loss, to_device(profile.pool[0][1], device), output_fn))


def _where_it_fits(loss: LossOfOutput) -> LossOfOutput:
    """Return a loss with the base's targets, which is not known where they do not fit the target.

    Warns:
        UserWarning: they do not, once.
    """
    fits = True

    def known(output: Any) -> Tensor | None:
        nonlocal fits
        if not fits:
            return None
        try:
            return loss(output)
        except InputError as error:
            fits = False
            warn(
                "the base's targets do not fit this model's outputs, so that the trajectory of "
                f"this run has no losses; multipliers need none: {error}",
                stacklevel=2,
            )
            return None

    return known


def _scaled(model: nn.Module) -> ScaledModel | None:
    """Return the scale nodes of a model, if it has any."""
    if isinstance(model, ScaledModel):
        return model if model.emitter.has_nodes else None
    scales = scales_of(model)
    return ScaledModel(model, scales, ModuleEmitter) if scales else None
