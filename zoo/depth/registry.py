"""All stacks."""

from zoo.depth import streams

STACKS = [*streams.STACKS]
