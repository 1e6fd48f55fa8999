"""A base model is recorded: its start at once, its trajectory as it trains."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flerm_fx.align.parameter_graph import capture_graph, to_json
from flerm_fx.boundary.options import checked, choice, flag
from flerm_fx.boundary.progress import Progress
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.capture.tracing import capture
from flerm_fx.capture.ungraphed import capture_ungraphed
from flerm_fx.errors import InputError
from flerm_fx.model.copying import copied, refuse_gradient_hooks
from flerm_fx.model.distributed import Ranks, is_sharded, unwrapped
from flerm_fx.model.inputs import OutputFn, device_of, to_device
from flerm_fx.model.outline import outline, with_buffers_of
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.parallel import check_parallel
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.profile.packing import check_pool
from flerm_fx.profile.text import check_printable
from flerm_fx.recipe.loss import LossFunction, resolve
from flerm_fx.recipe.optimizers import Optimizers, listed
from flerm_fx.recipe.pool import Pool, probe_pool
from flerm_fx.recipe.schedule import Schedule, default_settle, default_warmup
from flerm_fx.start.precision import (
    is_coarse,
    measurable,
    on_own_weights,
    refined,
    warn_of_rounding,
)
from flerm_fx.start.procedure import StartProcedure, batch_loss
from flerm_fx.start.slower import warn_of_rate
from flerm_fx.start.start import measure_settling, measure_start, start_of
from flerm_fx.training.logs import Log
from flerm_fx.training.recorder import Beginning, Recorder
from flerm_fx.training.running import RunningProber, probe_loss

SINGLE = (
    "the pool is a single batch, on which nothing can settle: FSLRs are those of the first step at "
    "the initial weights, and multipliers by them are worse than settled ones; pass some 20 batches"
    ", as a list of (inputs, targets) or a DataLoader, or settle=0 if the first step is meant"
)
"""Said where there is nothing to settle on, and nobody asked for that."""

TRAJECTORY = 2.0
"""How many times the start's relative error a point of the trajectory may have."""


def record(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    inputs: Pool,
    targets: Any = None,
    *,
    loss_fn: LossFunction | str | None = None,
    output_fn: OutputFn | None = None,
    every: int = 100,
    at: Iterable[int] | None = None,
    lr: float | None = None,
    settle: int | None = None,
    warmup: int | None = None,
    resolve_after: int = 4,
    method: Method = "auto",
    rtol: float = 0.05,
    generator: torch.Generator | None = None,
    log: Log | None = None,
    copy: bool = False,
    offload: bool = False,
    progress: bool = True,
) -> Recorder:
    r"""Record the function-space learning rates of a base model.

    The *start* is measured at once, on the model's own weights, which are put back bit for bit
    whatever happens, or on a copy: after ``settle`` simulated steps of the
    optimizer's rule, the FSLR of each parameter's next unit update
    :math:`u_l = \Delta\theta_l / \mathrm{lr}`. Behind a weight that starts at zero (LoRA's A while
    B is 0, a branch whose gate is 0) nothing has a gradient yet, and that FSLR is exactly 0; where
    there is such a parameter, the FSLRs of all are measured once more ``resolve_after`` steps
    later, and :func:`flerm_fx.compile` matches it by those. The *trajectory* follows as the model
    trains: hooks on the optimizer measure the real update at steps 0, ``every``, 2 ``every``, …,
    and the loss of the probe batch before it, unless weights are sharded. Training itself is left
    bit for bit what it is without recording. Decay that an optimizer takes from the weights beside
    the gradient's step (AdamW) is no part of an update.

    Args:
        model: the base model, in the mode in which it trains.
        optimizer: its optimizer, or a list of them, such as Muon for matrices and AdamW for the
            rest; every trainable parameter must be in one.
        inputs: probe pool: one batch (a tensor, tuple or dict of keyword arguments, batch first)
            or several, in a list or a DataLoader, of which the first 21 are read.
            FSLRs are measured on the first; simulated steps take the others.
        targets: what the loss compares with, batch by batch; None where ``inputs`` are pairs of
            inputs and targets, or the model returns its own loss: ``.loss``, or the tensor without
            dimensions in ``(loss, logits)``.
        loss_fn: ``loss_fn(output, targets)``, or its name in ``torch.nn.functional``; by default
            cross entropy for integer targets and mean squared error for floating ones.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor
            that has dimensions).
        every: steps between measurements of the trajectory.
        at: the steps to measure at, in place of every so many; what happens at first happens fast,
            so that powers of two show more than equal distances.
        lr: the run's learning rate, of the first parameter group, at which the start is settled;
            other groups' keep their proportion to it. By default what each group has: the
            ``max_lr`` that ``OneCycleLR`` writes there, else the ``initial_lr`` of other
            schedulers, else its ``lr``. A loop that warms up by setting ``lr`` itself has to pass
            its peak, and so has ``CyclicLR``.
        settle: simulated steps to the start; 0 is the paper's first step. Of more, the start is the
            mean over eight of them, evenly spaced behind the warm-up. By default five passes over
            the batches of the pool, and at most 100; of a single batch there is none, which is
            warned of.
        warmup: over how many of the settling steps the rate rises in equal parts from 0. By default
            four tenths: without it, a base at the best rate of a run that warms up may be thrown at
            once, and its FSLRs are then those of a model that does not learn.
        resolve_after: further simulated steps before the *late* start is measured, where a
            parameter's FSLR at the start is exactly 0; 0 leaves such a parameter unresolved.
        method: as for :func:`flerm_fx.measure`.
        rtol: as for :func:`flerm_fx.measure`, of the start. The trajectory, which has many points,
            is measured to twice that, at a quarter of the cost.
        generator: its seed becomes the profile's; 0 if None.
        log: called with ``{"flerm/fslr/<parameter>": FSLR}`` and the step at each measurement.
        copy: take the simulated steps on a copy of the model, which takes its memory once more, so
            that whatever else looks at the weights meanwhile never sees others.
        offload: keep what the weights are put back from elsewhere meanwhile: on the CPU if they are
            on another device, and else in a temporary file (in ``TMPDIR``).
        progress: whether to draw a bar while the start is measured, in a terminal or a notebook;
            the logger ``flerm_fx`` tells the same at the level ``INFO``.

    Returns:
        A :class:`Recorder`: a context manager with a ``profile``.

    Warns:
        UserWarning: the pool is a single batch, and ``settle`` is not given; weights are in half
            precision, and the model does not run in float32, in which it would be measured; or the
            model settles at a lower loss where it takes the same steps at a third of its rates.

    Raises:
        InputError: unusable inputs, targets or options.
        OptimizerError: a parameter outside the optimizer, learning rates that are all 0, or an
            optimizer that cannot be built again or stepped.
        EstimateError: a NaN or infinite loss, update or FSLR.
        DivergenceError: the simulated steps diverge.
        ProfileError: a name in the model has characters that are not printable, such as the end of
            a line, which a profile refuses.

    Warns:
        UserWarning: the run's learning rate is far above the one at which the start was settled.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
        >>> with record(model, optimizer, batches) as recorder:
        ...     for x, y in batches:
        ...         optimizer.zero_grad()
        ...         nn.functional.cross_entropy(model(x), y).backward()
        ...         optimizer.step()
        >>> recorder.profile.trajectory.steps
        (0,)
    """
    model = checked("model", model)
    lr = None if lr is None else checked("lr", lr)
    schedule = Schedule(every, at)
    settle, warmup = checked("settle", settle), checked("warmup", warmup)
    resolve_after, rtol = checked("resolve_after", resolve_after), checked("rtol", rtol)
    method = choice("method", method, METHODS)
    output_fn, log = checked("output_fn", output_fn), checked("log", log)
    generator = checked("generator", generator)
    copy, offload = flag("copy", copy), flag("offload", offload)
    told = Progress("record", progress)
    optimizers = listed(optimizer)
    ranks = Ranks.of(model)
    model = unwrapped(model)
    refuse_gradient_hooks(model)
    pool = ranks.agreed(probe_pool(model, inputs, targets))
    check_pool(pool)
    by_default = settle is None
    check_parallel(model, to_device(pool[0][0], device_of(model)), output_fn)
    settle = default_settle(len(pool)) if settle is None else settle
    warmup = default_warmup(settle) if warmup is None else warmup
    if warmup > max(settle - 1, 0):
        raise InputError(
            f"warmup is {warmup} of {settle} settling steps; expected fewer of them, so that "
            "the start is measured at the full rate"
        )
    own_loss = loss_fn is None and pool[0][1] is None
    loss = None if own_loss else resolve(loss_fn, pool[0][1])
    run = Optimizers.of(model, optimizers, lr)
    if by_default and not settle:
        warn(SINGLE, stacklevel=2)
    procedure = StartProcedure(
        optimizers=run,
        settle=settle,
        warmup=warmup,
        loss=loss,
        pool=pool,
        output_fn=output_fn,
        method=method,
        rtol=rtol,
        seed=generator.initial_seed() % 2**63 if generator is not None else 0,
        offload=offload,
    )
    plain, measured_pool, obstacle = measurable(
        lambda: copied(model), pool, lambda m, batch: batch_loss(m, batch, loss, output_fn)
    )
    measured_on = replace(procedure, pool=measured_pool)
    probe_inputs = to_device(measured_pool[0][0], device_of(model))
    with told("capturing the model"):
        twin = capture(plain, probe_inputs, output_fn, original=model)
    twin = on_own_weights(twin, model, measured_on, copy=copy)
    if obstacle:
        warn_of_rounding(twin, measured_on, obstacle, stacklevel=2)
    graph = capture_graph(twin)
    rules = [rule.spec() for rule in run.rules]
    check_printable([list(twin.parameters), to_json(graph), rules])
    prober = CaptureProber(twin, ranks)
    with told("measuring the start"):
        settled = measure_settling(twin, measured_on, prober=prober, is_sized=lambda _: settle > 0)
    start = start_of(settled.moments, measured_on)
    with told("trying a third of the rate, to compare"):
        warn_of_rate(twin, measured_on, settled.losses, stacklevel=2)
    # Exactly 0: an FSLR within rounding, such as that of an attention key's bias, is as small
    # at any later step.
    at_zero = any(e.value == 0 and graph.nodes[n]["op"] and run.rate(n) for n, e in start.items())
    steps_on = resolve_after if at_zero else 0
    late: dict[str, Estimate] = {}
    if steps_on:
        with told("measuring the late start"):
            late = measure_start(twin, measured_on.after(steps_on), prober=prober)
    beginning = Beginning(
        graph=graph,
        shapes={name: tuple(p.shape) for name, p in twin.parameters.items()},
        start=start,
        late=late,
        settling=settled.moments if settle else {},
        resolve_after=resolve_after,
    )
    precise = is_coarse(model) and not obstacle
    ungraphed = is_sharded(model) and (method == "live" or twin.probe_module is None)
    streamed = is_sharded(model) and not ungraphed
    followed_on = to_device(pool[0][0], device_of(model)) if ungraphed else probe_inputs

    def captured_anew() -> Capture:
        anew = outline(model) if streamed else copied(model)
        anew = refined(anew) if precise else anew
        if streamed:
            device = device_of(model)
            return capture_outline(model, probe_inputs, output_fn, device=device, twin=anew)
        return capture(anew, probe_inputs, output_fn, original=model)

    if streamed:  # from here on, weights are gathered where they are read
        anew = refined(outline(model)) if precise else outline(model)
        prober = prober.bound(with_buffers_of(model, anew, device_of(model)))
    elif ungraphed:
        itself = capture_ungraphed(model, followed_on, output_fn, twin.reason)
        prober = CaptureProber(itself, ranks)
    targets_of_probe = to_device(measured_pool[0][1], device_of(model))
    running = RunningProber(
        lambda: model,
        prober,
        followed_on,
        output_fn=output_fn,
        method=method,
        rtol=min(TRAJECTORY * rtol, 0.99),
        seed=procedure.seed,
        progress=told,
        loss=None if is_sharded(model) else probe_loss(loss, targets_of_probe, output_fn),
        captured=captured_anew if streamed or (precise and not ungraphed) else None,
        ungraphed=ungraphed,
    )
    return Recorder(model, optimizer, procedure, beginning, running, schedule, log)
