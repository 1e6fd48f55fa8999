"""This module builds models that are named on the command line."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from flerm_fx.errors import InputError, shown


def load_model(name: str) -> nn.Module:
    """Return the model that ``package.module:factory`` names: a module, or what a function returns.

    Modules in the working directory are found too.

    Raises:
        InputError: the name has another form, it cannot be imported, or it gives no model.

    >>> load_model("torch.nn:Identity")
    Identity()
    """
    try:
        named = _named(name)
        model = named if isinstance(named, nn.Module) else named()
    except InputError:
        raise
    except Exception as error:  # whatever importing and building the user's code may raise
        raise InputError(
            f"--model {name!r} gives no model: {type(error).__name__}: {shown(error)}; "
            "expected package.module:factory, a function without arguments that returns one"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"--model {name!r} gives a {type(model).__name__}; expected a torch.nn.Module"
        )
    return model


def load_factory(name: str) -> Callable[..., nn.Module]:
    """Return the function that ``package.module:factory`` names, which makes models of several
    sizes.

    Raises:
        InputError: the name has another form, it cannot be imported, or it gives no function.

    >>> load_factory("torch.nn:Identity")()
    Identity()
    """
    try:
        named = _named(name)
    except InputError:
        raise
    except Exception as error:  # whatever importing the user's code may raise
        raise InputError(
            f"--model {name!r} cannot be imported: {type(error).__name__}: {shown(error)}; "
            "expected package.module:factory, a function that makes a model of a size"
        ) from error
    if isinstance(named, nn.Module) or not callable(named):
        raise InputError(
            f"--model {name!r} is a {type(named).__name__}; expected a function that makes a model "
            "of a size, such as make(width=64)"
        )
    made: Callable[..., nn.Module] = named
    return made


def _named(name: str) -> Any:
    """Return what a name stands for; importing it may raise anything."""
    path, colon, attribute = name.partition(":")
    if not (path and colon and attribute):
        raise InputError(f"--model is {name!r}; expected package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    value = importlib.import_module(path)
    for part in attribute.split("."):
        value = getattr(value, part)
    return value
