"""Capture makes a model and sample inputs into an annotated ``torch.fx`` graph."""

import contextlib

from torch import nn

from flerm_fx.boundary.compat import (
    REGISTRIES,
    pytree,
)
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.capture.cleaning import graph_order
from flerm_fx.capture.eager_run import Run, run_eagerly, taken_name
from flerm_fx.capture.graphs import Exported, NoGraphError, check_same, export
from flerm_fx.capture.obstacles import not_run
from flerm_fx.errors import CaptureError, CaptureWarning, FlermError, InputError, shown
from flerm_fx.model.hooks import hooks_of, only
from flerm_fx.model.inputs import (
    Inputs,
    OutputFn,
    batch_size,
    call_arguments,
)
from flerm_fx.model.randomness import preserved_rng
from flerm_fx.model.untouched import untouched
from flerm_fx.model.values import NOTHING_TO_TRAIN, is_without_values, refuse_without_values


def capture(
    model: nn.Module,
    inputs: Inputs,
    output_fn: OutputFn | None = None,
    *,
    dynamic_batch: bool = True,
    original: nn.Module | None = None,
    on_meta: bool = False,
    graph: bool = True,
) -> Capture:
    """Capture ``model`` in its present mode as a graph of ATen operations.

    The graph comes from ``torch.export`` with a dynamic batch. Every ``get_attr`` of a trainable
    parameter carries ``node.meta["parameter"]``, its canonical name. Regions without gradient
    (``torch.no_grad()`` in the model) are inlined behind ``detach``; assertions are dropped, and so
    are objects in the output that a graph cannot return, such as a key-value cache (None stands in
    for them). Hooks of the user that only look are left out (see
    :func:`flerm_fx.model.changing.that_change`). The model's weights, buffers, gradients, mode and
    plain attributes, what its hooks reach, and the random state are left as they were.

    Args:
        model: any module; trainable is what ``requires_grad``.
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments, batch first.
        output_fn: picks the output tensor (see :func:`flerm_fx.model.inputs.select_output`).
        dynamic_batch: whether the graph is to serve other batch sizes.
        original: the model that this one is a copy of, whose weights it must not compute with.
        on_meta: capture a model on the device ``meta``, too, whose graph has no values to be
            compared with the model's.
        graph: whether to make one; a model that is measured without needs none.

    Warns:
        CaptureWarning: the model does not export and is measured without a graph; the message
            names the construct in the way.

    Raises:
        InputError: unusable inputs or output, no trainable parameter, a parameter that is not
            registered or has no values yet, or a model that does not compute with its own weights
            alone, as where a closure holds another one.
        CaptureError: the model cannot be run on ``inputs`` at all.

    Example::

        >>> import torch
        >>> captured = capture(nn.Linear(3, 2), torch.zeros(4, 3))
        >>> list(captured.parameters)
        ['weight', 'bias']
    """
    if dynamic_batch:
        dynamic_batch = batch_size(inputs) > 1
    refuse_without_values(model, on_meta=on_meta)
    names = canonical_names(model)
    if not names:
        raise InputError(NOTHING_TO_TRAIN)
    check_registered(model)
    args, kwargs = call_arguments(inputs)
    with untouched(model), contextlib.nullcontext() if original is None else untouched(original):
        # An eager run first, so that a model that is simply wrong fails with its own error.
        try:
            kept, run = (
                (hooks_of(model), Run({}, None, "", False))
                if is_without_values(model)
                else run_eagerly(model, args, kwargs, names, output_fn, original)
            )
        except FlermError:
            raise
        except Exception as error:  # whatever the user's code may raise
            raise not_run(model, inputs, error) from error
        reason = (run.obstacle or taken_name(model)) if graph else ""
        exported: Exported | None = None
        if graph and not reason:
            try:
                with only(model, kept), preserved_rng():
                    exported = export(model, args, kwargs, names, output_fn, dynamic_batch)
                if run.output is not None:
                    check_same(model, exported, run.output, args, kwargs)
            except NoGraphError as obstacle:
                exported, reason = None, str(obstacle)
        if exported is None and run.output is None:
            raise CaptureError(
                f"{type(model).__name__} is on the device 'meta' and does not export to a graph, "
                f"without which it would have to run: {shown(reason)}. Give it values, or change "
                "what is in the way"
            )
        if graph and exported is None:
            warn(
                f"{type(model).__name__} does not export to a graph, so it is measured by "
                f"passes of its own, which is slower: {shown(reason)}",
                CaptureWarning,
                stacklevel=2,
            )
    graph_module, probe_module, in_spec, guards = exported or (None, None, None, None)
    order = list(run.entries) if graph_module is None else graph_order(graph_module.graph)
    trainable = {names[id(p)]: p for p in model.parameters() if p.requires_grad}
    order = [
        *dict.fromkeys(order),
        *(name for name in trainable if name not in set(order)),
    ]
    return Capture(
        model=model,
        parameters={name: trainable[name] for name in order},
        aliases={
            alias: names[id(p)]
            for alias, p in model.named_parameters(remove_duplicate=False)
            if p.requires_grad
        },
        graph_module=graph_module,
        probe_module=probe_module,
        in_spec=in_spec,
        guards=guards,
        output_fn=output_fn,
        training=model.training,
        reason=reason,
        modules=run.entries,
        own_backward=run.own_backward,
        hooks=kept,
    )


def canonical_names(model: nn.Module) -> dict[int, str]:
    """Return canonical name of each trainable parameter, by object identity."""
    return {id(p): name for name, p in model.named_parameters() if p.requires_grad}


def check_registered(model: nn.Module) -> None:
    """Refuse parameters that a module holds and has not registered.

    Raises:
        InputError: the message names where one is.
    """
    registered = {id(p) for p in model.parameters()}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in REGISTRIES:
                continue
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, nn.Parameter) and id(leaf) not in registered:
                    where = shown(f"{path}.{attribute}" if path else attribute)
                    raise InputError(
                        f"{where} holds a Parameter of shape {tuple(leaf.shape)} that is not "
                        "registered, so neither an optimizer nor a graph sees it; keep it in an "
                        "nn.ParameterList or nn.ParameterDict, or assign it as an attribute"
                    )
