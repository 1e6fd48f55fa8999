"""All stacks."""

from zoo.depth import ends, families, stages, streams, towers

STACKS = [
    *streams.STACKS,
    *stages.STACKS,
    *ends.STACKS,
    *towers.STACKS,
    *families.STACKS,
]
