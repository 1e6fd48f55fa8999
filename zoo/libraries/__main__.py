"""``python -m zoo.libraries``: architectures of libraries at pairs of depths, held to names."""

import importlib
import importlib.util
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator

from zoo.depth.stack import Stack, outcome
from zoo.verdicts import Verdict, alarms, listed

LIBRARIES = {
    "timm": "timm",
    "x_transformers": "transformers_x",
    "diffusers": "diffusers",
    "torch_geometric": "geometric",
}


def main() -> int:
    """Print what came of each pair, and how many of each; the exit code is 1 if any is wrong."""
    counts: defaultdict[str, Counter[Verdict]] = defaultdict(Counter)
    for stack in _wanted(sys.argv[1:]):
        for pair in stack.pairs:
            found = outcome(stack, pair)
            counts[stack.kind][found.verdict] += 1
            depths = " to ".join("-".join(map(str, side)) for side in pair)
            message = "" if found.verdict == "right" else found.message.splitlines()[0][:200]
            print(f"{stack.name:<22} {depths:<20} {found.verdict:<16} {message}", flush=True)
    for library, verdicts in counts.items():
        print(library, listed(verdicts))
    print(alarms(sum(counts.values(), Counter())))
    return int(any(verdicts["wrong"] for verdicts in counts.values()))


def _wanted(names: list[str]) -> Iterator[Stack]:
    """The architectures of libraries that are installed, all or those named."""
    for library, file in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            print(f"{library} is not installed")
            continue
        stacks: list[Stack] = importlib.import_module(f"zoo.libraries.{file}").STACKS
        yield from (s for s in stacks if not names or library in names or s.name in names)


if __name__ == "__main__":
    sys.exit(main())
