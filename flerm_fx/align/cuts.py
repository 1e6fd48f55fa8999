"""Cuts say what the items of two models' lists are copies of: of stages, of rounds, of one kind."""

from __future__ import annotations

from flerm_fx.align.families import Families, is_round


def stages_opened(base: Families, target: Families) -> bool:
    """Cut the lists of both into stages, where both have as many first blocks of stages.

    These hold what other items of their lists do and more, and are rarer.
    """
    numbers = base.fuller(), target.fuller()
    opening = {
        kind[0]
        for side in numbers
        for kind, (full, lacking) in side.items()
        if full < lacking and len({n[kind][0] for n in numbers if kind in n}) == 1
    }
    for families in (base, target):
        families.open_stages(opening)
    return bool(opening)


def alike_joined(base: Families, target: Families) -> bool:
    """Make one kind of the items of each list that hold mostly the same.

    A stage of one block may have the first block's shortcut alone, and no block without one.
    """
    for families in (base, target):
        families.join_alike()
    return True


def rounds_in_both(base: Families, target: Families) -> bool:
    """Count rounds of items in lists where both go round in the same kinds.

    A block may be several items in a row, such as feed-forward, attention, feed-forward.
    """
    rows = [[tuple(row) for _, row in families.rows()] for families in (base, target)]
    rounds = {
        row[:period]
        for row in (*rows[0], *rows[1])
        for period in range(1, len(row) // 2 + 1)
        if is_round(row, row[:period])
    }
    # A longer round repeats a shorter one; one with each kind once needs no count of rounds.
    least = [r for r in rounds if not any(len(o) < len(r) and is_round(r, o) for o in rounds)]
    least = [r for r in least if len(set(r)) < len(r)]
    least = [r for r in least if all(any(is_round(row, r) for row in side) for side in rows)]
    for families in (base, target):
        families.go_round(least)
    return bool(least)
