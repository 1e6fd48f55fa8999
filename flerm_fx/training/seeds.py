"""The starts of several base models are recorded, under a seed each."""

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_fx.boundary.options import integer
from flerm_fx.boundary.progress import Progress, counting
from flerm_fx.boundary.warned import warn
from flerm_fx.errors import InputError
from flerm_fx.model.randomness import preserved_rng
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.factories import ModelFactory, check_optimizer_factory
from flerm_fx.recipe.pool import Pool
from flerm_fx.training.recording import record

_LOG = logging.getLogger("flerm_fx")


def record_seeds(
    factory: Callable[[], nn.Module],
    optimizer: Callable[[nn.Module], Optimizer | Sequence[Optimizer]],
    inputs: Pool,
    targets: Any = None,
    *,
    seeds: int | Iterable[int] = 8,
    **options: Any,
) -> BaseProfile:
    r"""Record the start of a base model under several seeds, and return the mean profile.

    .. math:: \mathrm{FSLR}_l = \exp \frac1n \sum_{i=1}^n \log \mathrm{FSLR}_{l,i}

    Initial weights move a base's FSLRs by more than they are measured to, about 40 % for a single
    parameter, and with them the multipliers of every target. Starts cost steps of the small model
    alone, so several are the usual way; the standard errors of the mean
    (:meth:`BaseProfile.mean`) are those over seeds, and :func:`compile` weighs multipliers by them.

    Args:
        factory: makes the base model, at new initial weights from torch's random state each time.
        optimizer: makes its optimizer, or a list of them, from the model.
        inputs: probe pool, as for :func:`record`.
        targets: as for :func:`record`.
        seeds: how many, counted from 0, or the seeds themselves.
        options: those of :func:`record`: ``loss_fn``, ``lr``, ``settle``, ``warmup`` and so on.

    Returns:
        The mean of the profiles; the random state is as it was.

    Raises:
        InputError: no seed, or a factory that makes no model, one and the same model again, or the
            same trainable weights under another seed.
        FlermError: as for :func:`record`.

    Example::

        >>> import torch
        >>> def mlp():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> def adam(model):
        ...     return torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> _ = torch.manual_seed(0)
        >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(21)]
        >>> profile = record_seeds(mlp, adam, batches, seeds=2)
        >>> profile.start["0.weight"].note
        'mean of 2 profiles'
    """
    models = ModelFactory(factory)
    models.check_takes()
    check_optimizer_factory(optimizer)
    chosen = list(range(integer("seeds", seeds, 1)) if isinstance(seeds, int) else seeds)
    if not chosen:
        raise InputError("seeds are none; expected at least one")
    profiles: list[BaseProfile] = []
    said: set[str] = set()
    told = Progress("record_seeds", options.get("progress", True))
    with told("recording"), counting(f"{len(chosen)} bases", len(chosen)) as done:
        for count, seed in enumerate(chosen, start=1):
            with preserved_rng():
                model = models(seed)
                warned: list[warnings.WarningMessage] = []
                try:
                    with (
                        warnings.catch_warnings(record=True) as warned,
                        record(model, optimizer(model), inputs, targets, **options) as recorder,
                    ):
                        profiles.append(recorder.profile)
                finally:
                    for warning in warned:
                        if (text := str(warning.message)) not in said:  # once, not of every base
                            said.add(text)
                            warn(text, warning.category, stacklevel=2)
            # The first one's batches are all others', whatever they were read from.
            inputs = [batch for batch, _ in profiles[0].pool]
            own = [batch_targets for _, batch_targets in profiles[0].pool]
            targets = None if own[0] is None else own
            _LOG.info("recorded base %d of %d (seed %d)", count, len(chosen), seed)
            done(1)
    return BaseProfile.mean(profiles)
