"""Architectures of the zoo from ``transformers``, at other depths of each stage."""

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from flerm_fx.model.inputs import Inputs
from zoo.depth.stack import Depths, Stack
from zoo.registry import architectures


def _family(
    name: str,
    pairs: Sequence[tuple[Depths, Depths]],
    settings: Sequence[str] = ("depths",),
    rule: Mapping[str, str] | None = None,
) -> Stack:
    """One whose configuration has depths as a list, or as a setting for each stage."""

    def build(depths: Depths) -> nn.Module:
        model = architectures()[name].make("base")
        config = copy.deepcopy(model.config)
        if len(settings) == 1:
            setattr(config, settings[0], list(depths))
        else:
            for setting, depth in zip(settings, depths, strict=True):
                setattr(config, setting, depth)
        return type(model)(config)

    def inputs() -> Inputs:
        return architectures()[name].inputs()

    return Stack(f"{name}-stages", "transformers", build, inputs, pairs, rule)


TWO = [((1, 1), (2, 3)), ((1, 2), (3, 2))]
FIRST_DIFFERS = [((1, 1), (2, 3)), ((1, 1), (3, 1))]
"""Where the first block of a stage has a shortcut, names do not tell what later blocks answer to if
the base has several."""

TWO_STACKS = ("encoder_layers", "decoder_layers")

STACKS = [
    _family("swin", TWO),
    _family("swinv2", TWO),
    _family("convnext", TWO),
    _family("convnextv2", TWO),
    _family("segformer", TWO),
    _family("pvt", TWO),
    _family("pvt_v2", TWO),
    _family("poolformer", TWO),
    _family("focalnet", TWO),
    _family("cvt", [((2, 2), (3, 4)), ((1, 2), (2, 3))], ("depth",)),
    _family("regnet", FIRST_DIFFERS),
    _family("resnet-bottleneck", FIRST_DIFFERS),
    _family("bit", FIRST_DIFFERS),
    _family("bart", TWO, TWO_STACKS),
    _family("whisper", TWO, TWO_STACKS),
    _family("t5", TWO, ("num_layers", "num_decoder_layers")),
]
