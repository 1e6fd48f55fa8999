"""A model becomes an annotated graph in this room."""

from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture

__all__ = ["Capture", "capture"]
