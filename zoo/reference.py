"""FSLRs without flerm_fx: a loop over parameters of the plain model's directional derivative."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from flerm_fx.model.inputs import Inputs, OutputFn, call_arguments, select_output

STEP = 1e-7
"""Of the central difference in float64, where the unit update is standard normal: small, so that no
relu turns within it."""

COARSE_STEP = 1e-4
"""Of the central difference in float32 that forward mode is held against."""

FINE_STEP = 1e-8
"""Of the one in float64, for what bends sooner: the norm of a vector that is zero at first."""

COARSE = 0.1
"""Relative difference between the two at which forward mode is not trusted: it drops the tangents
of a custom operator without a word."""


@dataclass(frozen=True)
class Reference:
    """FSLR of each parameter, and how they were computed."""

    fslrs: dict[str, float]
    method: str


def reference(
    model: nn.Module,
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    output_fn: OutputFn | None,
    seed: int,
    trusted: bool,
) -> Reference:
    """FSLRs by forward-mode derivatives; by central differences where there are none.

    Args:
        model: in the mode that is meant; left as it is.
        updates: of the parameters to measure.
        inputs: the batch.
        output_fn: picks the output tensor.
        seed: of random operations such as dropout, the same for each parameter.
        trusted: do not hold forward mode against differences, as for a model that detaches: what
            lies behind it has no derivative, and moves the output.
    """
    model = plain(model)
    try:
        output, derivative = _jvp(model, updates, inputs, output_fn, seed)
        function = _Function(model, inputs, output_fn, seed)
        if _equal(function(), output) and (trusted or _agrees(function, updates, derivative)):
            each = {
                name: _rms(_jvp(model, {name: update}, inputs, output_fn, seed)[1])
                for name, update in updates.items()
            }
            return Reference(each, "jvp")
    except (RuntimeError, NotImplementedError, ValueError):  # an operation without a derivative
        pass
    return Reference(by_differences(model, updates, inputs, output_fn, seed), "differences")


def random_updates(model: nn.Module) -> dict[str, Tensor]:
    """A seeded normal update for each trainable parameter."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(p.shape, generator=generator).to(p)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def copied(model: nn.Module) -> nn.Module:
    """A copy, also of a model that hooks have left tensors in (``nn.utils.weight_norm``)."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()
    return copy.deepcopy(model)


def plain(model: nn.Module) -> nn.Module:
    """A copy whose experts are run one by one, in operations that have every derivative."""
    twin = copied(model)
    choose: Callable[[str], None] | None = getattr(twin, "set_experts_implementation", None)
    if choose is not None:
        choose("eager")
    return twin


def _jvp(
    model: nn.Module,
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    output_fn: OutputFn | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The output, and its derivative in the direction of some updates."""
    args, kwargs = call_arguments(inputs)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def function(*values: Tensor) -> Tensor:
        state = {**parameters, **buffers, **dict(zip(updates, values, strict=True))}
        return select_output(functional_call(model, state, args, kwargs), output_fn)

    torch.manual_seed(seed)
    at = tuple(parameters[name] for name in updates)
    # The fused attention kernels have no forward-mode derivative.
    with _quiet(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        result = torch.func.jvp(function, at, tuple(updates.values()))
    return result[0], result[1]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are one but for rounding; under forward mode, dropout may draw anew."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def _agrees(function: "_Function", updates: Mapping[str, Tensor], derivative: Tensor) -> bool:
    """Whether a derivative is about the central difference."""
    coarse = function.central(updates, COARSE_STEP)
    if _rms(coarse - derivative) <= COARSE * _rms(coarse):
        return True
    doubled = {name: update.double() for name, update in updates.items()}
    fine = function.double().central(doubled, FINE_STEP)
    return _rms(fine - derivative) <= COARSE * _rms(fine)


def by_differences(
    model: nn.Module,
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    output_fn: OutputFn | None,
    seed: int,
    step: float = STEP,
) -> dict[str, float]:
    """FSLRs by central differences of a copy in float64: no derivative rule has a part in them."""
    function = _Function(plain(model), inputs, output_fn, seed).double()
    return {
        name: _rms(function.central({name: update.double()}, step))
        for name, update in updates.items()
    }


def by_rows(
    model: nn.Module,
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    output_fn: OutputFn | None,
    seed: int,
) -> dict[str, float]:
    """FSLRs from the whole Jacobian, one backward pass for each number in the output."""
    twin = plain(model)
    parameters = {name: p for name, p in twin.named_parameters() if name in updates}
    torch.manual_seed(seed)
    args, kwargs = call_arguments(inputs)
    with _quiet():
        output = select_output(twin(*args, **kwargs), output_fn).flatten()
    squares = dict.fromkeys(updates, 0.0)
    for number in output:
        rows = torch.autograd.grad(
            number, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        for name, row in zip(parameters, rows, strict=True):
            if row is not None:
                squares[name] += float((row.double() * updates[name]).sum()) ** 2
    return {name: (square / len(output)) ** 0.5 for name, square in squares.items()}


class _Function:
    """The output as a function of the parameters of a copy, which it moves."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, output_fn: OutputFn | None, seed: int
    ) -> None:
        self.model = copied(model)
        self.inputs = inputs
        self.output_fn = output_fn
        self.seed = seed
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}

    def double(self) -> "_Function":
        """The same in float64."""
        inputs = pytree.tree_map_only(Tensor, _double, self.inputs)
        return _Function(copied(self.model).double(), inputs, self.output_fn, self.seed)

    @torch.no_grad()
    def central(self, updates: Mapping[str, Tensor], step: float) -> Tensor:
        """The central difference in the direction of some updates."""
        parameters = dict(self.model.named_parameters())
        start = {name: parameters[name].clone() for name in updates}
        outputs = []
        for sign in (1, -1):
            for name, update in updates.items():
                parameters[name].copy_(start[name] + sign * step * update)
            outputs.append(self())
        for name, value in start.items():
            parameters[name].copy_(value)
        return (outputs[0] - outputs[1]) / (2 * step)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        torch.manual_seed(self.seed)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self.buffers[name])
        args, kwargs = call_arguments(self.inputs)
        with _quiet():
            return select_output(self.model(*args, **kwargs), self.output_fn).clone()


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _quiet() -> "warnings.catch_warnings[None]":
    return warnings.catch_warnings(action="ignore")
