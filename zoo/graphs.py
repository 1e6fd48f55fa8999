"""Parameter graphs can be kept in a folder, since capturing takes most of the time of matching.

ZOO_GRAPHS=folder python -m zoo.depth   # captures, and keeps what was captured
ZOO_GRAPHS=folder python -m zoo.depth   # reads it, for another try of the matching

A folder holds for one state of the capture and of the architectures: after a change there take an
empty one.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flerm_fx.align.parameter_graph import from_json, to_json

if TYPE_CHECKING:
    import networkx as nx


def kept(name: str, make: "Callable[[], nx.DiGraph]") -> "nx.DiGraph":
    """A graph from the folder that ZOO_GRAPHS names; made, and put there, if it is not in it."""
    folder = os.environ.get("ZOO_GRAPHS")
    if not folder:
        return make()
    file = Path(folder, re.sub(r"[^\w.]+", "-", name) + ".json")
    if file.exists():
        return from_json(json.loads(file.read_text()))
    made = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(to_json(made)))
    partial.rename(file)
    return made
