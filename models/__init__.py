"""Example models, each one file to be read from top to bottom.

All use the standard parametrisation: a weight starts with standard deviation proportional to
1/sqrt(fan_in), and no layer carries a learning rate of its own. So the best learning rate moves
with width and depth, which is what flerm_fx is there to put right.

- :class:`ResMLP`: the paper's residual MLP.
- :class:`Transformer`: a decoder-only transformer in the paper's three normalisation schemes.
- :func:`add_lora`: low-rank updates of a frozen model's linear maps.
- :class:`ConvNet`: convolutions and BatchNorm, which couples the examples of a batch.

The paper: Milsom, Anson, Aitchison, *Function-Space Learning Rates*, ICML 2025, arXiv 2502.17405.
"""

from .convnet import ConvNet
from .lora import LoRALinear, add_lora
from .resmlp import ResMLP
from .transformer import Transformer

__all__ = ["ConvNet", "LoRALinear", "ResMLP", "Transformer", "add_lora"]
