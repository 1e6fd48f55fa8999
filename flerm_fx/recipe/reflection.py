"""An optimizer's class and instances show its rule: constructor, groups and settings."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from flerm_fx.errors import OptimizerError

# They choose an implementation or a device, not a rule: a profile recorded with a fused or
# capturable optimizer on a GPU must build the same rule on a CPU.
IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})

# What a group holds beside its rule: its parameters, and what schedulers write into it.
BESIDE_THE_RULE = IMPLEMENTATION | {
    "params",
    "param_names",
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "swa_lr",
    "base_momentum",
    "max_momentum",
}

_REFUSED = {
    torch.optim.LBFGS: "its step needs a closure that evaluates the loss again",
    torch.optim.SparseAdam: "it takes sparse gradients only",
}

PASS_OPTIMIZER = (
    "pass optimizer=… to flerm_fx.compile: an optimizer, its class, or a function from parameter "
    "groups to one"
)

BUILT = (
    "a start is simulated by an optimizer of the same class on a copy of the model: use one whose "
    "constructor takes parameter groups and numbers"
)

OptimizerLike = Optimizer | type[Optimizer] | Callable[..., Optimizer]

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


def torch_optimizer(name: str | None, source: str = "") -> type[Optimizer]:
    """Return the optimizer class of that name in ``torch.optim``; ``source`` is for the message."""
    kind = getattr(torch.optim, name, None) if name is not None else None
    if not (isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer):
        what = f"optimizer {name!r}" if name is not None else source or "an unnamed optimizer"
        raise OptimizerError(f"{what} is not in torch.optim; {PASS_OPTIMIZER}")
    refuse(kind)
    return kind


def refuse(kind: type[Optimizer]) -> None:
    """Raise OptimizerError for a class whose steps cannot be repeated."""
    for refused, reason in _REFUSED.items():
        if issubclass(kind, refused):
            raise OptimizerError(
                f"{kind.__name__} has no update rule that flerm_fx can repeat: {reason}; use an "
                "optimizer that steps on dense gradients, such as AdamW, SGD or Muon"
            )


def constructor_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a constructor, and of those that its ``**kwargs`` go on to."""
    by_name: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        if base is Optimizer and by_name:  # which is given the defaults, not the ``**kwargs``
            break
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                by_name.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return by_name


def _keeps_keywords(kind: type) -> bool:
    """Tell whether a constructor has ``**kwargs`` that no constructor which it calls names."""
    for base in kind.__mro__:
        if base is Optimizer:
            return True
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                return False
    return False


def constructor_defaults(kind: type) -> dict[str, Any]:
    """Return the defaults of a constructor's named parameters."""
    return {
        key: parameter.default
        for key, parameter in constructor_parameters(kind).items()
        if parameter.default is not inspect.Parameter.empty
    }


def is_optimizer_class(value: object) -> TypeGuard[type[Optimizer]]:
    """Tell whether something is a class of optimizers."""
    return isinstance(value, type) and issubclass(value, Optimizer)


def own_keys(optimizer: Optimizer) -> frozenset[str]:
    """Return the keys by which groups say more than an optimizer's defaults do.

    They choose the rule where an optimizer is several in one class: ``use_muon``, ``rank``. A
    default that the constructor does not take is a count of the optimizer's own, unless groups
    disagree on it, or the constructor makes defaults of its ``**kwargs``.
    """
    taken = constructor_parameters(type(optimizer)).keys()
    any_keyword = _keeps_keywords(type(optimizer))
    groups = [group for group in optimizer.param_groups if group["params"]]
    keys = {key for group in groups for key in group} - BESIDE_THE_RULE
    return frozenset(
        key
        for key in keys
        if key not in optimizer.defaults
        or (
            key not in taken
            and (any_keyword or any(g.get(key) != groups[0].get(key) for g in groups))
        )
    )


def kept_arguments(optimizer: Optimizer) -> dict[str, Any]:
    """Return the arguments of an optimizer's constructor that are no defaults of its groups.

    Raises:
        OptimizerError: one of them must be given, and is not kept under its name; or it is another
            optimizer or a model, which cannot be built again.
    """
    kind = type(optimizer)
    refuse(kind)
    kept = {}
    first, *rest = constructor_parameters(kind).items()
    for name, parameter in rest:
        if name in BESIDE_THE_RULE or name in optimizer.defaults:
            continue
        value = vars(optimizer).get(name, vars(optimizer).get(f"_{name}", parameter.default))
        if value is inspect.Parameter.empty:
            raise OptimizerError(
                f"{kind.__name__} cannot be built again, since its constructor needs {name!r}, "
                f"which it keeps neither in its parameter groups nor as an attribute; {BUILT}"
            )
        if isinstance(value, Optimizer | torch.nn.Module):
            raise OptimizerError(
                f"{kind.__name__} cannot be built again, since its constructor takes a "
                f"{type(value).__name__} as {name!r}; {BUILT}"
            )
        if value is not parameter.default:
            kept[name] = value
    if isinstance(inner := vars(optimizer).get(first[0]), Optimizer):
        raise OptimizerError(
            f"{kind.__name__} cannot be built again, since it is around another optimizer, "
            f"{type(inner).__name__}, whose step it changes; {BUILT}"
        )
    return kept


def shared_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Return the settings that an optimizer's groups share, with its defaults for weight decay."""
    settings: dict[str, Any] = {}
    for key, default in optimizer.defaults.items():
        values = [plain_setting(group.get(key, default)) for group in optimizer.param_groups]
        if all(value == values[0] for value in values):
            settings[key] = values[0]
        elif key in BESIDE_THE_RULE | {"weight_decay"}:
            settings[key] = default
        else:
            listed = ", ".join(dict.fromkeys(repr(value) for value in values))
            raise OptimizerError(
                f"the parameter groups of {type(optimizer).__name__} disagree on {key!r} "
                f"({listed}), so they are not one update rule; give every group the same {key!r} "
                "(learning rates and weight decay may differ)"
            )
    return settings


def groups_of(params: Params) -> list[dict[str, Any]]:
    """Return parameters as parameter groups, one if they are in none."""
    items: list[Any] = list(params)
    if not items:
        raise ValueError("there are none")
    if items and all(isinstance(item, dict) for item in items):
        return items
    return [{"params": items}]


def build_with(factory: Callable[..., Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """Call a user's factory, and hold it to the learning rate and settings of the groups."""
    asked = {}
    for group in groups:
        group["params"] = list(group["params"])
        settings = {key: value for key, value in group.items() if key != "params"}
        for item in group["params"]:
            asked[id(item[1] if isinstance(item, tuple) else item)] = settings
    optimizer = factory(groups)
    for built in optimizer.param_groups:
        wanted = [asked.get(id(parameter), {}) for parameter in built["params"]]
        if any(settings != wanted[0] for settings in wanted):
            raise OptimizerError(
                f"the optimizer function put parameters of different groups into one "
                f"{type(optimizer).__name__} group; it must keep the groups that it is given"
            )
        built.update(wanted[0] if wanted else {})
    return optimizer


def plain_setting(value: Any) -> Any:
    """Return a tensor of one element as a number, and lists, which is what JSON gives back, as
    tuples.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        return tuple(plain_setting(item) for item in value)
    return value


def is_number(value: Any) -> bool:
    """Tell whether a setting is a number, which a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
