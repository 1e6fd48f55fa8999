"""A model may be captured without a graph: its parameters, as a run of it reaches them."""

from typing import Any

import torch
from torch import nn

from flerm_fx.boundary.compat import FORWARD_HOOKS
from flerm_fx.boundary.compat_sharding import forget_run
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.obstacles import not_run
from flerm_fx.capture.outlined import capture_outline
from flerm_fx.capture.tracing import canonical_names, capture, check_registered
from flerm_fx.errors import CaptureError, CaptureWarning, FlermError, InputError, shown
from flerm_fx.model.distributed import is_sharded, resharded
from flerm_fx.model.hooks import hooks_of, only
from flerm_fx.model.inputs import Inputs, OutputFn, device_of, output_of
from flerm_fx.model.untouched import untouched
from flerm_fx.model.values import NOTHING_TO_TRAIN


def capture_ungraphed(
    model: nn.Module, inputs: Inputs, output_fn: OutputFn | None = None, reason: str = ""
) -> Capture:
    """Capture a model as it is, to be measured by passes of it, and make no graph.

    Its weights may be sharded over ranks, all of which call this. Such a model runs with all of the
    user's hooks on forward passes, since nothing tells those that only look.

    Args:
        model: any module.
        inputs: as for :func:`~flerm_fx.capture.tracing.capture`.
        output_fn: picks the output tensor.
        reason: why there is no graph, if it is not that none was asked for.

    Raises:
        InputError: as for :func:`~flerm_fx.capture.tracing.capture`.
        CaptureError: the model cannot be run.

    >>> captured = capture_ungraphed(nn.Linear(3, 2), torch.zeros(4, 3))
    >>> list(captured.parameters), captured.graph_module
    (['weight', 'bias'], None)
    """
    if not is_sharded(model):
        return capture(model, inputs, output_fn, graph=False)
    resharded(model)
    names = canonical_names(model)
    if not names:
        raise InputError(NOTHING_TO_TRAIN)
    check_registered(model)
    of_module = {
        module: [names[id(p)] for p in module.parameters(recurse=False) if id(p) in names]
        for module in model.modules()
    }
    entries: dict[str, str] = {}

    def entered(module: nn.Module, *_: Any) -> None:
        for name in of_module[module]:
            entries.setdefault(name, type(module).__name__)

    hooks = frozenset(hook for hook in hooks_of(model) if hook.kind in FORWARD_HOOKS)
    with untouched(model), only(model, hooks), torch.no_grad():
        handles = [m.register_forward_pre_hook(entered) for m, own in of_module.items() if own]
        try:
            output_of(model, inputs, output_fn)
        except Exception as error:  # whatever the user's code may raise
            forget_run(model)
            if isinstance(error, FlermError):
                raise
            raise not_run(model, inputs, error) from error
        finally:
            for handle in handles:
                handle.remove()
            resharded(model)
    trainable = {names[id(p)]: p for p in model.parameters() if id(p) in names}
    return Capture(
        model=model,
        parameters={name: trainable[name] for name in (*entries, *trainable)},
        aliases={
            alias: names[id(p)]
            for alias, p in model.named_parameters(remove_duplicate=False)
            if id(p) in names
        },
        graph_module=None,
        probe_module=None,
        in_spec=None,
        guards=None,
        output_fn=output_fn,
        training=model.training,
        reason=reason,
        modules=entries,
        hooks=hooks,
    )


def capture_sharded(
    model: nn.Module,
    inputs: Inputs,
    output_fn: OutputFn | None = None,
    *,
    twin: nn.Module | None = None,
    given: Inputs | None = None,
) -> Capture:
    """Capture a sharded model by its shapes, or as it is where it does not export to a graph.

    Args:
        model: whose weights are sharded over ranks.
        inputs: as for :func:`~flerm_fx.capture.tracing.capture`.
        output_fn: picks the output tensor.
        twin: as for :func:`~flerm_fx.capture.outlined.capture_outline`.
        given: what the model itself takes, if ``twin`` is of other types.

    Warns:
        CaptureWarning: it does not export, and is measured by passes of its own.

    Raises:
        InputError, CaptureError: as for :func:`capture_ungraphed`.
    """
    try:
        return capture_outline(model, inputs, output_fn, device=device_of(model), twin=twin)
    except CaptureError as error:
        reason = shown(str(error.__cause__))
    warn(
        f"{type(model).__name__} does not export to a graph, so it is measured by passes of its "
        f"own: {reason}",
        CaptureWarning,
        stacklevel=3,
    )
    return capture_ungraphed(model, inputs if given is None else given, output_fn, reason)
