"""Scaling laws: the multipliers of models that were never run."""
