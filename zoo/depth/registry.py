"""All stacks."""

from zoo.depth import ends, families, published, rows, stages, streams, towers

STACKS = [
    *streams.STACKS,
    *stages.STACKS,
    *ends.STACKS,
    *towers.STACKS,
    *published.STACKS,
    *rows.STACKS,
    *families.STACKS,
]
