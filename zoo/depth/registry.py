"""All stacks."""

from zoo.depth import families, stages, streams

STACKS = [*streams.STACKS, *stages.STACKS, *families.STACKS]
