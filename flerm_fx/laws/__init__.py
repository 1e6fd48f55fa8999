"""Scaling laws give the multipliers of models that were never run."""
