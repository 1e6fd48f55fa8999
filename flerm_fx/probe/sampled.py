r"""The sampled FSLR: one random cotangent per example, in reverse mode.

For example n draw a random unit vector q over the K output coordinates and let
:math:`s_{n,l} = q \cdot \Delta_l f_n`. Then :math:`E s_{n,l}^2 = \lVert \Delta_l f_n \rVert^2 / K`,
so :math:`\mathrm{FSLR}_l^2` is the mean of :math:`s^2` over examples and draws, for all parameters
from one backward pass: with probes in the graph, :math:`s_{n,l}` is the derivative of
:math:`q \cdot f_n` in :math:`\varepsilon_l`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from flerm_fx.capture import Capture, cloned_buffers, preserved_rng
from flerm_fx.frontier import unit_update_name
from flerm_fx.inputs import Inputs
from flerm_fx.probe.cotangent import orthonormal, relative_variance


@dataclass(frozen=True)
class Samples:
    """Squared projections of each parameter's function change.

    Attributes:
        names: the parameters, in the order of the columns.
        squares: mean over the draws of s², shape (examples, parameters).
        draws: cotangents per example, m.
        coordinates: output coordinates per example, K.
    """

    names: tuple[str, ...]
    squares: Tensor
    draws: int
    coordinates: int

    def mean_square(self) -> Tensor:
        r"""Unbiased estimate of :math:`\mathrm{FSLR}_l^2`, shape (parameters,)."""
        return self.squares.mean(0)

    def variance(self) -> Tensor:
        r"""Unbiased estimate of the variance of :meth:`mean_square`, shape (parameters,).

        With relative variance r for each example, :math:`E v_n^2 = (E v_n)^2 (1 + r)`, so
        :math:`\tfrac{1}{N^2} \sum_n \tfrac{r}{1 + r} v_n^2` is unbiased for
        :math:`\tfrac{1}{N^2} \sum_n r (E v_n)^2`.
        """
        r = relative_variance(self.coordinates, self.draws)
        return r / (1 + r) * self.squares.square().mean(0) / self.squares.shape[0]


def sampled(
    captured: Capture,
    instrumented: fx.GraphModule | None,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    draws: int,
    generator: torch.Generator,
    coupled: bool = False,
    all_coordinates: bool = False,
) -> Samples:
    """Draw cotangents and project each parameter's function change on them.

    Args:
        captured: the model.
        instrumented: its graph with probes for the parameters of ``updates``, in that order; None
            on the eager path, where each example and draw costs a backward pass of its own.
        parameters: values of the trainable parameters.
        updates: unit update of each parameter.
        inputs: probe inputs, batch first.
        draws: cotangents per example.
        generator: source of the cotangents.
        coupled: treat the batch as one example, as where an operation mixes examples.
        all_coordinates: use the K unit vectors in place of random ones, which is exact.
    """
    names = tuple(updates)
    parameters = {name: value.detach() for name, value in parameters.items()}
    with preserved_rng():
        if instrumented is None:
            return _eager(captured, parameters, updates, inputs, draws, generator, coupled)
        state = {
            **cloned_buffers(instrumented),
            **{
                name: value.detach()
                for name, value in instrumented.named_parameters(remove_duplicate=False)
            },
            **parameters,
            **{
                unit_update_name(name): update.detach().to(parameters[name])
                for name, update in updates.items()
            },
        }
        leaf = next(iter(parameters.values()))
        epsilon = torch.zeros(len(names), device=leaf.device, dtype=_probe_dtype(leaf))
        flat = captured.flat(inputs)
        batched = [0 if isinstance(value, Tensor) else None for value in flat]

        def function(e: Tensor, *arguments: Any) -> Tensor:
            return torch.func.functional_call(instrumented, state, (e, *arguments))  # type: ignore[no-any-return]

        def projections(cotangents: Tensor, *arguments: Any) -> Tensor:
            whole = [
                value.unsqueeze(0) if where == 0 and not coupled else value
                for value, where in zip(arguments, batched, strict=True)
            ]
            pair: Any = torch.func.vjp(lambda e: function(e, *whole), epsilon)
            output, pullback = pair
            rows = [pullback(row.reshape(output.shape).to(output.dtype))[0] for row in cotangents]
            return torch.stack(rows)

        examples, coordinates = output_size(captured, parameters, inputs)
        if coupled:
            examples, coordinates = 1, examples * coordinates
        if all_coordinates:
            cotangents = torch.eye(coordinates).expand(examples, -1, -1)
        else:
            cotangents = orthonormal(examples, coordinates, draws, generator)
        cotangents = cotangents.to(epsilon)
        if coupled:
            projected = projections(cotangents[0], *flat).unsqueeze(0)
        else:
            projected = torch.func.vmap(projections, in_dims=(0, *batched), randomness="different")(
                cotangents, *flat
            )
        return Samples(
            names=names,
            squares=projected.square().mean(1),
            draws=cotangents.shape[1],
            coordinates=coordinates,
        )


def _probe_dtype(leaf: Tensor) -> torch.dtype:
    """Accumulate in float32 at least."""
    return torch.float64 if leaf.dtype == torch.float64 else torch.float32


def output_size(
    captured: Capture, parameters: Mapping[str, Tensor], inputs: Inputs
) -> tuple[int, int]:
    """Examples N and output coordinates K per example."""
    with torch.no_grad(), preserved_rng():
        output = captured.apply(parameters, inputs)
    return output.shape[0], math.prod(output.shape[1:])


def examples_of(inputs: Inputs) -> Iterator[Inputs]:
    """The batch, one example at a time, each as a batch of 1."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    for n in range(tensors[0].shape[0]):
        yield pytree.tree_map_only(Tensor, lambda t, n=n: t[n : n + 1], inputs)


def _eager(
    captured: Capture,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    draws: int,
    generator: torch.Generator,
    coupled: bool,
) -> Samples:
    """Projections by one backward pass for each example and draw: s = ⟨∂(q·f)/∂θ, u⟩."""
    batches = [inputs] if coupled else list(examples_of(inputs))
    squares = []
    coordinates = 0
    for batch in batches:
        leaves = {name: parameters[name].clone().requires_grad_() for name in updates}
        with torch.enable_grad():
            output = captured.apply({**parameters, **leaves}, batch)
        coordinates = output.numel()
        cotangents = orthonormal(1, coordinates, draws, generator)[0].to(output)
        projected = []
        for row in cotangents:
            gradients = torch.autograd.grad(
                output,
                list(leaves.values()),
                row.reshape(output.shape),
                retain_graph=True,
                allow_unused=True,
            )
            projected.append(
                torch.stack(
                    [
                        output.new_zeros(()) if g is None else (g * updates[name].to(g)).sum()
                        for name, g in zip(leaves, gradients, strict=True)
                    ]
                )
            )
        squares.append(torch.stack(projected).square().mean(0))
    return Samples(tuple(updates), torch.stack(squares), draws, coordinates)
