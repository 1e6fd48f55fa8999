"""The procedure says how a start is measured, the same for the base and for every target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from flerm_fx.errors import InputError
from flerm_fx.model.inputs import Batch, OutputFn, call_arguments, own_loss, select_output
from flerm_fx.probe.planner import Method
from flerm_fx.recipe.loss import Loss
from flerm_fx.recipe.optimizers import Optimizers

MODEL_LOSS = "output.loss"
"""Name of the loss that a model returns itself."""


@dataclass(frozen=True)
class StartProcedure:
    """A ``StartProcedure`` says how a start is measured, for the base model and for every target.

    Attributes:
        optimizers: update rules and learning rates of the settling steps, of each parameter group;
            weight decay is left out, as multipliers leave it alone.
        settle: simulated steps before the start; 0 measures the first step.
        warmup: over how many of them the rate rises in equal parts to the optimizers'.
        loss: loss function; None takes the ``.loss`` of the model's output.
        pool: ``(inputs, targets)`` batches. FSLRs are measured on the first; steps are taken on
            the others in turn, or on the first where there is only one.
        output_fn: picks the output tensor.
        method, rtol: as for :func:`flerm_fx.measure`.
        seed: of dropout in the simulated steps and of the random cotangents.
        offload: whether weights are kept off their device while they are walked on
            (:class:`flerm_fx.model.lent.Lent`).
    """

    optimizers: Optimizers
    settle: int
    warmup: int
    loss: Loss | None
    pool: tuple[Batch, ...]
    output_fn: OutputFn | None
    method: Method
    rtol: float
    seed: int
    offload: bool = False

    def after(self, steps: int) -> "StartProcedure":
        """Return the procedure of the late start: the same with so many more simulated steps."""
        return replace(self, settle=self.settle + steps)

    def held_as(self, held: Mapping[str, int]) -> "StartProcedure":
        """Return the same for parameters that its optimizers hold in this way."""
        return replace(self, optimizers=replace(self.optimizers, held=held))

    def at_rates(self, learning_rates: Sequence[float]) -> "StartProcedure":
        """Return the same at other learning rates, one for each parameter group."""
        return replace(
            self, optimizers=replace(self.optimizers, learning_rates=tuple(learning_rates))
        )


def batch_loss(
    model: nn.Module, batch: Batch, loss: Loss | None, output_fn: OutputFn | None
) -> Tensor:
    """Loss of one batch.

    Raises:
        InputError: no targets, no loss function, and no loss in the output.
    """
    args, kwargs = call_arguments(batch[0])
    output = model(*args, **kwargs)
    if loss is not None:
        return loss(select_output(output, output_fn), batch[1])
    own = own_loss(output)
    if own is None:
        raise InputError(
            "there are no targets to take a loss of, and the model returns no .loss: pass "
            "targets=... (and loss_fn=... unless cross entropy or mean squared error is meant)"
        )
    return own
