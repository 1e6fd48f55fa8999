"""``flerm_fx.measure``: FSLRs of given updates, with no training loop around."""

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flerm_fx.boundary.options import checked, choice, described
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import InputError, shown
from flerm_fx.model.distributed import Ranks, is_sharded, unwrapped
from flerm_fx.model.inputs import OutputFn, device_of, to_device
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.parallel import check_parallel
from flerm_fx.probe.planner import METHODS, Method
from flerm_fx.probe.prober import Prober
from flerm_fx.recipe.pool import Pool, probe_batch


def measure(
    model: nn.Module,
    updates: Mapping[str, Tensor],
    inputs: Pool,
    *,
    method: Method = "auto",
    rtol: float = 0.05,
    output_fn: OutputFn | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Estimate]:
    r"""How much each parameter's update changes the model's function.

    .. math:: \mathrm{FSLR}_l = \sqrt{\tfrac{1}{NK} \sum_n \lVert J_{n,l}\, \Delta\theta_l \rVert^2}

    for N examples and K output coordinates, to first order at the present weights (Milsom et al.
    2025, section 3). It is linear in the update: divide updates by the learning rate for the FSLR
    of the unit update.

    Args:
        model: any module; measured in its present mode and in the types of its weights, and left
            exactly as it was.
        updates: :math:`\Delta\theta` of each parameter to measure, by name, shaped like it. Where
            parameters are sharded over ranks, updates may be, too, and all ranks make this call.
        inputs: probe inputs: a tensor, a tuple or a dict of keyword arguments, batch first; or a
            list or DataLoader of such, of which the first is read.
        method: ``"exact"``, ``"sampled"`` (random cotangents for each example), the paper's
            ``"full_cov"``, ``"iid"`` or ``"kronecker"``; ``"auto"`` takes the cheapest of the
            first two that reaches ``rtol``.
        rtol: relative standard error to reach.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor).
        samples: draws per example (``"sampled"``) or passes (the paper's, 40 by default); it goes
            with no other method.
        generator: source of random cotangents; a fixed seed if None, so that calls repeat.
        device: where to compute, if not where the model is. Each weight and update is brought there
            where it is read, and let go behind it, so that neither has to fit as a whole.

    Returns:
        An :class:`~flerm_fx.probe.estimate.Estimate` for each update, in units of the output.

    Raises:
        InputError: an update for no trainable parameter or of another shape; unusable inputs.
        CaptureError: weights that are elsewhere, of a model that does not export to a graph.
        EstimateError: a NaN or infinite update or FSLR.

    Example::

        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> measure(model, {"weight": torch.ones(1, 2)}, x, method="exact")["weight"].value
        4.949747...
    """
    model, rtol = checked("model", model), checked("rtol", rtol)
    choice("method", method, METHODS)
    samples, generator = checked("samples", samples), checked("generator", generator)
    if samples is not None and method in ("auto", "exact"):
        raise InputError(
            f"samples is for the methods that draw, and not for method={method!r}; leave it out, "
            "or pass method='sampled'"
        )
    if not isinstance(updates, Mapping):
        raise InputError(f"updates must be a dict {{parameter: update}}, got {described(updates)}")
    output_fn, own = checked("output_fn", output_fn), device_of(model)
    sharded, device = is_sharded(model), checked("device", device) or own
    ranks = Ranks.of(model) if sharded else Ranks()
    batch = to_device(ranks.agreed(probe_batch(unwrapped(model), inputs)), device)
    elsewhere = sharded or device != own
    check_parallel(model, to_device(batch, own), output_fn)
    captured = (
        capture_outline(model, batch, output_fn, device=device)
        if elsewhere
        else capture(model, batch, output_fn)
    )
    parameters: dict[str, nn.Parameter] = (
        dict(model.named_parameters()) if elsewhere else captured.parameters
    )
    canonical: dict[str, Tensor] = {}
    for name, update in updates.items():
        if not isinstance(update, Tensor):
            raise InputError(f"the update of {name!r} is a {type(update).__name__}, not a tensor")
        if name not in captured.aliases:
            near = difflib.get_close_matches(name, captured.aliases, n=3, cutoff=0.0)
            raise InputError(
                f"updates name {name!r}, which is no trainable parameter of the model; "
                f"nearest: {', '.join(map(shown, near))}"
            )
        expected = tuple(captured.parameters[captured.aliases[name]].shape)
        if tuple(update.shape) != expected:
            raise InputError(
                f"the update of parameter {name!r} has shape {tuple(update.shape)}, "
                f"expected {expected}"
            )
        parameter = captured.parameters[captured.aliases[name]]
        if update.is_complex() and not parameter.is_complex():
            raise InputError(
                f"the update of parameter {name!r} is complex, and the parameter is "
                f"{parameter.dtype}; pass a real one"
            )
        if captured.aliases[name] in canonical:
            raise InputError(f"updates name the tied parameter {name!r} twice; pass it once")
        canonical[captured.aliases[name]] = update
    with untouched(model):
        estimates = Prober(captured, ranks).estimate(
            dict(parameters),
            canonical,
            batch,
            method=method,
            rtol=rtol,
            samples=samples,
            generator=generator,
        )
    return {name: estimates[captured.aliases[name]] for name in updates}
