"""Capture: a model and sample inputs become an annotated ``torch.fx`` graph."""

import contextlib
import copy
import functools
import inspect
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from flerm_fx.capture.exporting import TracedError, exporting
from flerm_fx.capture.functionalize import functionalize
from flerm_fx.capture.probed_as import AT_ANY_STRIDES, PROBED_AS, separate_draws
from flerm_fx.capture.recurrent import layer_by_layer
from flerm_fx.compat import (
    BACKWARD_HOOKS,
    FORWARD_HOOKS,
    GUARDS,
    NO_GRAD_REGION,
    REGISTRIES,
    BackwardCFunction,
    forward_class,
    guards_of,
    input_spec,
    is_of_torch,
    own_buffers,
    own_modules,
    own_parameters,
    pytree,
    rename,
    return_first_alone,
    taken_names,
    tree_flatten_spec,
)
from flerm_fx.errors import CaptureError, CaptureWarning, FlermError, InputError, shown
from flerm_fx.model.changing import that_change
from flerm_fx.model.hooks import Hook, hooks_of, only
from flerm_fx.model.inputs import (
    Inputs,
    OutputFn,
    batch_size,
    call_arguments,
    difference,
    last_bit,
    select_output,
)
from flerm_fx.model.randomness import preserved_rng, rng_state, set_rng_state
from flerm_fx.model.stand_ins import Reads, stand_ins
from flerm_fx.model.substitution import called_with
from flerm_fx.model.untouched import untouched
from flerm_fx.model.values import is_without_values, refuse_without_values
from flerm_fx.ops.aliasing import is_functional
from flerm_fx.ops.table import facts


@dataclass(frozen=True)
class Capture:
    """A model as a graph, ready for passes; or, where it does not export, as a function.

    Attributes:
        model: the model itself; the graphs share its parameters and buffers.
        parameters: its trainable parameters by canonical name, in the order in which the forward
            pass reaches them (unused ones last). Tied parameters have one entry, under the first
            of their names.
        aliases: every name of a trainable parameter, with its canonical name.
        graph_module: the graph, called like the model; None on the eager path.
        probe_module: the same graph without mutation, from the flat inputs to the one output
            tensor whose change is measured; None on the eager path.
        in_spec: how arguments flatten to the graph's placeholders; None on the eager path.
        guards: takes the flat inputs and raises AssertionError where the graph is not the model,
            such as at a batch size on the other side of a branch; None on the eager path.
        output_fn: picks the output tensor.
        training: the mode at capture, which the graph has baked in.
        reason: why there is no graph; empty if there is one.
        modules: trainable parameters as a run enters their modules, with the modules' kinds.
        own_backward: whether something in the model has a backward pass that is no formula of
            torch: a ``torch.autograd.Function``, or an operation registered with ``torch.library``.
        hooks: the user's hooks that change outputs or gradients; the others only look.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    aliases: dict[str, str]
    graph_module: fx.GraphModule | None
    probe_module: fx.GraphModule | None
    in_spec: pytree.TreeSpec | None
    guards: Callable[..., None] | None
    output_fn: OutputFn | None
    training: bool
    reason: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    own_backward: bool = False
    hooks: frozenset[Hook] = frozenset()

    def apply(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """The output tensor f(inputs) with some parameters replaced; no buffer is changed."""
        args, kwargs = call_arguments(inputs)
        state = {**cloned_buffers(self.model), **parameters}
        # Those of the backward pass change gradients, which are not what is measured.
        with only(self.model, [hook for hook in self.hooks if hook.kind in FORWARD_HOOKS]):
            output = called_with(self.model, state, args, kwargs)
        return select_output(output, self.output_fn)

    def bound(self, model: nn.Module) -> "Capture":
        """The same graphs on another copy of the model, with its parameters and buffers.

        >>> captured = capture(nn.Linear(3, 2), torch.zeros(4, 3))
        >>> other = nn.Linear(3, 2)
        >>> captured.bound(other).parameters["weight"] is other.weight
        True
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        state = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
        return replace(
            self,
            model=model,
            parameters={name: parameters[name] for name in self.parameters},
            graph_module=_with_state(self.graph_module, state),
            probe_module=_with_state(self.probe_module, state),
        )

    def flat(self, inputs: Inputs) -> list[Any]:
        """The arguments of ``probe_module`` for these inputs."""
        assert self.in_spec is not None
        return tree_flatten_spec(call_arguments(inputs), self.in_spec)


def capture(
    model: nn.Module,
    inputs: Inputs,
    output_fn: OutputFn | None = None,
    *,
    dynamic_batch: bool = True,
    original: nn.Module | None = None,
    on_meta: bool = False,
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

    Warns:
        CaptureWarning: the model does not export; the eager path is taken, and the message names
            the construct in the way.

    Raises:
        InputError: unusable inputs or output, no trainable parameter, a parameter that is not
            registered or has no values yet, or a model that does not compute with its own weights
            alone, as where a closure holds another one.
        CaptureError: the model cannot be run on ``inputs`` at all.

    Example::

        >>> captured = capture(nn.Linear(3, 2), torch.zeros(4, 3))
        >>> list(captured.parameters)
        ['weight', 'bias']
    """
    if dynamic_batch:
        batch_size(inputs)
    refuse_without_values(model, on_meta=on_meta)
    names = _canonical_names(model)
    if not names:
        raise InputError("the model has no trainable parameter (none with requires_grad=True)")
    _check_registered(model)
    args, kwargs = call_arguments(inputs)
    with untouched(model), contextlib.nullcontext() if original is None else untouched(original):
        # An eager run first, so that a model that is simply wrong fails with its own error.
        try:
            kept, run = (
                (hooks_of(model), _Run({}, None, "", False))
                if is_without_values(model)
                else _run_eagerly(model, args, kwargs, names, output_fn, original)
            )
        except FlermError:
            raise
        except Exception as error:  # whatever the user's code may raise
            raise CaptureError(
                f"the model cannot be run on the inputs: {type(error).__name__}: {error}"
            ) from error
        reason = run.obstacle or _taken_name(model)
        exported: _Exported | None = None
        if not reason:
            try:
                with only(model, kept), preserved_rng():
                    exported = _export(model, args, kwargs, names, output_fn, dynamic_batch)
                if run.output is not None:
                    _check_same(exported, run.output, last_bit(model, run.output), args, kwargs)
            except _NoGraphError as obstacle:
                exported, reason = None, str(obstacle)
        if exported is None and run.output is None:
            raise CaptureError(
                f"{type(model).__name__} is on the device 'meta' and does not export to a graph, "
                f"without which it would have to run: {shown(reason)}. Give it values, or change "
                "what is in the way"
            )
        if exported is None:
            warnings.warn(
                f"{type(model).__name__} does not export to a graph, so it is measured eagerly, "
                f"which is slower: {shown(reason)}",
                CaptureWarning,
                stacklevel=2,
            )
    graph_module, probe_module, in_spec, guards = exported or (None, None, None, None)
    order = list(run.entries) if graph_module is None else _graph_order(graph_module.graph)
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


def _with_state(
    graph_module: fx.GraphModule | None, state: Mapping[str, Any]
) -> fx.GraphModule | None:
    """A copy of a graph module with other parameters and buffers, and its own constants."""
    if graph_module is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, for a graph
        graph = copy.deepcopy(graph_module.graph)
    targets = [str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")]
    root = {t: state[t] if t in state else _attribute(graph_module, t) for t in targets}
    twin = fx.GraphModule(root, graph, class_name=type(graph_module).__name__)
    twin.train(graph_module.training)
    return twin


def modes(model: nn.Module) -> tuple[bool, ...]:
    """What a capture has baked in besides the shapes: the mode of each module."""
    return tuple(module.training for module in model.modules())


def cloned_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's buffers, for a run that may update them."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def _canonical_names(model: nn.Module) -> dict[int, str]:
    """Canonical name of each trainable parameter, by object identity."""
    return {id(p): name for name, p in model.named_parameters() if p.requires_grad}


def _check_registered(model: nn.Module) -> None:
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


class _NoGraphError(Exception):
    """A graph that torch cannot make of a model, or that would not be the model."""


@dataclass(frozen=True)
class _Run:
    """What one eager run of the model shows.

    Attributes:
        entries: trainable parameters as the run enters their modules, with the modules' kinds.
        output: the selected output; None for a model without values, which is not run.
        obstacle: what a graph would lose without an error; empty if nothing.
        own_backward: see :class:`Capture`.
    """

    entries: dict[str, str]
    output: Tensor | None
    obstacle: str
    own_backward: bool


def _run_eagerly(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: dict[int, str],
    output_fn: OutputFn | None,
    original: nn.Module | None,
) -> tuple[frozenset[Hook], _Run]:
    """The user's hooks that change what is computed, and what a run with them shows."""
    weights = stand_ins(model)
    trained = {id(weights[name]): name for name in names.values()}

    def run() -> Tensor:
        output = torch.func.functional_call(model, dict(weights), args, kwargs)
        return select_output(output, output_fn)

    def output_and_gradients() -> list[Tensor]:
        with torch.enable_grad():
            output = run()
            if not output.requires_grad:
                return [output]
            row = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
            leaves = [p for p in weights.values() if p.requires_grad]
            found = torch.autograd.grad(output, leaves, row.to(output), allow_unused=True)
        zero = output.new_zeros(())  # the gradient of what is not used
        return [output.detach(), *(zero if g is None else g for g in found)]

    kept = that_change(model, output_and_gradients) if hooks_of(model) else frozenset()
    entries: dict[str, str] = {}

    def entered(module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():  # the branches of torch.cond, which allow no side effect
            return
        for parameter in module.parameters(recurse=False):
            if id(parameter) in trained:
                entries.setdefault(trained[id(parameter)], type(module).__name__)

    buffers = _buffers(model)
    with untouched(model), only(model, kept), torch.enable_grad():
        handles = [module.register_forward_pre_hook(entered) for module in model.modules()]
        try:
            before = rng_state()
            reads = Reads(model, weights, original)
            try:
                with reads:
                    output = run()
            except Exception:  # torch.cond cannot be looked into; the model's own errors come again
                set_rng_state(before)
                output = run()
            drawn = before.foreign(rng_state())
            replaced = _replaced(buffers, model)
        finally:
            for handle in handles:
                handle.remove()
    functions, leaves = _backward_pass(output)
    reads.check(leaves)
    # An operation registered with torch.library stays one node, and keeps its derivative.
    lost = [kind for kind in functions if not kind.__name__.startswith("GeneratedBackward")]
    obstacle = replaced
    if drawn:
        obstacle = f"the forward pass draws from {drawn}, and a graph would hold one draw for good"
    elif not obstacle and any(hook.kind in BACKWARD_HOOKS for hook in kept):
        obstacle = "a backward hook changes gradients, which a graph would not"
    elif not obstacle and lost:
        name = lost[0].__name__.removesuffix("Backward")
        obstacle = (
            f"{name} is a torch.autograd.Function, whose backward pass a graph would lose"
            + _where_defined(forward_class(lost[0]))
        )
    return kept, _Run(entries, output.detach(), obstacle, bool(functions))


def _buffers(model: nn.Module) -> dict[str, int]:
    return {name: id(buffer) for name, buffer in model.named_buffers()}


def _replaced(before: Mapping[str, int], model: nn.Module) -> str:
    """A new tensor in a buffer's place is an update that a graph would lose."""
    for name, identity in _buffers(model).items():
        if before.get(name, identity) != identity:
            return (
                f"the forward pass puts a new tensor in the place of buffer {name!r}; update it "
                "in place, as with copy_, to have a graph"
            )
    return ""


_QUOTED = frozenset('"\\\n\r')


def _taken_name(model: nn.Module) -> str:
    """A name in the model that a graph module has for itself, or whose code cannot hold it."""
    own = taken_names()
    for name in (*own_modules(model), *own_parameters(model), *own_buffers(model)):
        if name in own:
            return (
                f"the model has an attribute {name!r}, and a graph module has another of that "
                "name; call it otherwise to have a graph"
            )
    state = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    for name, _ in state:
        # fx writes an attribute that is no identifier between quotes, and it as it is.
        if not _QUOTED.isdisjoint(name):
            return (
                f"the name {name!r} has a quote, a backslash or the end of a line in it, which a "
                "graph's code cannot hold; call it otherwise to have a graph"
            )
    return ""


def _where_defined(kind: type) -> str:
    """`` (file:line)`` of a class, if it is known."""
    try:
        return f" ({inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]})"
    except (OSError, TypeError):
        return ""


def _backward_pass(output: Tensor) -> tuple[list[type], list[Tensor]]:
    """The backward passes that are written in Python, on the way from an output to its leaves."""
    found: list[type] = []
    leaves: list[Tensor] = []
    pending: list[Any] = [output.grad_fn]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if BackwardCFunction in type(node).__mro__ and not is_of_torch(type(node)):
            found.append(type(node))
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.append(leaf)
        fresh = {following for following, _ in node.next_functions} - seen
        seen |= fresh
        pending += fresh
    return found, leaves


def _check_same(
    exported: "_Exported",
    expected: Tensor,
    eps: float,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """The graph must give what the model gives, with the same random draws."""
    _, probe, in_spec, _ = exported
    with torch.no_grad(), untouched(probe):
        found = probe(*tree_flatten_spec((args, kwargs), in_spec))
    apart = difference(found, expected)
    if apart > max(1e-3, 16 * eps):
        raise _NoGraphError(f"the graph gives other outputs than the model, by {apart:.1e}")


_Exported = tuple[fx.GraphModule, fx.GraphModule, pytree.TreeSpec, Callable[..., None]]


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: dict[int, str],
    output_fn: OutputFn | None,
    dynamic_batch: bool,
) -> _Exported:
    wrapper = _WithSelectedOutput(model, output_fn)
    shapes: Any = None
    if dynamic_batch:
        shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                shapes[leaf] = {0: torch.export.Dim.DYNAMIC}
    with exporting(), _made_by_torch():
        program = torch.export.export(wrapper, args, kwargs, strict=False, dynamic_shapes=shapes)
        guarded = program.module(check_guards=True)
    guards = guards_of(guarded, _unguarded)
    full = _clean(guarded, model, names)
    probe = _output_only(full)
    if not functionalize(probe.graph):
        with exporting(), _made_by_torch():
            functional = program.run_decompositions({}).module(check_guards=False)
        probe = _output_only(_clean(functional, model, names))
        if not is_functional(probe.graph):
            raise _NoGraphError("an in-place operation could not be made functional")
    layer_by_layer(probe.graph)
    separate_draws(probe.graph)
    in_spec = _without_selected_output(full)
    probe.graph.eliminate_dead_code(
        is_impure_node=lambda node: node.op in ("placeholder", "output") or "parameter" in node.meta
    )
    probe.graph.set_codegen(fx.graph.CodeGen())
    for graph_module in (full, probe):
        graph_module.graph.lint()
        graph_module.recompile()
    return full, probe, in_spec, guards


def _unguarded(*flat_inputs: Any) -> None:
    """A graph that holds for any input."""


@contextmanager
def _made_by_torch() -> Iterator[None]:
    """Nothing but torch and the user's code may run in here: what they raise is no graph."""
    try:
        yield
    except TracedError as traced:
        raise _NoGraphError(_construct(traced.error)) from traced.error
    except Exception as error:  # whatever torch makes of a model that it cannot export
        raise _NoGraphError(_construct(error)) from error


class _WithSelectedOutput(nn.Module):
    """The model, returning its output and the one tensor of it that is measured."""

    def __init__(self, model: nn.Module, output_fn: OutputFn | None) -> None:
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

        self.forward = forward
        self.training = model.training


def _exportable(output: Any) -> Any:
    """An output with None for the objects in it that a graph cannot return, such as a cache."""
    leaves, spec = pytree.tree_flatten(output)
    if len(leaves) == 1 and leaves[0] is output:  # nothing would be left
        return output
    kept = (Tensor, int, float, bool, str, torch.SymInt, torch.SymFloat, torch.SymBool)
    return pytree.tree_unflatten(
        [leaf if isinstance(leaf, kept) else None for leaf in leaves], spec
    )


def _clean(exported: fx.GraphModule, model: nn.Module, names: dict[int, str]) -> fx.GraphModule:
    """A plain graph module with the model's own attribute names and annotated parameters."""
    graph = exported.graph
    _inline_no_grad(exported)
    root: dict[str, Any] = {}
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = _own_stack(node.meta["nn_module_stack"])
        if facts(node.target).kind == "assertion" or (
            node.op == "call_module" and node.target == GUARDS
        ):
            graph.erase_node(node)
        elif node.target in AT_ANY_STRIDES:
            node.target = AT_ANY_STRIDES[node.target]
        elif node.op in ("get_attr", "call_module"):
            value = _attribute(exported, node.target)
            node.target = node.target.removeprefix("model.")
            if isinstance(value, nn.Parameter) and id(value) in names:
                name = names[id(value)]
                if name in first:  # a tied parameter's other name
                    node.replace_all_uses_with(first[name])
                    graph.erase_node(node)
                    continue
                node.target = name
                node.meta = {
                    **node.meta,
                    "parameter": name,
                    "shape": tuple(value.shape),
                }
                first[name] = node
            elif not node.users:
                graph.erase_node(node)
                continue
            rename(node, node.target.replace(".", "_"))
            root[node.target] = value
    clean = fx.GraphModule(root, graph, class_name=type(model).__name__)
    clean.train(model.training)
    return clean


def _own_stack(stack: Mapping[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """The module stack without the wrapper around the model."""
    return {
        key: (path.removeprefix("model").removeprefix("."), kind)
        for key, (path, kind) in stack.items()
        if path
    }


def _attribute(module: nn.Module, target: str) -> Any:
    return functools.reduce(getattr, target.split("."), module)


def _inline_no_grad(graph_module: fx.GraphModule) -> None:
    """Replace ``wrap_with_set_grad_enabled(flag, submodule, …)`` by the submodule's nodes."""
    graph = graph_module.graph
    wrapped = NO_GRAD_REGION
    while regions := list(graph.find_nodes(op="call_function", target=wrapped)):
        for region in regions:
            enabled, submodule, *operands = region.args
            body = _attribute(graph_module, submodule.target).graph
            with graph.inserting_before(region):
                if not enabled:
                    operands = [_detached(o) if isinstance(o, fx.Node) else o for o in operands]
                values = dict(zip(body.find_nodes(op="placeholder"), operands, strict=True))
                outputs: Any = graph.graph_copy(body, values)
                if not enabled:
                    outputs = pytree.tree_map_only(fx.Node, _detached, outputs)
            for item in list(region.users):
                item.replace_all_uses_with(outputs[item.args[1]])
                graph.erase_node(item)
            graph.erase_node(region)
            if not submodule.users:
                graph.erase_node(submodule)


def _detached(node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return node
    detached = node.graph.call_function(torch.ops.aten.detach.default, (node,))
    detached.meta = {**node.meta, "no_grad": True}
    return detached


def _returned(output: fx.Node) -> tuple[Any, ...]:
    (returned,) = output.args
    assert isinstance(returned, tuple)
    return returned


def _output_only(full: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph that returns the selected output tensor alone."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in full.graph.nodes:
        if node.op == "output":
            *_, selected = _returned(node)
            graph.output(copies[selected])
        else:
            if node.meta.get("no_grad"):  # it stops gradients, not the change of the function
                copies[node] = copies[node.all_input_nodes[0]]
                continue
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].target = PROBED_AS.get(node.target, node.target)
    return fx.GraphModule(full, graph, class_name="Probe")


def _without_selected_output(full: fx.GraphModule) -> pytree.TreeSpec:
    """Make the graph return what the model returns; its input specification."""
    output = full.graph.output_node()
    output.args = (tuple(_returned(output)[:-1]),)
    return_first_alone(full.graph)
    return input_spec(full.graph)


def _graph_order(graph: fx.Graph) -> list[str]:
    """Canonical names of the used parameters, in order of first use."""
    return [
        argument.meta["parameter"]
        for node in graph.nodes
        if node.op != "get_attr"
        for argument in node.all_input_nodes
        if "parameter" in argument.meta
    ]


def _construct(error: Exception) -> str:
    """The construct that export stopped at: the error and the user's line that raised it."""
    summary = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {summary[0] if summary else ''}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename.replace("\\", "/")
        and not frame.filename.startswith(os.path.dirname(__file__))
        and not frame.filename.startswith("<")
    ]
    if frames:
        frame = frames[-1]
        message += f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return message
