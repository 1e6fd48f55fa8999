"""Scale nodes on a module itself, by ``torch.nn.utils.parametrize``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flerm_fx.scale import scale

EXTRA = "_extra_state"


class Scale(nn.Module):
    r"""The parametrization :math:`\theta = s\,w`, whose state dict holds s.

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
        """The effective weight."""
        return stored if self.s == 1.0 else scale(stored, self.s)

    def right_inverse(self, effective: Tensor) -> Tensor:
        """What to store of a weight that is assigned."""
        return effective if self.registering else effective / self.s

    def get_extra_state(self) -> Tensor:
        """The scale; no buffer, which ``.to(torch.bfloat16)`` would round."""
        return torch.tensor(self.s, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it over."""
        self.s = float(state)


def put_scales(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Give parameters of a model a :class:`Scale`, in place; optimizers keep them as they are.

    Args:
        model: whose weights are divided by s.
        scales: s of each parameter, by canonical name. A tied one has a ``Scale`` in each place.
    """
    by_id = {id(p): scales[name] for name, p in model.named_parameters() if name in scales}
    for module in list(model.modules()):
        for name, parameter in list(module._parameters.items()):
            if id(parameter) in by_id:
                put = Scale(by_id[id(parameter)])
                parametrize.register_parametrization(module, name, put, unsafe=True)
                put.registering = False
    with torch.no_grad():
        for p in model.parameters():
            if id(p) in by_id:
                p.div_(by_id[id(p)])


def take_scales(model: nn.Module) -> None:
    """Multiply the scales into the weights, and leave no :class:`Scale`, in place."""
    multiplied = set()
    for path, name in list(_places(model)):
        module = model.get_submodule(path)
        if not parametrize.is_parametrized(module, name):  # done by another of its paths
            continue
        _own_class(module)
        lists: Any = module.parametrizations
        put, original = lists[name][0], lists[name].original
        put.registering = True
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        if id(original) not in multiplied:
            with torch.no_grad():
                original.mul_(put.s)
            multiplied.add(id(original))


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


def scales_of(model: nn.Module) -> dict[str, float]:
    """The scales of a model, by the canonical names of its parameters; none if it has none."""
    return {name: put[0].s for name, put in _scales(model).items()}


def plain_names(model: nn.Module) -> dict[str, str]:
    """The names in a model's state that its scales have given it, with those that it had before."""
    names = {}
    for path, name in _places(model):
        prefix = f"{path}." if path else ""
        names[f"{prefix}parametrizations.{name}.original"] = prefix + name
    return names


def state_names(model: nn.Module) -> dict[str, str]:
    """The name in a model's state dict of each :class:`Scale`, with its parameter's plain name."""
    return {
        held.removesuffix("original") + f"0.{EXTRA}": name
        for held, name in plain_names(model).items()
    }


def _places(model: nn.Module) -> list[tuple[str, str]]:
    """Module path and name of each parameter that has a scale, the outermost last."""
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        lists: Any = module._modules.get("parametrizations")  # its own: wrappers pass others' on
        if lists is not None:
            found += [(path, n) for n, each in lists.items() if isinstance(each[0], Scale)]
    return found


def _scales(model: nn.Module) -> dict[str, list[Scale]]:
    by_parameter: dict[int, list[Scale]] = {}
    names: dict[int, str] = {}
    for (path, name), plain in zip(_places(model), plain_names(model).values(), strict=True):
        lists: Any = model.get_submodule(path).parametrizations
        original = lists[name].original
        by_parameter.setdefault(id(original), []).append(lists[name][0])
        names.setdefault(id(original), plain)
    return {names[key]: put for key, put in by_parameter.items()}
