"""``torch.export`` makes a model into two graphs: the one to run, and the one to probe."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from flerm_fx.boundary.compat import (
    guards_of,
    pytree,
    tree_flatten_spec,
)
from flerm_fx.capture.cleaning import clean, output_only, without_selected_output
from flerm_fx.capture.exporting import TracedError, exporting
from flerm_fx.capture.functionalize import functionalize
from flerm_fx.capture.obstacles import construct, where_defined, where_written
from flerm_fx.capture.probed_as import separate_draws
from flerm_fx.capture.recurrent import layer_by_layer
from flerm_fx.model.inputs import (
    OutputFn,
    difference,
    last_bit,
    select_output,
)
from flerm_fx.model.untouched import untouched
from flerm_fx.ops.aliasing import is_functional


class NoGraphError(Exception):
    """Torch can make no graph of a model, or one that would not be the model."""


Exported = tuple[fx.GraphModule, fx.GraphModule, pytree.TreeSpec, Callable[..., None]]


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: dict[int, str],
    output_fn: OutputFn | None,
    dynamic_batch: bool,
) -> Exported:
    """Return the graph to run, the graph to probe, how inputs flatten, and the guards of their
    shapes.
    """
    wrapper = _WithSelectedOutput(model, output_fn, kwargs)
    shapes: Any = None
    if dynamic_batch:
        shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                shapes[leaf] = {0: torch.export.Dim.DYNAMIC}
    with exporting(), _made_by_torch(model):
        program = torch.export.export(wrapper, args, kwargs, strict=False, dynamic_shapes=shapes)
        guarded = program.module(check_guards=True)
    guards = guards_of(guarded, _unguarded)
    full = clean(guarded, model, names)
    probe = output_only(full)
    if not functionalize(probe.graph):
        with exporting(), _made_by_torch(model):
            functional = program.run_decompositions({}).module(check_guards=False)
        probe = output_only(clean(functional, model, names))
        if not is_functional(probe.graph):
            raise NoGraphError(
                f"memory that is read again is written in place{where_written(probe.graph)}, and "
                "that could not be made functional"
            )
    layer_by_layer(probe.graph)
    separate_draws(probe.graph)
    in_spec = without_selected_output(full)
    probe.graph.eliminate_dead_code(
        is_impure_node=lambda node: node.op in ("placeholder", "output") or "parameter" in node.meta
    )
    probe.graph.set_codegen(fx.graph.CodeGen())
    for graph_module in (full, probe):
        graph_module.graph.lint()
        graph_module.recompile()
    return full, probe, in_spec, guards


def _unguarded(*flat_inputs: Any) -> None:
    """Return a graph that holds for any input."""


@contextmanager
def _made_by_torch(model: nn.Module) -> Iterator[None]:
    """Turn whatever torch or the user's code raises in this block into a :class:`NoGraphError`."""
    try:
        yield
    except TracedError as traced:
        raise NoGraphError(construct(traced.error, model)) from traced.error
    except Exception as error:  # whatever torch makes of a model that it cannot export
        raise NoGraphError(construct(error, model)) from error


class _WithSelectedOutput(nn.Module):
    """The module returns the model's output and the one tensor of it that is measured."""

    def __init__(
        self, model: nn.Module, output_fn: OutputFn | None, keywords: Collection[str]
    ) -> None:
        super().__init__()
        self.model = model

        @functools.wraps(model.forward)  # so that placeholders get the model's argument names
        def forward(*args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
            try:
                output = model(*args, **kwargs)
                selected = select_output(output, output_fn)
            except Exception as error:
                raise TracedError(error) from error
            return _exportable(output), selected

        forward.__signature__ = _without_var_keyword(  # type: ignore[attr-defined]
            inspect.signature(model.forward), keywords
        )
        self.forward = forward
        self.training = model.training


def _without_var_keyword(
    signature: inspect.Signature, keywords: Collection[str]
) -> inspect.Signature:
    """Return a signature that names what ``**kwargs`` would take up: dynamic shapes of
    ``torch.export`` know named arguments alone.
    """
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    named = {p.name for p in kept if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}
    new = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY) for k in keywords if k not in named]
    return signature.replace(parameters=[*kept, *new])


def _exportable(output: Any) -> Any:
    """Return an output with None for the objects in it that a graph cannot return, such as a
    cache.
    """
    leaves, spec = pytree.tree_flatten(output)
    if len(leaves) == 1 and leaves[0] is output:  # nothing would be left
        return output
    kept = (Tensor, int, float, bool, str, torch.SymInt, torch.SymFloat, torch.SymBool)
    return pytree.tree_unflatten(
        [leaf if isinstance(leaf, kept) else None for leaf in leaves], spec
    )


def check_same(
    model: nn.Module,
    exported: "Exported",
    expected: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Check that the graph gives what the model gives, with the same random draws."""
    _, probe, in_spec, _ = exported
    with _made_by_torch(model), torch.no_grad(), untouched(probe):
        output = probe(*tree_flatten_spec((args, kwargs), in_spec))
    apart = difference(output, expected)
    if apart > max(1e-3, 16 * last_bit(model, expected)):
        raise NoGraphError(
            f"the graph gives other outputs than the model, by {apart:.1e}, so the forward pass "
            f"does something that no graph shows{where_defined(type(model).forward)}"
        )
