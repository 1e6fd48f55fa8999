"""This module differentiates single operations and functions with whatever torch has for them."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flerm_fx.boundary.compat import pytree
from flerm_fx.model.inputs import is_differentiable
from flerm_fx.model.randomness import preserved_rng, rng_state, set_rng_state
from flerm_fx.ops.operation import is_opaque, is_random


def jvp(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tangents: Mapping[int, Tensor],
) -> Any:
    r"""Tangent of one operation, with every other argument held constant.

    .. math:: \dot y = \partial_\theta\, \mathrm{op}(x, \theta) \, \dot\theta

    Args:
        op: the operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        tangents: tangent of each varying argument, by its position among the flattened arguments.

    Returns:
        The tangent, shaped like the operation's output: by forward-mode differentiation where there
        is a rule, else by reverse mode twice, and by central differences where torch has neither
        or the operation is from outside of torch.

    >>> linear = torch.ops.aten.linear.default
    >>> x, w = torch.ones(1, 2), torch.zeros(3, 2)
    >>> jvp(linear, (x, w), {}, {1: torch.ones(3, 2)})
    tensor([[2., 2., 2.]])
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    positions = sorted(tangents)

    def local(*primals: Tensor) -> Any:
        filled = list(leaves)
        for position, primal in zip(positions, primals, strict=True):
            filled[position] = primal
        filled_args, filled_kwargs = pytree.tree_unflatten(filled, spec)
        return op(*filled_args, **filled_kwargs)

    primals = tuple(_unexpanded(leaves[position]) for position in positions)
    directions = tuple(
        tangents[position].to(primal.dtype)
        for position, primal in zip(positions, primals, strict=True)
    )
    if is_opaque(op):
        return central_difference(local, primals, directions)
    _load_forward_mode()
    state = rng_state() if is_random(op) else None
    try:
        return torch.func.jvp(local, primals, directions)[1]
    except NotImplementedError:
        if state is not None:
            set_rng_state(state)
        with contextlib.suppress(NotImplementedError):
            return _jvp_by_two_vjps(local, primals, directions)
    return central_difference(local, primals, directions)


def central_difference(
    function: Callable[..., Any], primals: tuple[Tensor, ...], directions: tuple[Tensor, ...]
) -> Any:
    r"""Return the tangent of a function that is only known by its values, by central differences.

    .. math:: \dot y \approx \frac{f(\theta + h \dot\theta) - f(\theta - h \dot\theta)}{2 h}

    The error is :math:`O(h^2)` beside rounding of :math:`O(\epsilon / h)`; h is
    :math:`\epsilon^{1/3}` of the ratio of the two sizes, which for linear functions leaves the
    rounding alone.

    >>> two = torch.tensor([2.0], dtype=torch.float64)
    >>> central_difference(torch.square, (two,), (torch.ones_like(two),))
    tensor([4.0000], dtype=torch.float64)
    """
    size = max(float(d.abs().max()) for d in directions)
    if size == 0.0:
        return pytree.tree_map(torch.zeros_like, function(*primals))
    epsilon = torch.finfo(primals[0].dtype).eps
    h = epsilon ** (1 / 3) * max(1e-3, *(float(p.abs().max()) for p in primals)) / size
    with preserved_rng():  # so that both draw the same
        above = function(*(p + h * d for p, d in zip(primals, directions, strict=True)))
    below = function(*(p - h * d for p, d in zip(primals, directions, strict=True)))

    def quotient(a: Tensor, b: Tensor) -> Tensor:
        return (a - b) / (2 * h) if is_differentiable(a) else torch.zeros_like(a)

    return pytree.tree_map(quotient, above, below)


@functools.cache
def _load_forward_mode() -> None:
    """Let torch load its forward-mode rules, which it does at the first jvp with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))


def _unexpanded(primal: Tensor) -> Tensor:
    """Return the tensor with memory of its own for each element, which dual numbers need."""
    return primal.contiguous() if 0 in primal.stride() else primal


@functools.cache
def jvp_of(op: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jvp` of one operation, as a function named after it, for a graph to call.

    >>> jvp_of(torch.ops.aten.linear.default).__name__
    'linear_jvp'
    """

    def of_op(*args: Any, tangents: Mapping[int, Tensor], **kwargs: Any) -> Any:
        return jvp(op, args, kwargs, tangents)

    packet = getattr(op, "overloadpacket", op)
    of_op.__name__ = of_op.__qualname__ = f"{packet.__name__}_jvp"
    if hasattr(op, "tags"):
        vars(of_op)["tags"] = op.tags  # it draws where the operation does
    return of_op


def tangent_by_autograd(
    function: Callable[[Tensor], Tensor], primal: Tensor, direction: Tensor
) -> Tensor:
    """Return the tangent by backward passes alone, differentiated once more.

    It takes a custom autograd function at its own backward pass.

    Raises:
        RuntimeError: something in the function cannot be differentiated twice.

    >>> two = torch.tensor([2.0])
    >>> tangent_by_autograd(torch.square, two, torch.ones(1))
    tensor([4.])
    """
    with torch.enable_grad():
        leaf = primal.detach().requires_grad_()
        output = function(leaf)
        if not output.requires_grad:
            return torch.zeros_like(output)
        cotangent = torch.zeros_like(output, requires_grad=True)
        (pulled,) = torch.autograd.grad(output, leaf, cotangent, create_graph=True)
        return torch.autograd.grad(pulled, cotangent, direction.to(pulled))[0]


def _jvp_by_two_vjps(
    function: Callable[..., Any],
    primals: tuple[Tensor, ...],
    directions: tuple[Tensor, ...],
) -> Any:
    """Return the tangent where there is no forward-mode rule: v ↦ vᵀJ is linear, and its adjoint is
    J.
    """
    others: list[Any] = []

    def differentiable(*values: Tensor) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(function(*values))
        others[:] = [spec, [None if is_differentiable(leaf) else leaf for leaf in leaves]]
        return [leaf for leaf in leaves if is_differentiable(leaf)]

    pair: Any = torch.func.vjp(differentiable, *primals)
    output, pullback = pair
    pair = torch.func.vjp(pullback, [torch.zeros_like(leaf) for leaf in output])
    tangents = iter(pair[1](directions)[0])
    spec, kept = others
    return pytree.tree_unflatten(
        [next(tangents) if leaf is None else torch.zeros_like(leaf) for leaf in kept], spec
    )
