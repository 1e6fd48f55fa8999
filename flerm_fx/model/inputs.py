"""This module passes batches to a model, checks them, and reads its outputs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import pytree
from flerm_fx.errors import EstimateError, InputError

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
OutputFn = Callable[[Any], Tensor]
Batch = tuple[Inputs, Any]


def call_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments for ``model(*args, **kwargs)``.

    A tensor is the one argument, a tuple the positional arguments, a dict the keyword arguments.

    Raises:
        InputError: ``inputs`` is of another type.

    >>> call_arguments({"x": 1})
    ((), {'x': 1})
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    raise InputError(
        "inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
        f"got {type(inputs).__name__}"
    )


def batch_size(inputs: Inputs) -> int:
    """Return the number of examples N: the first dimension of every tensor in ``inputs``.

    Inputs whose first dimensions differ, as the nodes and edges of a graph, are no batch: all of
    them are one example.

    Raises:
        InputError: no tensor, one without dimensions or of a nested or sparse layout, or a batch of
            1 (which cannot be told from a constant).

    >>> batch_size({"x": torch.zeros(3, 5), "mask": torch.ones(3)})
    3
    >>> batch_size((torch.zeros(5, 8), torch.zeros(2, 12).long()))
    1
    """
    leaves = [
        (f"inputs{pytree.keystr(path)}", leaf)
        for path, leaf in pytree.tree_leaves_with_path(as_builtin(inputs))
        if isinstance(leaf, Tensor)
    ]
    if not leaves:
        raise InputError(
            "inputs hold no tensor; expected at least one, with the batch first: rows of a dataset "
            "go through a DataLoader, and text through a tokenizer, with return_tensors='pt'"
        )
    for where, leaf in leaves:
        if leaf.is_nested:
            raise InputError(
                f"{where} is a nested tensor, whose examples have sizes of their own; expected "
                "a plain tensor: pad it, as with torch.nested.to_padded_tensor, and have the model "
                "take the lengths or a mask beside it"
            )
        if leaf.layout != torch.strided:
            raise InputError(
                f"{where} has the layout {leaf.layout}; expected a plain tensor: pass its "
                "indices and values, or keep a matrix that is the same for all inputs in a buffer "
                "of the model"
            )
        if leaf.ndim == 0:
            raise InputError(
                f"{where} is a scalar tensor; expected the batch as its first dimension"
            )
    sizes = {leaf.shape[0] for _, leaf in leaves}
    if len(sizes) > 1:
        return 1
    (size,) = sizes
    if size < 2:
        raise InputError(
            f"inputs hold a batch of {size}; at least 2 examples are needed, since a batch "
            "dimension of 1 cannot be told from a constant when the model is captured; a single "
            "example can be passed twice, as with torch.cat([x, x])"
        )
    return int(size)


def as_builtin(value: Any) -> Any:
    """Return a structure in which every mapping is a dict, as pytrees and files of profiles know
    them.

    >>> from collections import UserDict
    >>> as_builtin((UserDict(x=1), [UserDict(y=2)]))
    ({'x': 1}, [{'y': 2}])
    """
    if isinstance(value, Mapping):
        return {key: as_builtin(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(as_builtin, value))
    return value


def is_floating(value: object) -> bool:
    """Tell whether ``value`` is a tensor of real floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def is_differentiable(value: object) -> bool:
    """Tell whether ``value`` is a tensor that can have a tangent: of real or complex numbers.

    >>> is_differentiable(torch.zeros(2, dtype=torch.complex64)), is_differentiable(torch.arange(2))
    (True, False)
    """
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def as_real(value: Tensor) -> Tensor:
    """Return the real numbers that a tensor holds: of a complex one both parts, in a new last
    dimension.

    It is what optimizers of torch make of a complex parameter, and in what a gradient of one is a
    gradient: the change of a loss is the sum of products of these with those of the change.

    >>> as_real(torch.tensor([1 + 2j]))
    tensor([[1., 2.]])
    """
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def select_output(output: Any, output_fn: OutputFn | None = None) -> Tensor:
    """Return the output tensor f whose change an FSLR measures.

    ``output_fn(output)`` if given; else ``output.logits`` (or ``output["logits"]``); else the first
    floating tensor in ``output`` that has dimensions: one without is a loss, and no output of a
    batch.

    Raises:
        InputError: there is no such tensor to be found.

    >>> select_output((torch.tensor([1]), torch.tensor(0.5), torch.tensor([2.0])))
    tensor([2.])
    """
    if output_fn is not None:
        chosen = output_fn(output)
        if not is_floating(chosen) or chosen.ndim == 0:
            raise InputError(
                f"output_fn must return a floating tensor, batch first, got {_describe(chosen)}"
            )
        return chosen
    logits = _member(output, "logits")
    for leaf in (logits, *pytree.tree_leaves(as_builtin(output))):
        if is_floating(leaf) and leaf.ndim > 0:
            return leaf  # type: ignore[no-any-return]
    raise InputError(
        f"the model returned no floating tensor, batch first, got {_describe(output)}; pass "
        "output_fn=lambda output: ... to pick the tensor whose change is measured"
    )


def own_loss(output: Any) -> Tensor | None:
    """Return the loss that a model returns itself, or None if it returns none.

    ``output.loss`` (or ``output["loss"]``); of a tuple or list the first floating tensor without
    dimensions, as in ``(loss, logits)``.

    >>> own_loss((torch.zeros(3, 2), torch.tensor(0.5)))
    tensor(0.5000)
    """
    named = _member(output, "loss")
    if is_floating(named) and named.numel() == 1:
        return named.reshape(())  # type: ignore[no-any-return]
    members = output if isinstance(output, tuple | list) else ()
    return next((v for v in members if is_floating(v) and v.ndim == 0), None)


def _member(output: Any, name: str) -> Any:
    """Return what an output has as an attribute or under a key."""
    attribute = getattr(output, name, None)
    return output.get(name) if attribute is None and isinstance(output, Mapping) else attribute


def output_of(model: nn.Module, inputs: Inputs, output_fn: OutputFn | None = None) -> Tensor:
    """Return the output tensor of a model for a batch; see :func:`select_output`."""
    args, kwargs = call_arguments(inputs)
    return select_output(model(*args, **kwargs), output_fn)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        real = ", of whose numbers torch.view_as_real makes floating ones" * value.is_complex()
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}{real}"
    return type(value).__name__


def detached(value: Any) -> Any:
    """Return a copy of a pytree in which every tensor is a detached clone."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), value)


def to_device(value: Any, device: torch.device) -> Any:
    """Return a pytree with every tensor on ``device``."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), value)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter, which is the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


AT_ONCE = 2**22
"""Numbers of two outputs that are compared at a time."""


def difference(output: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two outputs, relative to the largest number that differs.

    An entry that is the same in both, as one is that a mask makes -1e9 or infinite, has no say in
    what is large.

    >>> difference(torch.tensor([2.0, -torch.inf]), torch.tensor([4.0, -torch.inf]))
    0.5
    """
    apart = torch.zeros((), dtype=expected.real.dtype, device=expected.device)
    largest = apart
    # A part at a time: beside a large vocabulary's logits, as much again would be seen.
    shape = torch.broadcast_shapes(output.shape, expected.shape, (1,))  # type: ignore[no-untyped-call]
    output, expected = output.expand(shape), expected.expand(shape)
    rows = max(1, AT_ONCE // max(1, expected[:1].numel()))
    for start in range(0, shape[0], rows):
        one, other = output[start : start + rows], expected[start : start + rows]
        differs = one != other
        if differs.any():
            largest = torch.maximum(largest, other.abs().where(differs, 0).max())
            apart = torch.maximum(apart, (one - other).abs().where(differs, 0).max())
    return float(apart / largest.clamp_min(torch.finfo(expected.dtype).tiny))


def last_bit(model: nn.Module, output: Tensor) -> float:
    """Return the machine epsilon of the coarsest of an output and the weights that made it.

    A model with weights in bfloat16 may return float32.

    >>> last_bit(nn.Linear(2, 2).bfloat16(), torch.zeros(2)) == 2**-7
    True
    """
    kinds = {output.dtype, *(p.dtype for p in model.parameters() if is_differentiable(p))}
    return max(torch.finfo(kind).eps for kind in kinds)


def is_finite(value: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity.

    Both survive a sum, which reads the tensor once; only a sum that overflows needs a second look.

    >>> is_finite(torch.tensor([3e38, 3e38])), is_finite(torch.tensor([torch.inf, -torch.inf]))
    (True, False)
    """
    return bool(value.sum().isfinite()) or bool(torch.isfinite(value).all())


def check_finite(name: str, value: Tensor, what: str) -> None:
    """Raise an EstimateError that names the parameter if ``value`` holds NaN or infinity."""
    if not is_finite(value):
        bad = int((~torch.isfinite(value)).sum())
        raise EstimateError(
            f"the {what} of parameter {name!r} has {bad} NaN or infinite of {value.numel()} "
            "entries; expected finite numbers: check the loss and the learning rate at this step"
        )
