"""From a model to an annotated graph."""

from flerm_fx.capture.tracing import Capture, capture

__all__ = ["Capture", "capture"]
