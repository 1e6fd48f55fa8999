"""A model with scale nodes is called like the original, and trains the stored weights w = θ / s."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from flerm_fx.boundary.compat import adopt, pytree
from flerm_fx.capture.captured import Capture, modes
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.emitted import UNGRAPHED, Emitted
from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.graph import GraphEmitter
from flerm_fx.emit.loading import as_stored, from_extra_state
from flerm_fx.emit.lower import lowered, on_the_same_weights
from flerm_fx.emit.state import EXTRA, check_factors, vector
from flerm_fx.errors import CaptureWarning
from flerm_fx.model.copying import copied
from flerm_fx.model.hooks import keep_only
from flerm_fx.model.inputs import Inputs, call_arguments, is_floating
from flerm_fx.ops.scale import ScaleNodes, is_scale
from flerm_fx.start.precision import is_coarse, refined


class ScaledModel(nn.Module):
    r"""A ``ScaledModel`` is a model's captured graph, with a scale node for each parameter.

    The node computes :math:`\theta_l = s_l w_l`. Parameters and buffers have the model's names; a
    parameter holds :math:`w_l = \theta_l / s_l`, so the function is the model's. A graph serves one
    mode and the shapes that its guards admit (mostly any batch size); a call that differs captures
    another behind the scenes, all sharing parameters and buffers. Where the model does not export,
    the same scales are applied by ``torch.func.functional_call``.

    Where the scales are, and how a call runs, is the affair of its emitter
    (:mod:`flerm_fx.emit.emitter`).

    The state dict holds the *effective* weights :math:`\theta` under the model's own names,
    whichever way the scales are put, so that the plain model loads it for the same function; and as
    extra state the scales, and what gives w back bit for bit (:mod:`flerm_fx.emit.state`). A state
    dict without scales, such as the original model's, is read as effective weights too.

    Args:
        skeleton: the module whose parameters train, as the emitter takes it: a copy that this
            object may own, or the model itself. Its weights are divided by s.
        scales: s_l of each trainable parameter, by canonical name.
        emitter: the form in which the scales are put.

    >>> model = ScaledModel(nn.Linear(2, 1, bias=False), {"weight": 4.0})
    >>> print(model.graph_for((torch.zeros(3, 2),), {}).code.strip().splitlines()[3].strip())
    scale = flerm_fx_ops_scale_scale(weight, 4.0);  weight = None
    """

    def __init__(
        self,
        skeleton: nn.Module,
        scales: Mapping[str, float],
        emitter: type[Emitter] = GraphEmitter,
    ) -> None:
        super().__init__()
        # Set before the skeleton's names are there, which may be the same.
        self._emitter = emitter(skeleton, scales)
        self._graphs: dict[Any, Emitted] = {}
        self._given: tuple[tuple[bool, ...], Capture] | None = None
        self.register_state_dict_post_hook(_with_effective_weights)  # type: ignore[no-untyped-call]
        # The skeleton's own dictionaries: names, modes and buffers are one with it.
        adopt(self, skeleton)
        self.training = skeleton.training

    @property
    def scales(self) -> dict[str, float]:
        """The scale s_l of each trainable parameter; empty if there are no nodes."""
        return self.emitter.scales

    @property
    def skeleton(self) -> nn.Module:
        """The module whose parameters and buffers these are; its own forward does not scale."""
        return self.emitter.skeleton

    @property
    def emitter(self) -> Emitter:
        """The form in which the scales are put, with the skeleton in this model's mode."""
        self._emitter.skeleton.training = self.training
        return self._emitter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        return self.emitter.run(args, kwargs, lambda: self._emitted(args, kwargs))

    def graph_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.GraphModule | None:
        """Return the graph with scale nodes for such a call in the present mode, or None
        where the model does not export.

        It is the graph to read. What runs is its lowered form, with the same function and
        gradients (see :class:`flerm_fx.emit.lower.LowerScales`).

        Args:
            args: positional arguments of the call.
            kwargs: its keyword arguments.
        """
        return self._emitted(args, kwargs).graph_module

    def _emitted(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Emitted:
        if not all(isinstance(parameter, nn.Parameter) for parameter in self.parameters()):
            return UNGRAPHED  # torch.func.functional_call put other tensors in their place
        state, shapes, leaves = self._signature(args, kwargs)
        if (state, shapes) not in self._graphs:
            known = [e for (s, _), e in self._graphs.items() if s == state and e.holds(leaves)]
            self._graphs[state, shapes] = (
                known[0] if known else self._with_scales(self._captured(args, dict(kwargs)))
            )
        return self._graphs[state, shapes]

    def adopt(self, captured: Capture, inputs: Inputs) -> None:
        """Use a capture of the model for calls with such inputs in the present mode.

        Args:
            captured: of the model, or of a copy of it.
            inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        """
        state, shapes, _ = self._signature(*call_arguments(inputs))
        own = self.emitter.bound(captured, self)
        self._graphs[state, shapes] = self._with_scales(own, shared=True)
        self._given = (modes(self), own)

    def adopted(self, model: nn.Module) -> Capture | None:
        """Return that capture on a copy of the model, if the model is still in that mode.

        Args:
            model: the copy.
        """
        if self._given is None or self._given[0] != modes(self):
            return None
        return self._given[1].bound(model)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the stored weights, under the model's own names."""
        plain = self.emitter.plain_names()
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            yield (f"{prefix}." if prefix else "") + plain.get(name, name), parameter

    @property
    def multipliers(self) -> dict[str, float]:
        """Multipliers that are kept with the scales; none here, a hook for subclasses."""
        return {}

    def rescale(
        self, scales: Mapping[str, float], multipliers: Mapping[str, float] | None = None
    ) -> None:
        """Change the scales of the nodes alone. What is stored behind them is the caller's affair.

        All graphs are lowered before anything changes, and a failure leaves all as it was.

        Args:
            scales: s_l of each trainable parameter.
            multipliers: what they stand for, where that is not known from them to the last bit.

        Raises:
            InputError: a scale or multiplier that is no finite number above 0.
        """
        check_factors("scale", scales)
        check_factors("multiplier", multipliers or {})
        present = self.held()
        following = Held(dict(scales), {**present.multipliers, **(multipliers or {})}, {})
        again: dict[int, Emitted] = {}
        for key, emitted in present.graphs.items():
            if id(emitted) not in again:
                again[id(emitted)] = self._rescaled(emitted, following)
            following.graphs[key] = again[id(emitted)]
        try:
            self.hold(following)
        except BaseException:
            self.hold(present)
            raise

    def held(self) -> "Held":
        """Return all that :meth:`rescale` changes."""
        return Held(dict(self.scales), self.multipliers, dict(self._graphs))

    def hold(self, held: "Held") -> None:
        """Go back to what :meth:`held` returned."""
        self.emitter.set_scales(held.scales)
        self._graphs = dict(held.graphs)

    def _rescaled(self, emitted: Emitted, held: "Held") -> Emitted:
        if emitted.graph_module is None:
            return emitted
        twin = on_the_same_weights(emitted.graph_module)
        for node in twin.graph.nodes:
            if is_scale(node):
                node.args = (node.args[0], held.scales.get(node.meta["parameter"], 1.0))
        twin.recompile()
        self.annotate(twin, held.multipliers)
        return Emitted(twin, lowered(twin), emitted.guards)

    def annotate(self, graph_module: fx.GraphModule, multipliers: Mapping[str, float]) -> None:
        """Write what is known of each parameter to ``node.meta``, if a subclass knows anything."""

    def plain(self) -> nn.Module:
        """Return a copy of the original model with the effective weights θ = s·w in it."""
        return self.emitter.plain()

    def trained(self, captured: Capture) -> Capture:
        """Return a capture of a plain copy that has a graph, as this model is trained: with its
        nodes.

        Its model captures others for what that graph does not serve, as this one does.

        Args:
            captured: of the plain copy.
        """
        model = self._on(self.emitter.twin(captured), captured)
        if not is_coarse(captured.model):
            refined(model)
        return self._as_trained(model, captured)

    def trained_here(self) -> Capture | None:
        """Return the adopted capture as this model is trained, on its very parameters in another
        structure; None if it is in another mode by now, or others of its parameters train.

        What is put in the places of the parameters there is not seen by this model.
        """
        if self._given is None or self._given[0] != modes(self):
            return None
        captured, has_nodes = self._given[1], self.emitter.has_nodes
        training = {name for name, p in self.named_parameters() if p.requires_grad}
        if training != set(captured.parameters) or (has_nodes and captured.graph_module is None):
            return None
        twin = copied(self.skeleton, sharing=True)
        if not has_nodes:
            return captured.bound(twin)
        return self._as_trained(self._on(twin, captured, is_stored=True), captured)

    def _on(
        self, skeleton: nn.Module, captured: Capture, *, is_stored: bool = False
    ) -> "ScaledModel":
        """Return a model with the same scales on a skeleton, which may hold stored weights."""
        keep_only(skeleton, captured.hooks)  # its own are out of sight behind the scaled model
        scales = dict.fromkeys(self.scales, 1.0) if is_stored else self.scales
        model = ScaledModel(skeleton, scales, type(self.emitter))
        if is_stored:
            model.emitter.set_scales(self.scales)
        return model

    def _as_trained(self, model: "ScaledModel", captured: Capture) -> Capture:
        captured = captured.bound(model)
        for graph_module in (captured.graph_module, captured.probe_module):
            assert graph_module is not None
            ScaleNodes(self.scales)(graph_module)
        return captured

    def get_extra_state(self) -> Tensor:
        """Return scales and multipliers, each in the order of their parameters' sorted names."""
        return vector([_sorted(self.scales), _sorted(self.multipliers)])

    def set_extra_state(self, state: Any) -> None:
        """Take over scales and multipliers.

        Raises:
            InputError: they are of other parameters, or no finite numbers above 0.
        """
        saved = from_extra_state(state, "", self.scales, self.multipliers, {})
        scales = {name: saved.scales.get(name, s) for name, s in self.scales.items()}
        if scales != self.scales or saved.multipliers != self.multipliers:
            self.rescale(scales, saved.multipliers)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        parameters = dict(self.named_parameters(remove_duplicate=False))
        saved = as_stored(state_dict, prefix, parameters, self.scales, self.multipliers)
        state_dict[prefix + EXTRA] = {
            "scales": saved.scales,
            "multipliers": {**self.multipliers, **saved.multipliers},
        }
        self.emitter.to_places(state_dict, prefix, saved.scales)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _signature(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any, list[Any]]:
        """Return what a graph depends on, the shapes that its guards may admit, and the flat
        inputs.
        """
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        state = (
            modes(self),
            tuple(map(id, itertools.chain(self.parameters(), self.buffers()))),
            str(spec),
            tuple(
                # A batch of 1 is no instance of a dynamic batch.
                (leaf.dtype, leaf.device, leaf.ndim, leaf.shape[:1] == (1,))
                if isinstance(leaf, Tensor)
                else repr(leaf)
                for leaf in leaves
            ),
        )
        return state, tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor)), leaves

    def _captured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture | None:
        if args and kwargs:  # captured are positional or keyword arguments, not a mixture
            return None
        batches = {
            leaf.shape[:1]
            for leaf in pytree.tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        one_batch = len(batches) == 1 and not batches & {torch.Size([]), torch.Size([1])}
        model = self.emitter.traced()
        trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptureWarning)
            try:
                # Frozen or not by now, every scaled parameter needs its node.
                for name, parameter in model.named_parameters():
                    if self.emitter.has_nodes:
                        parameter.requires_grad_(name in self.scales)
                captured = capture(model, args or kwargs, _any_output, dynamic_batch=one_batch)
                return captured if model is self.skeleton else self.emitter.bound(captured, self)
            finally:
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_(trainable[name])

    def _with_scales(self, captured: Capture | None, *, shared: bool = False) -> Emitted:
        """Return the graphs of a capture with nodes, on copies where the capture is kept."""
        if captured is None or captured.graph_module is None:
            return UNGRAPHED
        graph_module = captured.graph_module
        if shared:
            graph_module = on_the_same_weights(graph_module)
        ScaleNodes(self.scales)(graph_module)
        self.annotate(graph_module, self.multipliers)
        return Emitted(graph_module, lowered(graph_module), captured.guards)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._graphs.clear()  # they hold buffers, dtypes and devices as they were
        self._given = None
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def __getstate__(self) -> dict[str, Any]:
        # A copy captures its own graphs, so that they share its weights.
        return {**self.__dict__, "_graphs": {}, "_given": None}


def _with_effective_weights(
    module: ScaledModel, state_dict: dict[str, Any], prefix: str, _: Any
) -> None:
    """Put effective weights under plain names, and as extra state what gives the stored ones
    back.
    """
    scales, units = module.scales, module.emitter.to_effective(state_dict, prefix)
    if units.keys() >= scales.keys():
        numbers = [_sorted(scales), _sorted(module.multipliers)]
        state_dict[prefix + EXTRA] = vector(numbers, [units[name] for name in sorted(scales)])


def _sorted(factors: Mapping[str, float]) -> list[float]:
    return [factors[name] for name in sorted(factors)]


@dataclass(frozen=True)
class Held:
    """A ``Held`` keeps scales, the multipliers that they stand for, and the graphs that have
    them.
    """

    scales: dict[str, float]
    multipliers: dict[str, float]
    graphs: dict[Any, Emitted]


def _any_output(output: Any) -> Tensor:
    """Return some floating tensor of the output: a training call does not say which one is
    measured.

    A loss, which has no batch, is none.
    """
    floating = [leaf for leaf in pytree.tree_leaves(output) if is_floating(leaf) and leaf.ndim]
    return floating[0] if floating else torch.zeros(1)
