"""The emitters by the names that ``compile`` knows them by."""

from collections.abc import Mapping
from typing import Literal

from flerm_fx.emit.emitter import Emitter
from flerm_fx.emit.graph import GraphEmitter
from flerm_fx.emit.groups import GroupsEmitter
from flerm_fx.emit.module import ModuleEmitter

Emit = Literal["graph", "module", "param_groups"]

EMITTERS: Mapping[Emit, type[Emitter]] = {
    "graph": GraphEmitter,
    "module": ModuleEmitter,
    "param_groups": GroupsEmitter,
}
"""What each ``emit`` of :func:`flerm_fx.compile` puts on the model."""
