"""Later values are made where they are read, and let go behind it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from flerm_fx.boundary.compat import pytree


class Later:
    """A ``Later`` is what a function of arguments will be; some of these may be made later as well.

    Args:
        make: the function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        blank: a tensor of the same shape and type without memory, for where values are not read;
            None where there is no one tensor.
        made: called with this and the value whenever it is made.

    >>> import torch
    >>> weight = Later(torch.ones, (2, 3))
    >>> now(Later(torch.mul, (weight, 2.0)))
    tensor([[2., 2., 2.],
            [2., 2., 2.]])
    """

    def __init__(
        self,
        make: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        blank: Tensor | None = None,
        made: "Callable[[Later, Any], None] | None" = None,
    ) -> None:
        self.blank = blank
        self._make, self._args, self._kwargs, self._made = make, args, kwargs or {}, made

    def value(self) -> Any:
        """Make the value."""
        args, kwargs = now((self._args, dict(self._kwargs)))
        value = self._make(*args, **kwargs)
        if self._made is not None:
            self._made(self, value)
        return value


def now(values: Any, unread: Collection[int] = ()) -> Any:
    """Return a pytree with all of it made, but for blanks at the positions of leaves that are not
    read.
    """
    if not has_later(values):
        return values
    leaves, spec = pytree.tree_flatten(values)
    return pytree.tree_unflatten(
        [_now(leaf, position in unread) for position, leaf in enumerate(leaves)], spec
    )


def has_later(values: Any) -> bool:
    """Tell whether something in a pytree is yet to be made."""
    return any(isinstance(leaf, Later) for leaf in pytree.tree_leaves(values))


def _now(leaf: Any, is_unread: bool) -> Any:
    if not isinstance(leaf, Later):
        return leaf
    return leaf.blank if is_unread and leaf.blank is not None else leaf.value()
