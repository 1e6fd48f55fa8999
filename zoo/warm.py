"""First use of torch.export and of forward mode, which takes seconds: done once, before forking."""

import torch
from torch import nn

import flerm_fx

torch.set_num_threads(1)
_model = nn.Linear(2, 2)
flerm_fx.measure(_model, {"weight": torch.ones(2, 2)}, torch.ones(3, 2), method="exact")
flerm_fx.measure(_model, {"weight": torch.ones(2, 2)}, torch.ones(3, 2), method="sampled")
