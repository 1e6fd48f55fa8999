"""Weights in half precision are measured in float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.compat import apply_to_tensors, memory_of, pytree
from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.model.distributed import is_sharded
from flerm_fx.model.hooks import only
from flerm_fx.model.inputs import Batch, device_of, to_device
from flerm_fx.model.untouched import untouched
from flerm_fx.start.procedure import StartProcedure, batch_loss
from flerm_fx.start.start import first_update

FINER = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex32: torch.complex64,
}
"""What weights of a type are measured in. Of 8 or 11 bits, a step of 10^-3 of a weight is less than
the last, and simulated steps would leave most weights where they are."""


def finer(value: Any) -> Any:
    """Return a pytree with its tensors of half precision in float32, and all others as they are.

    >>> finer({"x": torch.zeros(2, dtype=torch.bfloat16), "y": 3})["x"].dtype
    torch.float32
    """
    return pytree.tree_map_only(Tensor, _finer, value)


def _finer(tensor: Tensor) -> Tensor:
    return tensor.to(FINER.get(tensor.dtype, tensor.dtype))


def is_coarse(model: nn.Module) -> bool:
    """Tell whether some weight that is trained is in half precision."""
    return any(p.requires_grad and p.dtype in FINER for p in model.parameters())


def refined(model: nn.Module) -> nn.Module:
    """Return the model itself, its weights and buffers of half precision turned to float32."""
    apply_to_tensors(model, _finer)
    return model


def measurable(
    copy: Callable[[], nn.Module],
    pool: tuple[Batch, ...],
    run: Callable[[nn.Module, Batch], Any],
) -> tuple[nn.Module, tuple[Batch, ...], str]:
    """Return a copy of a model to measure on, in float32 if the model's weights are coarser, and
    its pool.

    What runs in float32 alone is measured there: one that casts to half precision in its own code
    stays as it is.

    Args:
        copy: makes a copy of the model.
        pool: batches for the model as it is.
        run: what the copy has to be able to do with a batch.

    Returns:
        The copy, the batches for it, and why it is not in float32; empty if it is.
    """
    twin = copy()
    if not is_coarse(twin):
        return twin, pool, ""
    refined(twin)
    try:
        with untouched(twin), torch.no_grad():
            run(twin, finer(to_device(pool[0], device_of(twin))))
    except Exception as error:  # whatever the user's code may raise
        summary = str(error).strip().splitlines()
        return copy(), pool, f"{type(error).__name__}: {summary[0] if summary else ''}"
    return twin, finer(pool), ""


def on_own_weights(
    captured: Capture, model: nn.Module, procedure: StartProcedure, *, copy: bool
) -> Capture:
    """Return the capture of a copy of a model, on the model itself wherever it can be walked on.

    That takes no memory for a second model. A copy stays where weights are sharded over ranks,
    where it is in another type, and where the model's own code changes frozen weights (a teacher
    that follows its student), which nothing would put back.

    Args:
        captured: of a copy, which is used up.
        model: what it is a copy of.
        procedure: whose batches a run is tried on.
        copy: whether the user asks for the copy.
    """
    twin = captured.model
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    if copy or is_sharded(model) or any(own.dtype != other.dtype for own, other in pairs):
        return captured
    frozen = [(own, other) for own, other in pairs if not own.requires_grad]
    if frozen:
        batch = to_device(procedure.pool[0], device_of(twin))
        with untouched(twin), only(twin, captured.hooks), torch.no_grad():
            batch_loss(twin, batch, procedure.loss, procedure.output_fn)
        changed = [pair for pair in frozen if not torch.equal(*pair)]
        with torch.no_grad():
            for own, other in changed:
                other.copy_(own)
        if changed:
            return captured
    bound = captured.bound(model)
    # What refers to the copy, in circles as exported graphs are, goes later; its memory at once.
    kept = {memory_of(own) for own, _ in pairs}
    for _, other in pairs:
        if memory_of(other) not in kept:
            other.data = other.data.new_empty(0)
    return bound


def warn_of_rounding(
    captured: Capture, procedure: StartProcedure, obstacle: str, stacklevel: int
) -> None:
    """Say that a model is measured in half precision, and what that takes of a step of a run.

    Args:
        captured: the model, a copy that the caller owns.
        procedure: how its start is measured.
        obstacle: why it is not in float32.
        stacklevel: of the warning, for the caller.
    """
    lost = {}
    for name, update in first_update(captured, procedure).items():
        before = captured.parameters[name].detach()
        step = procedure.optimizers.rate(name) * finer(update)
        moved = finer((finer(before) + step).to(before.dtype)) - finer(before)
        lost[name] = float((moved - step).norm() / step.norm()) if step.any() else 0.0
    worst = max(lost, key=lambda name: lost[name])
    warn(
        f"the model has weights in half precision and does not run in float32 ({obstacle}), so it "
        f"is measured as it is: rounding changes a step of {worst!r} by {lost[worst]:.0%} of it, "
        "and FSLRs and multipliers are those of what is left. Let its casts take their type from "
        "its weights, or keep these in float32 under torch.autocast",
        stacklevel=stacklevel + 1,
    )
