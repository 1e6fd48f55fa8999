"""One eager run of a model, before it is traced, shows what it enters, returns and would lose."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import (
    BACKWARD_HOOKS,
    BackwardCFunction,
    forward_class,
    is_of_torch,
    own_buffers,
    own_modules,
    own_parameters,
    taken_names,
)
from flerm_fx.capture.obstacles import where_defined, where_drawn, where_replaced
from flerm_fx.model.changing import that_change
from flerm_fx.model.hooks import Hook, function_of, hooks_of, only
from flerm_fx.model.inputs import (
    OutputFn,
    select_output,
)
from flerm_fx.model.randomness import rng_state, set_rng_state
from flerm_fx.model.stand_ins import Reads, stand_ins
from flerm_fx.model.untouched import untouched


@dataclass(frozen=True)
class Run:
    """A ``Run`` holds what one eager run of the model shows.

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


def run_eagerly(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: dict[int, str],
    output_fn: OutputFn | None,
    original: nn.Module | None,
) -> tuple[frozenset[Hook], Run]:
    """Return the user's hooks that change what is computed, and what a run with them shows."""
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
            gradients = torch.autograd.grad(output, leaves, row.to(output), allow_unused=True)
        zero = output.new_zeros(())  # the gradient of what is not used
        return [output.detach(), *(zero if g is None else g for g in gradients)]

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
            at = where_drawn(run) if drawn else where_replaced(run, replaced) if replaced else ""
        finally:
            for handle in handles:
                handle.remove()
    functions, leaves = _backward_pass(output)
    reads.check(leaves)
    # An operation registered with torch.library stays one node, and keeps its derivative.
    lost = [kind for kind in functions if not kind.__name__.startswith("GeneratedBackward")]
    backward = [hook for hook in kept if hook.kind in BACKWARD_HOOKS]
    obstacle = ""
    if drawn:
        obstacle = (
            f"the forward pass draws from {drawn}, and a graph would hold one draw for good{at}"
        )
    elif replaced:
        obstacle = (
            f"the forward pass puts a new tensor in the place of buffer {replaced!r}; update it "
            f"in place, as with copy_, to have a graph{at}"
        )
    elif backward:
        obstacle = "a backward hook changes gradients, which a graph would not" + where_defined(
            function_of(model, backward[0])
        )
    elif lost:
        name = lost[0].__name__.removesuffix("Backward")
        obstacle = (
            f"{name} is a torch.autograd.Function, whose backward pass a graph would lose"
            + where_defined(forward_class(lost[0]))
        )
    return kept, Run(entries, output.detach(), obstacle, bool(functions))


def _buffers(model: nn.Module) -> dict[str, int]:
    return {name: id(buffer) for name, buffer in model.named_buffers()}


def _replaced(before: Mapping[str, int], model: nn.Module) -> str:
    """Return the name of a buffer that was replaced by a new tensor, an update that a graph would
    lose.
    """
    changed = (n for n, identity in _buffers(model).items() if before.get(n, identity) != identity)
    return next(changed, "")


_QUOTED = frozenset('"\\\n\r')


def taken_name(model: nn.Module) -> str:
    """Say which name in the model a graph module has for itself, or cannot have in its code; "" if
    none.
    """
    own = taken_names()
    for name in (*own_modules(model), *own_parameters(model), *own_buffers(model)):
        if name in own:
            return (
                f"the model has an attribute {name!r}, and a graph module has another of that "
                f"name; call it otherwise to have a graph{where_defined(type(model))}"
            )
    state = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    for name, _ in state:
        # fx writes an attribute that is no identifier between quotes, and it as it is.
        if not _QUOTED.isdisjoint(name):
            return (
                f"the name {name!r} has a quote, a backslash or the end of a line in it, which a "
                "graph's code cannot hold; call it otherwise to have a graph"
                f"{where_defined(type(model))}"
            )
    return ""


def _backward_pass(output: Tensor) -> tuple[list[type], list[Tensor]]:
    """Return the backward passes that are written in Python, on the way from an output to its
    leaves.
    """
    kinds: list[type] = []
    leaves: list[Tensor] = []
    pending: list[Any] = [output.grad_fn]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if BackwardCFunction in type(node).__mro__ and not is_of_torch(type(node)):
            kinds.append(type(node))
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.append(leaf)
        fresh = {following for following, _ in node.next_functions} - seen
        seen |= fresh
        pending += fresh
    return kinds, leaves
