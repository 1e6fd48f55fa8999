r"""The sampled FSLR takes one random cotangent per example, in reverse mode.

For example n draw a random unit vector q over the K output coordinates and let
:math:`s_{n,l} = q \cdot \Delta_l f_n`. Then :math:`E s_{n,l}^2 = \lVert \Delta_l f_n \rVert^2 / K`,
so :math:`\mathrm{FSLR}_l^2` is the mean of :math:`s^2` over examples and draws, for all parameters
from one backward pass (see :mod:`flerm_fx.probe.taps`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flerm_fx.boundary.compat import pytree, shape_given
from flerm_fx.capture.captured import Capture
from flerm_fx.model.inputs import Inputs
from flerm_fx.model.randomness import preserved_rng
from flerm_fx.probe.cotangent import Cotangents
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.live_signs import Signs
from flerm_fx.probe.streamed import applied, device_of_inputs
from flerm_fx.probe.taps import by_taps


@dataclass(frozen=True)
class Samples:
    """A ``Samples`` holds squared projections of each parameter's function change.

    Attributes:
        names: the parameters, in the order of the columns.
        squares: mean over the draws of s², shape (examples, parameters).
        cotangents: what was drawn.
    """

    names: tuple[str, ...]
    squares: Tensor
    cotangents: Cotangents | Signs

    def mean_square(self) -> Tensor:
        r"""Unbiased estimate of :math:`\mathrm{FSLR}_l^2`, shape (parameters,)."""
        return self.squares.mean(0)

    def variance(self) -> Tensor:
        r"""Unbiased estimate of the variance of :meth:`mean_square`, shape (parameters,).

        With relative variance r for each example, :math:`E v_n^2 = (E v_n)^2 (1 + r)`, so
        :math:`\tfrac{1}{N^2} \sum_n \tfrac{r}{1 + r} v_n^2` is unbiased for
        :math:`\tfrac{1}{N^2} \sum_n r (E v_n)^2`.
        """
        r = self.cotangents.relative_variance
        return r / (1 + r) * self.squares.square().mean(0) / self.squares.shape[0]


def relative_errors(mean_square: Tensor, variance: Tensor) -> Tensor:
    r"""Return the relative errors of roots of mean squares, few draws included.

    A mean square of the relative variance :math:`\rho^2` is taken for one of :math:`\nu` normal
    numbers. Of these :math:`\rho^2` is estimated by :math:`2 / (\nu + 2)`
    (:meth:`Samples.variance`), and the logarithm of a :math:`\chi^2_\nu` has the variance
    :math:`\psi_1(\nu / 2)`, so that

    .. math:: \epsilon = \tfrac12 \sqrt{\psi_1(\rho^{-2} - 1)}.

    It is :math:`\rho / 2`, the error of a root to first order, where draws are many, and more where
    they are few, or one example outweighs all others: 1.11 for a single square.

    >>> square = torch.tensor([1.0, 1.0, 0.0])
    >>> variance = torch.tensor([2 / 3, 2 / 10_002, 0.0])  # of 1 and of 10,000 normal numbers
    >>> [round(float(error), 4) for error in relative_errors(square, variance)]
    [1.1107, 0.0071, 0.0]
    """
    relative = variance.double() / mean_square.double().square().clamp_min(1e-300)
    half = (1 / relative.clamp_min(1e-300) - 1).clamp_min(0.5)
    errors = torch.polygamma(1, half).sqrt() / 2
    return torch.where((mean_square > 0) & (relative > 0), errors, 0.0)


def sampled(
    captured: Capture,
    tapped: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    cotangents: Cotangents,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> Samples:
    """Draw cotangents and project each parameter's function change on them.

    Args:
        captured: the model.
        tapped: its graph with taps for the parameters of ``updates``.
        parameters: values of the trainable parameters.
        updates: unit update of each parameter.
        inputs: probe inputs, batch first.
        cotangents: what to draw.
        generator: source of the cotangents.
        rows: the examples in ``inputs``, where they are some of those of ``cotangents``.
    """
    columns = []
    device = device_of_inputs(pytree.tree_leaves(inputs))
    for drawn in cotangents.sets(generator, rows, device):
        products = projections(captured, tapped, parameters, updates, inputs, drawn)
        columns.append(products.square().sum(1))
    return Samples(tuple(updates), sum(columns[1:], columns[0]) / cotangents.draws, cotangents)


def projections(
    captured: Capture,
    tapped: fx.GraphModule,
    parameters: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    inputs: Inputs,
    cotangents: Tensor,
) -> Tensor:
    r"""Return the projections :math:`s_{n,i,l} = q_{n,i} \cdot \Delta_l f_n` on given cotangents.

    All rows share one forward pass, and no gradient of a weight is formed.

    Args:
        captured: the model.
        tapped: as for :func:`sampled`.
        parameters: as for :func:`sampled`.
        updates: as for :func:`sampled`.
        inputs: as for :func:`sampled`.
        cotangents: rows q of shape (examples, rows, coordinates); one example has the coordinates
            of the whole batch, where an operation mixes examples.

    Returns:
        A tensor of shape (examples, rows, parameters).
    """
    parameters = {name: value.detach() for name, value in parameters.items()}
    with preserved_rng():
        return by_taps(tapped, parameters, updates, captured.flat(inputs), cotangents)


def estimated(taken: Sequence[Samples], method: str, note: str) -> dict[str, Estimate]:
    """Return estimates from independent sets of draws, each weighted by its number of draws."""
    draws = sum(s.cotangents.draws for s in taken)
    weights = [s.cotangents.draws / draws for s in taken]
    squares = sum(w * s.mean_square().double() for w, s in zip(weights, taken, strict=True))
    variance = sum(w**2 * s.variance().double() for w, s in zip(weights, taken, strict=True))
    values = torch.as_tensor(squares).sqrt()
    errors = values * relative_errors(torch.as_tensor(squares), torch.as_tensor(variance))
    method, samples = ("exact", 0) if taken[0].cotangents.every else (method, draws)
    return {
        name: Estimate(float(value), float(error), method, samples, note)
        for name, value, error in zip(taken[0].names, values, errors, strict=True)
    }


def output_size(
    captured: Capture, parameters: Mapping[str, Tensor], inputs: Inputs
) -> tuple[int, int]:
    """Examples N and output coordinates K per example; the model runs where no graph tells."""
    shape: Sequence[int] | None = _shape_by_graph(captured, inputs)
    if shape is None:
        with preserved_rng():
            shape = applied(captured, parameters, inputs).shape
    return shape[0], math.prod(shape[1:])


def _shape_by_graph(captured: Capture, inputs: Inputs) -> tuple[int, ...] | None:
    """Return the shape of the output, if the shapes of the inputs decide it."""
    if captured.probe_module is None:
        return None
    graph = captured.probe_module.graph
    (output,) = (node.meta.get("val") for node in graph.output_node().all_input_nodes)
    values = [node.meta.get("val") for node in graph.find_nodes(op="placeholder")]
    pairs = zip(values, captured.flat(inputs), strict=True)
    tensors = [(v.shape, x.shape) for v, x in pairs if isinstance(v, Tensor)]
    return shape_given(output.shape, tensors) if isinstance(output, Tensor) else None


def examples_of(inputs: Inputs) -> Iterator[Inputs]:
    """Return the batch, one example at a time, each as a batch of 1."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    for n in range(tensors[0].shape[0]):
        yield pytree.tree_map_only(Tensor, lambda t, n=n: t[n : n + 1], inputs)
