"""``flerm_fx.measure`` measures FSLRs of given updates, with no training loop around."""

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flerm_fx.boundary.options import checked, choice, described
from flerm_fx.capture.captured import Capture, modes
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.capture.tracing import capture
from flerm_fx.capture.ungraphed import capture_sharded, capture_ungraphed
from flerm_fx.errors import InputError, shown
from flerm_fx.model.distributed import Ranks, is_sharded, unwrapped
from flerm_fx.model.inputs import OutputFn, device_of, to_device
from flerm_fx.model.unchanged import Structure, settings
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.capture_prober import CaptureProber
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.parallel import check_parallel
from flerm_fx.probe.planner import METHODS, Method
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
    r"""Return how much each parameter's update changes the model's function.

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
        method: ``"exact"``, ``"sampled"`` (random cotangents for each example), ``"live"`` (passes
            of the model as it is, for which no graph is made), the paper's ``"full_cov"``,
            ``"iid"`` or ``"kronecker"``; ``"auto"`` takes the cheapest of the first two that
            reaches ``rtol``, and live passes where the model does not export to a graph.
        rtol: relative standard error to reach.
        output_fn: picks the output tensor (default ``.logits``, else the first floating tensor).
        samples: draws per example (``"sampled"``), or passes over the batch (``"live"``; the
            paper's, 40 by default); it goes with no other method.
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
    return Prober(model, inputs, output_fn=output_fn, device=device).measure(
        updates, method=method, rtol=rtol, samples=samples, generator=generator
    )


class Prober:
    """A ``Prober`` measures FSLRs of one model again and again: only the first call makes graphs.

    Each call is at the weights and buffers that the model has by then, and finds what a fresh
    :func:`flerm_fx.measure` finds. In another mode of the model, or after a change of a hook, of
    what is trained or of a plain attribute, the next call makes another graph. Whether examples
    influence each other is found at the first call.

    Args:
        model: as for :func:`flerm_fx.measure`; it is left exactly as it was.
        inputs: as for :func:`flerm_fx.measure`.
        output_fn: as for :func:`flerm_fx.measure`.
        device: as for :func:`flerm_fx.measure`.

    Raises:
        InputError: unusable inputs.

    Example::

        >>> model = nn.Linear(2, 1, bias=False)
        >>> prober = Prober(model, torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> update = {"weight": torch.ones(1, 2)}
        >>> prober.measure(update, method="exact")["weight"].value
        4.949747...
        >>> prober.measure({"weight": 2 * update["weight"]}, method="exact")["weight"].value
        9.899495...
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Pool,
        *,
        output_fn: OutputFn | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._model = model = checked("model", model)
        self._output_fn = checked("output_fn", output_fn)
        sharded, own = is_sharded(model), device_of(model)
        self._device = checked("device", device) or own
        self._is_elsewhere = sharded or self._device != own
        self._ranks = Ranks.of(model) if sharded else Ranks()
        batch = self._ranks.agreed(probe_batch(unwrapped(model), inputs))
        self._inputs = to_device(batch, self._device)
        self._structure = Structure(model)
        self._probers: dict[tuple[bool, ...], tuple[object, CaptureProber]] = {}

    def measure(
        self,
        updates: Mapping[str, Tensor],
        *,
        method: Method = "auto",
        rtol: float = 0.05,
        samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Estimate]:
        """FSLRs of updates at the model's present weights.

        Args:
            updates: as for :func:`flerm_fx.measure`.
            method: as for :func:`flerm_fx.measure`.
            rtol: as for :func:`flerm_fx.measure`.
            samples: as for :func:`flerm_fx.measure`.
            generator: as for :func:`flerm_fx.measure`.

        Raises:
            InputError: as for :func:`flerm_fx.measure`; or the model has other modules, parameters
                or buffers by now, or ones of other shapes, types or devices. The message names one.
            EstimateError: a NaN or infinite update or FSLR.
        """
        rtol = checked("rtol", rtol)
        choice("method", method, METHODS)
        samples, generator = checked("samples", samples), checked("generator", generator)
        if samples is not None and method in ("auto", "exact"):
            raise InputError(
                f"samples is for the methods that draw, and not for method={method!r}; leave it "
                "out, or pass method='sampled'"
            )
        if not isinstance(updates, Mapping):
            raise InputError(
                f"updates must be a dict {{parameter: update}}, got {described(updates)}"
            )
        change = self._structure.change(self._model)
        if change:
            raise InputError(
                f"the model has changed since its Prober was made: {change}; make another one"
            )
        prober = self._prober(method == "live")
        captured = prober.captured
        parameters: dict[str, nn.Parameter] = (
            dict(self._model.named_parameters()) if self._is_elsewhere else captured.parameters
        )
        canonical = _canonical(captured, updates)
        with untouched(self._model, runs=not prober.reads_graph_alone(method)):
            estimates = prober.estimate(
                dict(parameters),
                canonical,
                self._inputs,
                method=method,
                rtol=rtol,
                samples=samples,
                generator=generator,
            )
        return {name: estimates[captured.aliases[name]] for name in updates}

    def _prober(self, live: bool) -> CaptureProber:
        """Return the prober of the model's mode, as long as all that its graph holds is as it
        was.
        """
        mode, now = (live, *modes(self._model)), settings(self._model)
        if mode not in self._probers or self._probers[mode][0] != now:
            captured = self._live() if live else self._captured()
            self._probers[mode] = now, CaptureProber(captured, self._ranks)
        return self._probers[mode][1]

    def _captured(self) -> Capture:
        model, inputs = self._model, self._inputs
        on_own = to_device(inputs, device_of(model))
        check_parallel(model, on_own, self._output_fn, on_copy=False)
        if self._device != device_of(model):
            return capture_outline(model, inputs, self._output_fn, device=self._device)
        if is_sharded(model):
            return capture_sharded(model, inputs, self._output_fn)
        return capture(model, inputs, self._output_fn)

    def _live(self) -> Capture:
        if self._device != device_of(self._model):
            raise InputError(
                f"method='live' runs the model where it is, on {device_of(self._model)}, and "
                f"device= is {self._device}; leave one of the two out"
            )
        return capture_ungraphed(self._model, self._inputs, self._output_fn)


def _canonical(captured: Capture, updates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Updates by the canonical names of their parameters, each of the right shape and type."""
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
    return canonical
