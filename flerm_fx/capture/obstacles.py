"""This module tells why a model has no graph: the construct in the way, and the user's line with
it.
"""

import contextlib
import functools
import inspect
import linecache
import os
import random
import re
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor, fx, nn

from flerm_fx.boundary.compat import pytree
from flerm_fx.errors import CaptureError
from flerm_fx.model.inputs import Inputs
from flerm_fx.model.randomness import preserved_rng, rng_state
from flerm_fx.ops.aliasing import is_mutation

_SPECIALISED = re.compile(r"specialized it to be a constant \((\d+)\)")
_HERE = os.path.dirname(os.path.dirname(__file__))


def construct(error: Exception, model: nn.Module) -> str:
    """Return the construct that export stopped at: the error and the user's line that raised it.

    Where torch raises only once it has gone through the model, it is the model's ``forward``.
    """
    summary = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {summary[0] if summary else ''}"
    if fixed := _SPECIALISED.search(str(error)):
        message = (
            f"a graph of it would hold for a batch of {fixed[1]} alone, since its code fixes that "
            "size, as by a comparison, a list or a constant shape"
        )
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    if frames:
        frame = frames[-1]
        return f"{message} ({frame.filename}:{frame.lineno}: {frame.line})"
    return message + where_defined(type(model).forward)


def not_run(model: nn.Module, inputs: Inputs, error: Exception) -> CaptureError:
    """Return the error that a model's own one becomes, where it cannot be run on a batch.

    >>> import torch
    >>> print(str(not_run(nn.Linear(4, 3), torch.zeros(2, 5), ValueError("no")))[:45])
    Linear cannot be run on inputs of float32 (2,
    """
    of = ", ".join(
        f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
        for leaf in pytree.tree_leaves(inputs)
        if isinstance(leaf, Tensor)
    )
    return CaptureError(
        f"{type(model).__name__} cannot be run on inputs of {of}; pass batches that its forward "
        f"takes (if none are passed, those of the profile are taken): {type(error).__name__}: "
        f"{error}"
    )


def where_defined(thing: Any) -> str:
    """Return `` (file:line)`` of a class or function, if it is known."""
    try:
        thing = inspect.unwrap(thing)
        return f" ({inspect.getsourcefile(thing)}:{inspect.getsourcelines(thing)[1]})"
    except (OSError, TypeError, ValueError):
        return ""


def where_drawn(run: Callable[[], Any]) -> str:
    """Return `` (file:line: code)`` where a run first draws from a generator outside of torch."""
    lines: list[str] = []
    last: tuple[str, int] | None = None
    state = rng_state()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        # An event comes before its line runs: what was drawn since the last one, that line drew.
        nonlocal last
        if lines or not _is_users(frame.f_code.co_filename):
            return None
        if last is not None and state.foreign(rng_state()):
            lines.append(_line(*last))
        last = frame.f_code.co_filename, frame.f_lineno
        return trace

    before = sys.gettrace()
    with preserved_rng(), contextlib.suppress(Exception):  # it has run once; this tells only where
        sys.settrace(trace)
        try:
            run()
        finally:
            sys.settrace(before)
            if not lines and last is not None and state.foreign(rng_state()):
                lines.append(_line(*last))
    return lines[0] if lines else ""


def where_replaced(run: Callable[[], Any], buffer: str) -> str:
    """Return `` (file:line: code)`` where a run puts something in the place of a buffer."""
    setters = (nn.Module.__setattr__.__code__, nn.Module.register_buffer.__code__)
    *_, own = buffer.split(".")
    lines: list[str] = []

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event != "call" or frame.f_code not in setters or frame.f_locals.get("name") != own:
            return
        at: FrameType | None = frame
        while at is not None and not _is_users(at.f_code.co_filename):
            at = at.f_back
        if at is not None:
            lines.append(_line(at.f_code.co_filename, at.f_lineno))

    before = sys.getprofile()
    with preserved_rng(), contextlib.suppress(Exception):  # as above
        sys.setprofile(profile)
        try:
            run()
        finally:
            sys.setprofile(before)
    return lines[0] if lines else ""


def where_written(graph: fx.Graph) -> str:
    """Return `` by ... (file:line: code)`` of an operation that writes to memory that is read
    again.
    """
    node = next((node for node in graph.nodes if is_mutation(node)), None)
    if node is None:
        return ""
    lines = re.findall(r'File "(.*?)", line (\d+)', node.meta.get("stack_trace") or "")
    users = [(file, int(number)) for file, number in lines if _is_users(file)]
    return f" by {node.target}" + (_line(*users[-1]) if users else "")


def _line(file: str, number: int) -> str:
    code = linecache.getline(file, number).strip()
    return f" ({file}:{number}{': ' + code if code else ''})"


@functools.cache
def _is_users(file: str) -> bool:
    path = file.replace("\\", "/")
    standard = os.path.dirname(random.__file__)
    return not (
        "/torch/" in path
        or "/numpy/" in path
        or file.startswith((_HERE, "<"))
        or os.path.dirname(file) == standard
    )
