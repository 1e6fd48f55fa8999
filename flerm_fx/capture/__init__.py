"""From a model to an annotated graph."""

from flerm_fx.capture.captured import Capture
from flerm_fx.capture.tracing import capture

__all__ = ["Capture", "capture"]
