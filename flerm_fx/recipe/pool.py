"""The probe pool holds batches of inputs and targets, made of what people hold in their hands."""

import contextlib
import copy
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flerm_fx.boundary.compat import forget_workers
from flerm_fx.boundary.options import described
from flerm_fx.errors import InputError
from flerm_fx.model.copying import copied
from flerm_fx.model.inputs import (
    Batch,
    Inputs,
    as_builtin,
    batch_size,
    call_arguments,
    detached,
    device_of,
    own_loss,
    to_device,
)
from flerm_fx.model.randomness import preserved_rng
from flerm_fx.model.untouched import untouched
from flerm_fx.recipe.schedule import PASSES, SETTLE

Pool = Inputs | Iterable[Any]
"""One batch (a tensor, tuple or mapping), or several: a list, a DataLoader or another iterable."""

BATCHES = 1 + SETTLE // PASSES
"""Batches that are taken of what is no list, and may have no end: one is measured on, and the
simulated steps that are the default pass the others so often as is the default."""

LABELS = "labels"
"""The key of the targets in a batch that is a dict."""


def probe_pool(model: nn.Module, inputs: Pool, targets: Any = None) -> tuple[Batch, ...]:
    """Return copies of ``(inputs, targets)`` batches, from one batch or from several.

    A list is taken whole; of any other iterable, such as a DataLoader, the first 21 batches are, so
    that it may be without an end. It is read once, and torch's random state and the generators of a
    DataLoader are put back; an iterator goes on behind the batches that were taken.

    Without ``targets`` a batch may hold its own, as the signature of the model's ``forward`` tells:

    - A pair is ``(inputs, targets)`` where ``forward`` takes the first alone, and arguments of
      ``forward`` where it takes both alone. Where it takes either, they are arguments if the model
      returns a loss of its own for them.
    - The ``"labels"`` of a dict are targets where ``forward`` does not take them.

    A loader that Accelerate prepared is read beneath its wrapper, which keeps count of its batches.

    Args:
        model: whose ``forward`` is to take the inputs.
        inputs: a batch, or several.
        targets: one for each batch; None if the batches hold them, or the model needs none.

    Raises:
        InputError: an empty pool, another number of targets than of batches, pairs that may be
            either, keys that ``forward`` does not take, or a batch that
            :func:`flerm_fx.model.inputs.batch_size` refuses.

    >>> from torch.utils.data import TensorDataset
    >>> loader = DataLoader(TensorDataset(torch.zeros(6, 3), torch.zeros(6).long()), batch_size=2)
    >>> [[tuple(part.shape) for part in batch] for batch in probe_pool(nn.Linear(3, 4), loader)]
    [[(2, 3), (2,)], [(2, 3), (2,)], [(2, 3), (2,)]]
    """
    if targets is None:
        pool = tuple(_with_own_targets(model, inputs, BATCHES))
    elif _is_batch(inputs):
        pool = ((_arguments(inputs), targets),)
    else:
        batches = _batches(inputs, BATCHES)
        if not isinstance(targets, list | tuple) or len(targets) != len(batches):
            got = len(targets) if isinstance(targets, list | tuple) else type(targets).__name__
            raise InputError(
                f"inputs holds {len(batches)} batches, so targets must be a list of as many "
                f"(or None), got {got}"
            )
        pool = tuple(zip(map(_arguments, batches), targets, strict=True))
    for index, batch in enumerate(pool):
        _check_keys(model, batch[0], index)
        _check(batch)
    without = [index for index, (_, batch_targets) in enumerate(pool) if batch_targets is None]
    if without and len(without) < len(pool):
        raise InputError(
            f"batch {without[0]} of inputs has no targets, and others have; expected them in every "
            "batch or in none, or apart as targets=[...]"
        )
    return tuple(detached(pool))


def probe_batch(model: nn.Module, inputs: Pool) -> Inputs:
    """Return a copy of one batch of inputs to measure on, which is the first one of several.

    Where there are targets beside it, as :func:`probe_pool` tells, they are left out.

    Raises:
        InputError: as for :func:`probe_pool`.

    >>> probe_batch(nn.Linear(1, 4), iter([(torch.zeros(2, 1), torch.ones(2)), ...]))
    tensor([[0.],
            [0.]])
    """
    batch = next(iter(_with_own_targets(model, inputs, 1)))
    _check(batch)
    inside: Inputs = detached(batch[0])
    return inside


def _check(batch: Batch) -> None:
    """Check that inputs and targets are of one number of examples."""
    size, targets = batch_size(batch[0]), batch[1]
    if isinstance(targets, Tensor) and (targets.ndim == 0 or targets.shape[0] % size):
        raise InputError(
            f"targets of shape {tuple(targets.shape)} do not go with a batch of {size} "
            "examples; expected the batch as their first dimension"
        )


def _check_keys(model: nn.Module, inputs: Inputs, index: int) -> None:
    """Tell whether ``forward`` has an argument for each key of a batch that is a dict."""
    if not isinstance(inputs, dict) or _takes(model, inputs):
        return
    unknown = [key for key in inputs if not _takes(model, {key: None}, partial=True)]
    if LABELS in unknown and len(unknown) > 1:
        unknown.remove(LABELS)  # which are targets, once the others are gone
    known = [key for key in inputs if key not in unknown]
    if unknown:
        otherwise = "targets=[...] apart from the inputs"
        if len(known) == len(unknown) == 1:
            otherwise = f"pairs, [(batch[{known[0]!r}], batch[{unknown[0]!r}]) for batch in …]"
        raise InputError(
            f"batch {index} of inputs has {', '.join(map(repr, unknown))}, which "
            f"{type(model).__name__}.forward{_signature(model)} does not take; expected its "
            f"arguments by name, and the targets, if any, as {LABELS!r}: leave out what else there "
            f"is, or pass {otherwise}"
        )


def _is_batch(inputs: Any) -> bool:
    return isinstance(inputs, Tensor | tuple | Mapping)


def _arguments(batch: Any) -> Any:
    """Return a batch as arguments of a model; a list of tensors, as a DataLoader makes it, is a
    tuple.
    """
    if isinstance(batch, Mapping):
        return {key: as_builtin(value) for key, value in batch.items()}
    return tuple(map(as_builtin, batch)) if isinstance(batch, list | tuple) else batch


def _batches(inputs: Any, most: int) -> list[Any]:
    """Return the batches of a list, or the first few of another iterable."""
    if isinstance(inputs, list):
        batches = inputs
    elif isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes | nn.Module):
        if hasattr(inputs, "__array__"):
            raise InputError(f"inputs is a {type(inputs).__name__}; expected torch's tensors")
        with _unmoved(inputs) as source:
            # Copied one by one: whoever makes them may write each over the last.
            batches = [detached(batch) for batch in itertools.islice(source, most)]
    else:
        hint = ""
        if isinstance(inputs, Dataset):
            hint = "; a Dataset holds single examples: pass a DataLoader of it"
        raise InputError(
            "inputs must be a tensor, a tuple of arguments, a dict of keyword arguments, or "
            "batches of these: a list, a DataLoader or another iterable, got "
            f"{type(inputs).__name__}{hint}"
        )
    if not batches:
        kind = "list of inputs" if isinstance(inputs, list) else type(inputs).__name__
        raise InputError(f"the {kind} is empty; pass at least one batch")
    return batches


@contextlib.contextmanager
def _unmoved(source: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """Give the batches of ``source``, and put random states back behind it."""
    source = getattr(source, "base_dataloader", source)  # Accelerate's, beneath its wrapper
    batch_sampler = getattr(source, "batch_sampler", None)
    drawing = (
        source,
        batch_sampler,
        getattr(source, "sampler", None),
        getattr(batch_sampler, "sampler", None),
        getattr(source, "dataset", None),
    )
    generators = [getattr(each, "generator", None) for each in drawing]
    states = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    if isinstance(source, DataLoader):
        # Persistent workers have one iterator, which a loop around this may be reading.
        source = copy.copy(source)
        forget_workers(source)
    try:
        with preserved_rng():
            yield source
    finally:
        for generator, state in states:
            generator.set_state(state)


def _with_own_targets(model: nn.Module, inputs: Any, most: int) -> Iterator[Batch]:
    """Return batches with the targets that they hold, or None for those that hold none."""
    if _is_batch(inputs):
        # A tuple on its own is a tuple of arguments wherever it can be.
        yield _read(model, inputs)[0]
        return
    returns_loss = None
    for index, item in enumerate(_batches(inputs, most)):
        batch, is_sure = _read(model, item)
        if not is_sure:
            if returns_loss is None:
                returns_loss = _returns_loss(model, batch[0])
            if not returns_loss:
                raise InputError(_unclear(model, item, index))
        yield batch


def _read(model: nn.Module, item: Any) -> tuple[Batch, bool]:
    """Return a batch that may hold its own targets, and whether it can be read in this way
    alone.
    """
    arguments = _arguments(item)
    if isinstance(arguments, dict):
        rest = {key: value for key, value in arguments.items() if key != LABELS}
        if LABELS in arguments and not _takes(model, arguments) and _takes(model, rest):
            return (rest, arguments[LABELS]), True
        return (arguments, None), True
    if not isinstance(arguments, tuple):
        return (arguments, None), True
    whole, pair = _takes(model, arguments), False
    if len(arguments) == 2:
        first = _arguments(item[0])
        pair = _is_batch(first) and _takes(model, first)
        if pair and not whole:
            return (first, item[1]), True
    return (arguments, None), whole and not pair


def _takes(model: nn.Module, inputs: Inputs, partial: bool = False) -> bool:
    """Tell whether the model's ``forward`` can be called with so many arguments, of these names.

    With ``partial`` others may be missing.
    """
    args, kwargs = call_arguments(inputs)
    try:
        signature = inspect.signature(model.forward)
        (signature.bind_partial if partial else signature.bind)(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a forward without a signature, which takes what it will
        return True
    return True


def _returns_loss(model: nn.Module, inputs: Inputs) -> bool:
    twin = copied(model)
    args, kwargs = call_arguments(to_device(inputs, device_of(model)))
    try:
        with torch.no_grad(), untouched(twin):
            return own_loss(twin(*args, **kwargs)) is not None
    except Exception:  # whatever the user's code may raise on arguments that are none
        return False


def _unclear(model: nn.Module, item: Any, index: int) -> str:
    forward = f"{type(model).__name__}.forward{_signature(model)}"
    if not _takes(model, _arguments(item)):
        kinds = ", ".join(dict.fromkeys(described(value) for value in item))
        return (
            f"batch {index} of inputs holds {len(item)} values ({kinds}), which {forward} does not "
            "take; expected its arguments as tensors, a pair (inputs, targets) with a tuple of "
            "arguments first, or targets=[...] apart from the inputs"
        )
    return (
        f"batch {index} of inputs holds 2 values, which {forward} takes as two arguments or as "
        "inputs and targets: pass targets=[...] apart from the inputs, or the arguments as dicts"
    )


def _signature(model: nn.Module) -> str:
    try:
        names = ", ".join(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return ""
    return f"({names})"
