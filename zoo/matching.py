"""``python -m zoo.matching``: what is matched at other sizes, and what of it is warned of.

python -m zoo.matching             # all architectures of the zoo
python -m zoo.matching causal clip # a family, an architecture

Nothing is trained or measured, so that it takes a tenth of the time of ``python -m zoo``.
"""

import argparse
import multiprocessing
import os
import sys
import warnings
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from flerm_fx.align.aligning import align
from flerm_fx.align.doubts import doubts_of
from flerm_fx.align.parameter_graph import capture_graph, parameters
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import FlermError
from zoo.architecture import SIZES, Architecture, Size
from zoo.graphs import kept
from zoo.names import against
from zoo.registry import architectures, chosen
from zoo.verdicts import Verdict, alarms, listed

if TYPE_CHECKING:
    import networkx as nx


def main() -> int:
    """Print what is not as names tell or in doubt, and how many are; 1 if any is wrong."""
    parser = argparse.ArgumentParser(prog="python -m zoo.matching", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures or families; all if none")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error")
    names = [architecture.name for architecture in chosen(options.names)]
    counts: Counter[Verdict] = Counter()
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs, maxtasksperchild=16) as pool:
        for found in pool.imap(matched, names):
            for line in found:
                counts[line[2]] += 1
                print(f"{line[0]:<30} {line[1]:<6} {line[2]:<16} {line[3][:200]}", flush=True)
    print(listed(counts))
    print(alarms(counts))
    return int(counts["wrong"] > 0)


def matched(name: str) -> list[tuple[str, str, Verdict, str]]:
    """Match the other sizes of an architecture with its base: name, size, verdict and why."""
    import torch

    torch.set_num_threads(1)
    architecture = architectures()[name]
    graphs = {}
    found: list[tuple[str, str, Verdict, str]] = []
    for size in SIZES:
        if size not in architecture.sizes:
            continue
        graphs[size] = graph = kept(f"{name}-{size}", partial(_captured, architecture, size))
        if size == "base":
            continue
        try:
            matches = align(graphs["base"], graph)
        except FlermError as error:
            found.append((name, size, "refused", str(error)))
            continue
        doubts = doubts_of(matches)
        used = [n for n in parameters(graph) if graph.nodes[n]["op"]]
        wrong = against(architecture, size, matches, used)
        verdict: Verdict = "in doubt" if doubts else "right"
        if wrong:
            verdict = "wrong, in doubt" if doubts else "wrong"
        found.append((name, size, verdict, wrong or (str(doubts[0]) if doubts else "")))
    return found


def _captured(architecture: Architecture, size: Size) -> "nx.DiGraph":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = architecture.make(size, seed=size != "base")
        return capture_graph(capture(model, architecture.inputs(), architecture.output_fn))


if __name__ == "__main__":
    sys.exit(main())
