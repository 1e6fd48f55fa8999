"""This emitter puts scale nodes on a module itself, by ``torch.nn.utils.parametrize``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flerm_fx.boundary.compat import own_modules, own_parameters, state_dict_hooks
from flerm_fx.capture.captured import Capture
from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.loading import as_stored
from flerm_fx.emit.state import (
    EXTRA,
    effective,
    packed_units,
    read_vector,
    restored,
    scale_in,
    vector,
)
from flerm_fx.model.copying import copied
from flerm_fx.model.distributed import is_sharded_tensor
from flerm_fx.ops.scale import scale


class Scale(nn.Module):
    r"""A ``Scale`` is the parametrization :math:`\theta = s\,w`, whose extra state holds s.

    The state dict of a module that has one holds :math:`\theta` under its plain name, as a model
    without parametrizations does, and beside it what gives w back (:mod:`flerm_fx.emit.state`). A
    weight that is sharded over ranks stays w there, under the name that a parametrization gives it,
    by which ``torch.distributed.checkpoint`` finds it.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> before = layer.weight.detach().clone()
    >>> put_scales(layer, {"weight": 4.0})
    >>> torch.equal(layer.weight, before)
    True
    >>> torch.equal(layer.parametrizations.weight.original, before / 4)
    True
    """

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = s
        self.registering = True

    def forward(self, stored: Tensor) -> Tensor:
        """Return the effective weight."""
        return stored if self.s == 1.0 else scale(stored, self.s)

    def right_inverse(self, effective: Tensor) -> Tensor:
        """Return what is to be stored of a weight that is assigned."""
        return effective if self.registering else effective / self.s

    def get_extra_state(self) -> Tensor:
        """Return the scale, which as a buffer ``.to(torch.bfloat16)`` would round."""
        return torch.tensor(self.s, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the scale of a state dict.

        Raises:
            InputError: it is no finite number above 0.
        """
        self.s, _ = scale_in(state, EXTRA, "a parametrization")


def put_scales(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Give parameters of a model a :class:`Scale`, in place. Optimizers keep them as they are.

    Args:
        model: whose weights are divided by s.
        scales: s of each parameter, by canonical name. A tied one has a ``Scale`` in each place.
    """
    by_id = {id(p): scales[name] for name, p in model.named_parameters() if name in scales}
    model.register_load_state_dict_pre_hook(spread)  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        names = [n for n, p in own_parameters(module).items() if id(p) in by_id]
        for name in names:
            put = Scale(by_id[id(own_parameters(module)[name])])
            parametrize.register_parametrization(module, name, put, unsafe=True)
            put.registering = False
        if names:
            module.register_state_dict_post_hook(to_effective)  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(to_stored)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for p in model.parameters():
            if id(p) in by_id:
                p.div_(by_id[id(p)])


def take_scales(model: nn.Module) -> None:
    """Multiply the scales into the weights, and leave no :class:`Scale`, in place."""
    multiplied = set()
    _unhook(model, spread)
    for path, name in list(_places(model)):
        module = model.get_submodule(path)
        if not parametrize.is_parametrized(module, name):  # done by another of its paths
            continue
        _own_class(module)
        lists: Any = module.parametrizations
        put, original = lists[name][0], lists[name].original
        put.registering = True
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        _unhook(module, to_effective, to_stored)
        if id(original) not in multiplied:
            with torch.no_grad():
                original.mul_(put.s)
            multiplied.add(id(original))


def _unhook(module: nn.Module, *ours: Any) -> None:
    for hooks in state_dict_hooks(module):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in ours:
                del hooks[key]


def _own_class(module: nn.Module) -> None:
    """Give a module a class of its own: a copy shares its original's, and removing changes it."""
    kind = type(module)
    own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, own)


def set_scales(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Change the scales alone, not what is stored."""
    for name, put in _scales(model).items():
        for each in put:
            each.s = scales[name]


def to_effective(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any = None
) -> None:
    """Put the effective weights of a module's own parameters in its state dict, as a hook of it."""
    for name, put in _own_scales(module).items():
        held = f"{prefix}parametrizations.{name}."
        stored = state_dict.get(held + "original")
        if stored is not None and not is_sharded_tensor(stored):
            state_dict[prefix + name] = effective(state_dict.pop(held + "original"), put.s)
            state_dict[f"{held}0.{EXTRA}"] = vector([[put.s]], [packed_units(stored, put.s)])


def to_stored(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Turn effective weights in a state dict that a module loads into stored ones, as a hook of it.

    Scales are the whole model's affair (:func:`spread`), since tied weights have one in several
    modules: those of this module stay.
    """
    for name, put in _own_scales(module).items():
        held = f"{prefix}parametrizations.{name}."
        key = f"{held}0.{EXTRA}"
        weight = state_dict.pop(prefix + name, None)
        if weight is not None:
            s, units = scale_in(state_dict.get(key, torch.tensor(put.s)), key, prefix + name)
            state_dict[held + "original"] = restored(weight, put.s, units if s == put.s else None)
        if weight is not None or (key in state_dict and held + "original" not in state_dict):
            state_dict[key] = torch.tensor(put.s, dtype=torch.float64)


def spread(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read a state dict that a whole model loads, in whichever form, as a hook of the model.

    Raises:
        InputError: scales that are no finite numbers above 0, or are of other parameters.
    """
    has_its_own = type(model).get_extra_state is not nn.Module.get_extra_state
    extra = state_dict.pop(prefix + EXTRA, None)
    if extra is not None and not has_its_own:
        state_dict[prefix + EXTRA] = extra
    plain = plain_names(model)
    named = model.named_parameters(remove_duplicate=False)
    parameters = {plain.get(name, name): parameter for name, parameter in named}
    saved = as_stored(state_dict, prefix, parameters, scales_of(model))
    put_in_place(model, state_dict, prefix, saved.scales)
    state_dict.pop(prefix + EXTRA, None)
    if extra is not None and has_its_own:
        state_dict[prefix + EXTRA] = extra


def put_in_place(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, scales: Mapping[str, float]
) -> None:
    """Give stored weights, and the scales of all that are loaded, the names of parametrizations."""
    held = plain_names(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameters[place]) for place, name in held.items() if prefix + name in state_dict}
    names: dict[int, str] = {}
    for place, name in held.items():
        parameter = parameters[place]
        names.setdefault(id(parameter), name)
        if prefix + name in state_dict:
            state_dict[prefix + place] = state_dict.pop(prefix + name)
        if id(parameter) in loaded:
            s = torch.tensor(scales[names[id(parameter)]], dtype=torch.float64)
            state_dict[f"{prefix}{place.removesuffix('original')}0.{EXTRA}"] = s


def _own_scales(module: nn.Module) -> dict[str, Scale]:
    lists: Any = own_modules(module).get("parametrizations")  # its own: wrappers pass others' on
    if lists is None:
        return {}
    return {name: each[0] for name, each in lists.items() if isinstance(each[0], Scale)}


def scales_of(model: nn.Module) -> dict[str, float]:
    """Return the scales of a model, by the canonical names of its parameters; it may have none."""
    return {name: put[0].s for name, put in _scales(model).items()}


def plain_names(model: nn.Module) -> dict[str, str]:
    """Return the names in a model's state that its scales have given it, with those that it had
    before.
    """
    names = {}
    for path, name in _places(model):
        prefix = f"{path}." if path else ""
        names[f"{prefix}parametrizations.{name}.original"] = prefix + name
    return names


def state_names(model: nn.Module) -> dict[str, str]:
    """Return the name in a model's state dict of each :class:`Scale`, with its parameter's plain
    name.
    """
    return {
        held.removesuffix("original") + f"0.{EXTRA}": name
        for held, name in plain_names(model).items()
    }


def _places(model: nn.Module) -> list[tuple[str, str]]:
    """Return module path and name of each parameter that has a scale, the outermost last."""
    places = []
    for path, module in model.named_modules(remove_duplicate=False):
        places += [(path, name) for name in _own_scales(module)]
    return places


def _scales(model: nn.Module) -> dict[str, list[Scale]]:
    by_parameter: dict[int, list[Scale]] = {}
    names: dict[int, str] = {}
    for (path, name), plain in zip(_places(model), plain_names(model).values(), strict=True):
        lists: Any = model.get_submodule(path).parametrizations
        original = lists[name].original
        by_parameter.setdefault(id(original), []).append(lists[name][0])
        names.setdefault(id(original), plain)
    return {names[key]: put for key, put in by_parameter.items()}


class ModuleEmitter(Emitter):
    """The emitter puts scale nodes on the model itself, as parametrizations that all its methods
    see.

    A model that has its scales already keeps them.
    """

    in_place = True

    def __init__(self, skeleton: nn.Module, scales: Mapping[str, float]) -> None:
        super().__init__(skeleton, scales)
        if not scales_of(skeleton):
            put_scales(skeleton, scales)

    @classmethod
    def skeleton_of(cls, model: nn.Module, donate: bool) -> nn.Module:
        """Return the model itself."""
        return model

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each trainable parameter."""
        return scales_of(self.skeleton)

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Change the scales alone, not what is stored behind them."""
        set_scales(self.skeleton, scales)

    def plain(self) -> nn.Module:
        """Return a copy of the model without parametrizations."""
        model = copied(self.skeleton)
        take_scales(model)
        return model

    def traced(self) -> nn.Module:
        """Return a plain copy."""
        return self.plain()

    def bound(self, captured: Capture, scaled: nn.Module) -> Capture:
        """Return a capture on the weights by their plain names, which the scaled model has."""
        return captured.bound(scaled)

    def twin(self, captured: Capture) -> nn.Module:
        """Return a copy with its parametrizations."""
        return copied(self.skeleton)

    def plain_names(self) -> dict[str, str]:
        """Return names that the parametrizations have given, with those that there were before."""
        return plain_names(self.skeleton)

    def to_effective(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """Put effective weights under plain names, and return what gives the stored ones back, by
        parameter.

        Weights that are sharded over ranks stay as their parametrizations hold them.
        """
        units: dict[str, Tensor] = {}
        to_effective(self.skeleton, state_dict, prefix)
        for place, name in state_names(self.skeleton).items():
            if prefix + name in state_dict:
                (_, *_), left = read_vector(state_dict.pop(prefix + place), 1, place)
                units.setdefault(name, left)
        return units

    def to_places(
        self, state_dict: dict[str, Any], prefix: str, scales: Mapping[str, float]
    ) -> None:
        """Give stored weights, and their scales, the names of the parametrizations."""
        put_in_place(self.skeleton, state_dict, prefix, scales)
