"""A rate is too high to settle at where a third of it brings the model further."""

import logging
from collections.abc import Sequence
from statistics import fmean

from flerm_fx.boundary.warned import warn
from flerm_fx.capture.captured import Capture
from flerm_fx.errors import DivergenceError
from flerm_fx.start.procedure import StartProcedure
from flerm_fx.start.walk import walking

_LOG = logging.getLogger("flerm_fx")

SLOWER = 1 / 3
"""The part of its rates at which a model settles once more."""

COMPARED = 20
"""Over so many last steps losses are compared; where there are fewer behind the warm-up, nothing
is."""

WORSE = 19
"""On so many of them the loss has to be higher for the rate to be too high: neighbouring steps are
not independent."""

PART = 0.01
"""And by how much it is higher on average, of all by which it has fallen: what has learned all that
it can in so few steps is a little better off at any lower rate. GPT-2 at three times its best rate
was 0.018 or more above in all of eight initialisations, on 19 or 20 of the batches; at the best
rate none was above, nor was a ViT on more than 15."""


def warn_of_rate(
    captured: Capture, procedure: StartProcedure, losses: Sequence[float], *, stacklevel: int
) -> None:
    """Say so if a model that settles at a third of its rates gets to a lower loss.

    The rate that is best over a whole run is not too high at its beginning, where the best one is
    higher: what is better off at a third of it so early was not tuned, and its steps throw it.

    Args:
        captured: the model, captured; its weights end as they were.
        procedure: by which it has settled.
        losses: of the steps that it has taken.
        stacklevel: of the warning, for the caller.

    Warns:
        UserWarning: at a third of the rates the loss is lower on 19 of the last 20 batches, and on
            average by a hundredth of what it has fallen.
    """
    if procedure.settle - procedure.warmup < COMPARED:
        return
    try:
        slower = _losses(captured, procedure)
    except DivergenceError:  # which says nothing of the rate above it
        return
    pairs = list(zip(losses, slower, strict=True))[-COMPARED:]
    worse = sum(own > other for own, other in pairs)
    own, other = (fmean(column) for column in zip(*pairs, strict=True))
    if worse >= WORSE and own - other > PART * (slower[0] - other):
        _LOG.info("settled at a loss of %.4g, and at a third of the rate at %.4g", own, other)
        warn(
            "the model settles at a lower loss where it takes the same steps at a third of its "
            "learning rates: these throw it, and FSLRs are those of a model that does not learn "
            "well. Record at the rates that train it best, or pass lr=… (the logger flerm_fx has "
            "the losses, at the level INFO)",
            stacklevel=stacklevel + 1,
        )


def _losses(captured: Capture, procedure: StartProcedure) -> list[float]:
    multipliers = dict.fromkeys(captured.parameters, SLOWER)
    with walking(captured, procedure, multipliers, find_rounding=False) as walk:
        while walk.index <= procedure.settle:
            walk.step()
        return walk.losses
