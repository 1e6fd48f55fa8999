"""This module lists the forms of what ``compile`` emits by the names that its ``emit`` takes."""

from typing import Literal

from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.graph import GraphEmitter
from flerm_fx.emit.groups import GroupsEmitter
from flerm_fx.emit.module import ModuleEmitter

Emit = Literal["graph", "module", "param_groups"]

EMITTERS: dict[Emit, type[Emitter]] = {
    "graph": GraphEmitter,
    "module": ModuleEmitter,
    "param_groups": GroupsEmitter,
}
