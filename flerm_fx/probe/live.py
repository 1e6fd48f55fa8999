r"""A live model is measured as it is, by ordinary backward passes, and needs no graph.

With random signs v as cotangents of a part of the output,

.. math:: \langle J_l^\top v, u_l \rangle = v \cdot J_l u_l, \qquad
          E (v \cdot J_l u_l)^2 = \lVert J_l u_l \rVert^2 .

A pass brings the gradients :math:`J_l^\top v`; each is let go as soon as its product with the
update is taken. Where weights are sharded, a rank takes the products of its shards, and one
all-reduce of L numbers for every part adds them up.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist

from flerm_fx.boundary.compat import FORWARD_HOOKS
from flerm_fx.boundary.compat_sharding import forget_run
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import EstimateError
from flerm_fx.model.distributed import is_sharded_tensor, resharded, whole
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import Inputs, as_real, output_of
from flerm_fx.model.standing import standing_in
from flerm_fx.model.untouched import untouched
from flerm_fx.probe.live_shards import Hear, heard_on_shards, local, on_gradient

Cotangent = Callable[[Tensor], Tensor]
"""From an output to what its gradient is taken with."""


class LiveModel:
    """A ``LiveModel`` runs a model forwards and backwards while :func:`alive` lasts.

    Each run begins with the same buffers and random state, so that all are of one function.

    Args:
        captured: the model, with or without a graph, which is not used.
        updates: of the parameters that are measured, as they lie on the ranks.
        rows: into how many parts ranks share out the data.
        is_shared: whether other ranks hold parts of the products.
        again: lets a run begin as the first did.
    """

    def __init__(
        self,
        captured: Capture,
        updates: Mapping[str, Tensor],
        rows: int,
        is_shared: bool,
        again: Callable[[], None],
    ) -> None:
        self.updates = updates
        self._captured = captured
        self._rows = rows
        self._is_shared = is_shared
        self._again = again
        self._heard = _Heard((), 0)

    def output(self, inputs: Inputs) -> Tensor:
        """Return the output tensor, without a gradient."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of checkpoints, that nothing has a gradient
            return self._run(inputs)

    def products(self, inputs: Inputs, cotangent: Cotangent) -> Tensor:
        """Return the products of each part's gradient with the updates, of shape (parts, L).

        All ranks call this, and all have them.

        Args:
            inputs: the part that is this rank's.
            cotangent: from its output to the cotangent of that.

        Raises:
            EstimateError: a backward pass that the model brings itself fails.
        """
        self._heard = _Heard(tuple(self.updates), self._rows)
        with torch.enable_grad():
            output = self._run(inputs, cotangent)
        numbers = [self._captured.parameters[name].numel() for name in self.updates]
        return self._heard.total(numbers, output, self._is_shared)

    def hear(self, name: str, row: int, gradient: Tensor, update: Tensor) -> None:
        """Take the product of a part's gradient with an update."""
        self._heard.hear(name, row, gradient, update)

    def _run(self, inputs: Inputs, cotangent: Cotangent | None = None) -> Tensor:
        captured = self._captured
        resharded(captured.model)  # as it was when it was looked at
        self._again()
        try:
            output = whole(output_of(captured.model, inputs, captured.output_fn))
            if output.requires_grad and cotangent is not None:
                self._backward(output, cotangent(output.detach()))
        except BaseException:
            forget_run(captured.model)
            raise
        return output.detach()

    def _backward(self, output: Tensor, cotangent: Tensor) -> None:
        try:
            output.backward(cotangent)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if not self._captured.own_backward:
                raise
            raise EstimateError(
                f"a backward pass that the model brings itself cannot be measured: {error}"
            ) from error


@contextmanager
def alive(
    captured: Capture,
    values: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    *,
    place: tuple[int, int] = (0, 1),
    is_held: bool = False,
    is_shared: bool = False,
) -> Iterator[LiveModel]:
    """Let a model be measured by runs of it, and leave all of it as it was.

    Args:
        captured: the model, with or without a graph, which is not used.
        values: of its trainable parameters.
        updates: of those that are measured.
        place: which part of the data this rank runs, and how many parts there are.
        is_held: whether ``fully_shard`` holds the weights, which stay in their places then.
        is_shared: whether other ranks hold parts of the products.
    """
    model = captured.model
    # Those in their places now, where others stand in while simulated steps are taken.
    present = dict(model.named_parameters(remove_duplicate=False))
    own = {name: present[name] for name in captured.parameters}
    lying = {name: _like(update, own[name]) for name, update in updates.items()}
    kept = [hook for hook in captured.hooks if hook.kind in FORWARD_HOOKS]
    # Those of the backward pass change gradients, which are not what is measured.

    def hear(name: str, row: int, gradient: Tensor, update: Tensor) -> None:
        live.hear(name, row, gradient, update)

    on_gradients = heard_on_shards if is_held else _heard_on_leaves
    with (
        only(model, kept),
        on_gradients(model, own, values, lying, place[0], hear),
        untouched(model) as again,  # what is put back before each run has all of that in place
    ):
        live = LiveModel(captured, lying, place[1], is_shared, again)
        try:
            yield live
        finally:
            resharded(model)


@contextmanager
def _heard_on_leaves(
    model: nn.Module,
    own: Mapping[str, nn.Parameter],
    values: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    place: int,
    hear: Hear,
) -> Iterator[None]:
    """Hear gradients of what stands in for a model's parameters while a block lasts."""

    def heard(name: str, leaf: nn.Parameter) -> None:
        gradient, leaf.grad = leaf.grad, None
        if name in updates and gradient is not None:
            update = updates[name]
            if is_sharded_tensor(gradient) and gradient.placements != update.placements:  # type: ignore[attr-defined]
                gradient = gradient.redistribute(placements=update.placements)  # type: ignore[attr-defined]
            hear(name, place, local(gradient), local(update))

    leaves = {name: _leaf(p, values.get(name, p)) for name, p in own.items()}
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
