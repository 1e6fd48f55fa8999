"""``python -m zoo.depth``: each stack at each pair of its depths, held to its names."""

import sys
from collections import Counter

from zoo.depth.registry import STACKS
from zoo.depth.stack import outcome
from zoo.verdicts import Verdict, alarms, listed


def main() -> int:
    """Print what came of each pair, and how many of each; the exit code is 1 if any is wrong."""
    wanted = sys.argv[1:]
    counts: Counter[Verdict] = Counter()
    for stack in STACKS:
        if wanted and stack.name not in wanted and stack.kind not in wanted:
            continue
        for pair in stack.pairs:
            found = outcome(stack, pair)
            counts[found.verdict] += 1
            depths = " to ".join("-".join(map(str, side)) for side in pair)
            message = "" if found.verdict == "right" else found.message.splitlines()[0][:200]
            print(f"{stack.name:<22} {depths:<16} {found.verdict:<16} {message}", flush=True)
    print(listed(counts))
    print(alarms(counts))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
