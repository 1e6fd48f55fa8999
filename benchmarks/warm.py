"""What torch and the library do once in a process, done before anything is timed."""

import torch
from torch import nn

import flerm_fx
from flerm_fx.probe.planner import Method


def warm_up() -> None:
    """Export, script decompositions, load kernels: on a model of two numbers."""
    model = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1))
    updates = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    methods: tuple[Method, ...] = ("exact", "sampled", "kronecker")
    for method in methods:
        samples = None if method == "exact" else 1
        flerm_fx.measure(model, updates, torch.ones(2, 1), method=method, samples=samples)
