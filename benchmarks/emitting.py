"""The step time of emitted models, where that benchmark is there."""

import importlib
import importlib.util
from typing import Any


def run() -> dict[str, Any]:
    """What ``benchmarks.emitters`` measures; nothing without it."""
    if importlib.util.find_spec("benchmarks.emitters") is None:
        return {}
    found: dict[str, Any] = importlib.import_module("benchmarks.emitters").run()
    return found
