"""All stacks."""

from zoo.depth import ends, families, published, stages, streams, towers

STACKS = [
    *streams.STACKS,
    *stages.STACKS,
    *ends.STACKS,
    *towers.STACKS,
    *published.STACKS,
    *families.STACKS,
]
