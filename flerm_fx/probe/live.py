r"""A live model is measured as it is, by ordinary backward passes, and needs no graph.

With random signs v as cotangents of a part of the output,

.. math:: \langle J_l^\top v, u_l \rangle = v \cdot J_l u_l, \qquad
          E (v \cdot J_l u_l)^2 = \lVert J_l u_l \rVert^2 .

A pass brings the gradients :math:`J_l^\top v`; each is let go as soon as its product with the
update is taken. Where weights are sharded, a rank takes the products of its shards, and one
all-reduce of L numbers for every part adds them up.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist

from flerm_fx.boundary.compat import FORWARD_HOOKS
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import EstimateError
from flerm_fx.model.distributed import is_sharded_tensor, whole
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import Inputs, as_real, output_of
from flerm_fx.model.standing import standing_in
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.live_shards import Hear, heard_on_shards, local, on_gradient

Cotangent = Callable[[Tensor], Tensor]
"""From an output to what its gradient is taken with."""


class LiveModel:
    """A ``LiveModel`` runs a model forwards and backwards, and leaves all of it as it was.

    Each run begins with the same buffers and random state, so that all are of one function.

    Args:
        captured: the model, with or without a graph, which is not used.
        values: of its trainable parameters.
        updates: of those that are measured.
        place: which part of the data this rank runs, and how many parts there are.
        is_sharded: whether ``fully_shard`` holds the weights, so that they stay in their places.
        is_shared: whether other ranks hold parts of the products.
    """

    def __init__(
        self,
        captured: Capture,
        values: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
        *,
        place: tuple[int, int] = (0, 1),
        is_sharded: bool = False,
        is_shared: bool = False,
    ) -> None:
        self._captured = captured
        self._values = values
        self._place, self._rows = place
        self._is_sharded = is_sharded
        self._is_shared = is_shared
        self._updates = {
            name: _like(update, captured.parameters[name]) for name, update in updates.items()
        }
        self._kept = [hook for hook in captured.hooks if hook.kind in FORWARD_HOOKS]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are measured, in the order of the columns of :meth:`products`."""
        return tuple(self._updates)

    def output(self, inputs: Inputs) -> Tensor:
        """Return the output tensor, without a gradient."""
        with self._heard(lambda *_: None), self._run(), torch.no_grad():
            return whole(output_of(self._captured.model, inputs, self._captured.output_fn))

    def products(self, inputs: Inputs, cotangent: Cotangent) -> Tensor:
        """Return the products of each part's gradient with the updates, of shape (parts, L).

        All ranks call this, and all have them.

        Args:
            inputs: the part that is this rank's.
            cotangent: from its output to the cotangent of that.
        """
        heard = _Heard(tuple(self._updates), self._rows)
        with self._heard(heard.hear), self._run(), torch.enable_grad():
            output = whole(output_of(self._captured.model, inputs, self._captured.output_fn))
            if output.requires_grad:
                try:
                    output.backward(cotangent(output.detach()))  # type: ignore[no-untyped-call]
                except RuntimeError as error:
                    if not self._captured.own_backward:
                        raise
                    raise EstimateError(
                        f"a backward pass that the model brings itself cannot be measured: {error}"
                    ) from error
        numbers = [parameter.numel() for parameter in map(self._parameter, self._updates)]
        return heard.total(numbers, output, self._is_shared)

    def _parameter(self, name: str) -> nn.Parameter:
        return self._captured.parameters[name]

    @contextmanager
    def _run(self) -> Iterator[None]:
        model = self._captured.model
        with untouched(model), only(model, self._kept):
            yield

    @contextmanager
    def _heard(self, hear: Hear) -> Iterator[None]:
        model, own = self._captured.model, self._captured.parameters
        if self._is_sharded:
            with heard_on_shards(model, own, self._values, self._updates, self._place, hear):
                yield
            return
        leaves = {name: _leaf(p, self._values.get(name, p)) for name, p in own.items()}

        def heard(name: str, leaf: nn.Parameter) -> None:
            gradient, leaf.grad = leaf.grad, None
            if name in self._updates and gradient is not None:
                update = self._updates[name]
                if is_sharded_tensor(gradient) and gradient.placements != update.placements:  # type: ignore[attr-defined]
                    gradient = gradient.redistribute(placements=update.placements)  # type: ignore[attr-defined]
                hear(name, self._place, local(gradient), local(update))

        for name, leaf in leaves.items():
            on_gradient(leaf, functools.partial(heard, name))
        with standing_in(model, {id(own[name]): leaf for name, leaf in leaves.items()}):
            yield


class _Heard:
    """A ``_Heard`` adds up products of gradients and updates, and of how many numbers they are.

    A parameter that several ranks hold alike is heard of several times: what is added up is divided
    by how often each of its numbers was.
    """

    def __init__(self, names: tuple[str, ...], rows: int) -> None:
        self._columns = {name: column for column, name in enumerate(names)}
        self._rows = rows
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._numbers = torch.zeros(rows, len(names), dtype=torch.float64)

    def hear(self, name: str, row: int, gradient: Tensor, update: Tensor) -> None:
        """Take the product of a part's gradient with the update."""
        at = row, self._columns[name]
        product = _product(gradient, update)
        self._sums[at] = self._sums[at] + product if at in self._sums else product
        self._numbers[at] = gradient.numel()  # once, if parts of the model run again

    def total(self, numbers: list[int], output: Tensor, is_shared: bool) -> Tensor:
        """Return the products of all ranks, on the device of the output."""
        precise = torch.promote_types(output.dtype, torch.float32)
        sums = torch.zeros(self._numbers.shape, dtype=precise, device=output.device)
        for at, value in self._sums.items():
            sums[at] = value
        heard = torch.stack([sums, self._numbers.to(sums)])
        if is_shared:
            dist.all_reduce(heard)
        times = heard[1] / torch.tensor(numbers).clamp(min=1).to(heard)
        return torch.where(times > 0, heard[0] / times.clamp(min=1e-30), 0.0)


def _product(gradient: Tensor, update: Tensor) -> Tensor:
    """Return the inner product of a gradient and an update, in float32 at least."""
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    left = as_real(gradient).reshape(-1)
    precise = torch.promote_types(left.dtype, torch.float32)
    right = as_real(update.to(gradient.device)).reshape(-1)
    return torch.dot(left.to(precise), right.to(precise))


def _leaf(own: nn.Parameter, value: Tensor) -> nn.Parameter:
    """Return what stands in for a parameter, with another value and no hooks."""
    kind = type(own) if issubclass(type(own), nn.Parameter) else nn.Parameter
    return kind(value.detach(), own.requires_grad)


def _like(update: Tensor, parameter: Tensor) -> Tensor:
    """Return an update that lies on ranks as its parameter does."""
    update = update.detach()
    if not is_sharded_tensor(parameter):
        return whole(update)
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    if not is_sharded_tensor(update):
        update = DTensor.from_local(update, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return update.redistribute(mesh, placements)  # type: ignore[attr-defined,no-any-return]
