"""TensorBoard is given FSLRs and multipliers."""

from typing import TYPE_CHECKING

from flerm_fx.boundary.options import described
from flerm_fx.errors import InputError
from flerm_fx.training.logs import Log

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def to_tensorboard(writer: "SummaryWriter") -> Log:
    """Return a ``log=`` for :func:`flerm_fx.record` and :func:`flerm_fx.match` that writes scalars.

    One scalar for each parameter, ``flerm/fslr/<name>`` and ``flerm/multiplier/<name>``, in the
    writer's own file.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``.

    Raises:
        InputError: ``writer`` has no ``add_scalar``.

    >>> class Writer:
    ...     def add_scalar(self, name, value, step):
    ...         print(name, value, step)
    >>> to_tensorboard(Writer())({"flerm/fslr/weight": 2.0}, 100)
    flerm/fslr/weight 2.0 100
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise InputError(f"writer must have an add_scalar, got {described(writer)}")

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log
