"""What the stacks read: the zoo's batches at the sizes that they share."""

from torch import Tensor

from zoo.batches import features, images


def vector() -> Tensor:
    """Four features an example."""
    return features(4)


def entries() -> Tensor:
    """Five entries an example, of four features each."""
    return features(5, 4)


def pictures() -> Tensor:
    """Pictures of 8 by 8."""
    return images(8)
