"""FSLRs and multipliers are logged under these names while a model trains."""

from collections.abc import Callable

Log = Callable[[dict[str, float], int], None]
"""Takes numbers by name, and the step: ``wandb.log``, ``mlflow.log_metrics``, ``trackio.log``, or
anything else of that form."""

FSLR = "flerm/fslr/"
MULTIPLIER = "flerm/multiplier/"


def log_call(log: Log | None, numbers: dict[str, float], step: int) -> Callable[[], None]:
    """Return a call that logs some numbers, if there is a log."""
    return lambda: None if log is None else log(numbers, step)
