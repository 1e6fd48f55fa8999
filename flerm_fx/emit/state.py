r"""A state dict holds scaled weights :math:`\theta = s\,w`, and what gives w back.

Effective weights under plain names are right wherever they are loaded. But :math:`\theta / s`
rounds, so w comes back a few units in its last place away, and a run that goes on from there is not
the run that was saved. Those units are kept beside the scales, twelve of them in a float64. All of
it is one vector of float64, since there are formats that hold nothing but tensors; its first number
is 1, and what comes back is relative to it, so that whoever multiplies all of a state dict has
multiplied the weights, and nothing else.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flerm_fx.boundary.compat import EXTRA_STATE
from flerm_fx.errors import InputError

EXTRA = EXTRA_STATE
"""What torch calls extra state in a state dict."""

_UNITS = 8
"""Units in the last place on either side that are kept: product, inverse and quotient round three
times, each by half a unit of a number whose unit is at most two of w's."""

_PACKED = 12
"""Numbers below 2 * 8 in the 53 bits of a float64."""


def effective(stored: Tensor, s: float) -> Tensor:
    """Return the weight that a model computes with, in memory of its own."""
    return _times(stored, s)


def restored(weight: Tensor, s: float, units: Tensor | None = None) -> Tensor:
    """Return the stored weight of an effective one, bit for bit with units of :func:`packed_units`.

    That is but for effective weights below the smallest ordinary number of their type, 1e-38 in
    float32 and 6e-5 in float16.

    >>> stored = torch.randn(1000)
    >>> weight = effective(stored, 0.3)
    >>> torch.equal(restored(weight, 0.3, packed_units(stored, 0.3)), stored)
    True
    """
    divided = _times(weight, 1 / s)  # devices differ in how they divide by a number
    if units is None or len(units) != packed_size(weight):
        return divided
    flat = _real(divided).reshape(-1)
    apart = _unpacked(units)[: len(flat)].to(flat.device)
    bits = flat.view(_integers(flat)) + apart.to(_integers(flat))
    moved = bits.view(flat.dtype)
    ordinary = (flat.abs() > torch.finfo(flat.dtype).tiny) & flat.isfinite() & moved.isfinite()
    whole = torch.where(ordinary, moved, flat).view(_real(divided).shape)
    return torch.view_as_complex(whole) if weight.is_complex() else whole


def packed_units(stored: Tensor, s: float) -> Tensor:
    """Return by how many units in the last place the stored weight differs from what division
    gives.
    """
    held = _real(stored.detach())
    divided = _real(_times(effective(stored.detach(), s), 1 / s))
    kind = _integers(held)
    apart = held.contiguous().view(kind) - divided.contiguous().view(kind)
    apart = torch.where((apart >= -_UNITS) & (apart < _UNITS), apart, 0)
    digits = apart.reshape(-1).cpu().long() + _UNITS
    digits = functional.pad(digits, (0, -len(digits) % _PACKED)).view(-1, _PACKED)
    return (digits * _powers()).sum(1).double()


def packed_size(weight: Tensor) -> int:
    """Return how many float64 the units of a weight take."""
    return -(-_real(weight).numel() // _PACKED)


def vector(numbers: Sequence[Sequence[float]], units: Sequence[Tensor] = ()) -> Tensor:
    """Return lists of numbers, and units, as one tensor.

    >>> vector([[0.5, 0.25], []])
    tensor([1.0000, 2.0000, 0.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    lengths = [float(len(each)) for each in numbers]
    head = [1.0, *lengths, *(number for each in numbers for number in each)]
    return torch.cat([torch.tensor(head, dtype=torch.float64), *units])


def read_vector(state: Tensor, lists: int, name: str) -> tuple[list[list[float]], Tensor]:
    """Return the lists of :func:`vector`, and all units, of which there are none if they were
    rounded.

    Raises:
        InputError: the tensor is none that :func:`vector` has made.

    >>> read_vector(2 * vector([[0.5, 0.25], []]), 2, "_extra_state")[0]
    [[0.5, 0.25], []]
    """
    flat = state.detach().cpu().double().reshape(-1)
    unit = float(flat[0]) if len(flat) else math.nan
    flat = flat / unit if unit else flat * math.nan
    lengths = [round(n) for n in flat[1 : 1 + lists].tolist() if math.isfinite(n) and n >= 0]
    if len(lengths) < lists or len(flat) < 1 + lists + sum(lengths):
        raise InputError(
            f"{name!r} in the state dict is no tensor of scales: a compiled model's state dict has "
            "a vector of float64 there; load the file as it was saved, or fold().state_dict()"
        )
    parts = flat[1 + lists :].split([*lengths, len(flat) - 1 - lists - sum(lengths)])  # type: ignore[no-untyped-call]
    numbers = [part.tolist() for part in parts[:-1]]
    is_exact = state.dtype == torch.float64 and bool(parts[-1].isfinite().all())
    return numbers, parts[-1] if is_exact else parts[-1][:0]


def scale_in(state: Tensor, name: str, parameter: str) -> tuple[float, Tensor | None]:
    """Return the scale in the extra state of a parametrization, and the units of its stored weight.

    A scalar is of a stored weight, which needs no units.

    Raises:
        InputError: there is none, or it is no finite number above 0.
    """
    if state.ndim == 0:
        s, units = float(state), None
    else:
        ((s, *_), *_), units = read_vector(state, 1, name)
    check_factors("scale", {parameter: s})
    return s, units


def check_factors(kind: str, factors: Mapping[str, float]) -> None:
    """Check that scales or multipliers are finite numbers above 0.

    Raises:
        InputError: one is not a finite number above 0; the message names its parameter.
    """
    for name, factor in factors.items():
        if not (isinstance(factor, int | float) and math.isfinite(factor) and factor > 0):
            raise InputError(
                f"the {kind} of {name!r} in the state is {factor!r}; expected a finite number "
                "above 0: nothing was loaded; load another checkpoint"
            )


def _times(tensor: Tensor, factor: float) -> Tensor:
    """Multiply in float32 at least, where a product with a number rounds alike on every device."""
    real = _real(tensor)
    wide = torch.promote_types(real.dtype, torch.float32)
    product = (real.to(wide) * factor).to(real.dtype)
    return torch.view_as_complex(product) if tensor.is_complex() else product


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _integers(tensor: Tensor) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]


def _powers() -> Tensor:
    return (2 * _UNITS) ** torch.arange(_PACKED)


def _unpacked(units: Tensor) -> Tensor:
    whole = units.round().long()[:, None]
    return (whole // _powers() % (2 * _UNITS) - _UNITS).reshape(-1)
