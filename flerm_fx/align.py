"""Alignment: which base parameters each target parameter answers to, found from structure."""

import bisect
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import networkx as nx

from flerm_fx.errors import MatchError
from flerm_fx.isomorphism import isomorphism, neighbourhoods
from flerm_fx.parameter_graph import chain, parameters
from flerm_fx.repeats import Quotient, Run, fold_alike, on_data

Mapped = Mapping[str, str] | Callable[[str], str | None]
Shares = dict[str, dict[str, Fraction]]  # of each base parameter, by target parameter


@dataclass(frozen=True)
class Match:
    r"""The base parameters that one target parameter answers to.

    Attributes:
        target: the target parameter.
        base: base parameters in their execution order, each with the share of its FSLR, its
            function-space mass, that goes to this target parameter. Over all targets, the shares
            of one base parameter sum to 1. Empty for a parameter that the target does not use.
    """

    target: str
    base: tuple[tuple[str, float], ...]


def align(base: nx.DiGraph, target: nx.DiGraph, mapping: Mapped | None = None) -> dict[str, Match]:
    r"""Match the parameters of two parameter graphs by structure.

    Equal graphs (whatever the widths, initialisation, names, wrapping or order of registration)
    are matched one to one: Weisfeiler-Lehman colours of operations, slots, ranks and kinds pair
    the nodes, execution order settles what is symmetric. Otherwise the repeated blocks of both
    graphs are found, and n base blocks are laid over m target blocks in order. Base block i covers
    :math:`[i/n, (i+1)/n)`, target block j gets what falls in :math:`[j/m, (j+1)/m)`:

    .. math:: \mathrm{share}_{ij} = n \,\bigl|[\tfrac{i}{n}, \tfrac{i+1}{n})
              \cap [\tfrac{j}{m}, \tfrac{j+1}{m})\bigr|, \qquad \sum_j \mathrm{share}_{ij} = 1.

    For m = k n that is the equal split by k (Milsom et al. 2025, section 4). Repeats may nest
    (stages of blocks, layers of one kind in a longer pattern); their shares multiply.

    A block is bounded by the data flow: it lies between two values that everything passes through,
    such as the residual stream after an addition. Where the sequence of blocks can be cut in
    several ways (``embed norm [attn norm mlp norm]*`` or ``embed [norm attn norm mlp]* norm``), a
    block starts where the stream forks; after that, one block is one module of the model; after
    that, the cut in step with the beginning is taken.

    Args:
        base: parameter graph of the base model.
        target: parameter graph of the target.
        mapping: base name for a target name, as a dict or a function that may return None. What it
            names is taken as given, a base parameter mapped to k targets gives each 1/k, and the
            rest is aligned by structure without these parameters.

    Returns:
        A :class:`Match` for each target parameter, in the target's execution order. Time and
        memory are O((V + E) log V) for equal graphs, times a few rounds of refinement; repeats add
        O(T p) for T blocks in sequence and p up to T / 2 periods tried.

    Raises:
        MatchError: parameters of either side have no counterpart, or ``mapping`` names unknown
            ones. The message lists each, with its nearest candidates.

    Example::

        >>> def mlp(depth):
        ...     names = ["embed", *(f"layers.{i}.fc" for i in range(depth)), "head"]
        ...     kinds = ["Embedding", *["Linear"] * depth, "Head"]
        ...     return chain((f"{n}.weight", k, "weight", 2) for n, k in zip(names, kinds))
        >>> for match in align(mlp(2), mlp(3)).values():
        ...     print(match.target, [(name, round(share, 3)) for name, share in match.base])
        embed.weight [('embed.weight', 1.0)]
        layers.0.fc.weight [('layers.0.fc.weight', 0.667)]
        layers.1.fc.weight [('layers.0.fc.weight', 0.333), ('layers.1.fc.weight', 0.333)]
        layers.2.fc.weight [('layers.1.fc.weight', 0.667)]
        head.weight [('head.weight', 1.0)]
    """
    given = _given(base, target, mapping)
    unused = {name for name in parameters(target) if not target.nodes[name]["op"]}
    found: dict[str, dict[str, Fraction]] = defaultdict(dict)
    copies = Counter(given.values())
    for name, answer in given.items():
        found[name][answer] = Fraction(1, copies[answer])
    if len(given.keys() | unused) < len(parameters(target)):
        for name, targets in _by_structure(base, target, given).items():
            for other, share in targets.items():
                found[other][name] = share
    place = {name: index for index, name in enumerate(parameters(base))}
    return {
        name: Match(
            name,
            tuple((b, float(found[name][b])) for b in sorted(found[name], key=place.__getitem__)),
        )
        for name in parameters(target)
    }


def _given(base: nx.DiGraph, target: nx.DiGraph, mapping: Mapped | None) -> dict[str, str]:
    """What the caller decided, by target name, with the names checked."""
    known = dict.fromkeys(parameters(target))
    if mapping is None:
        return {}
    answers = {name: mapping(name) for name in known} if callable(mapping) else dict(mapping)
    given = {name: answer for name, answer in answers.items() if answer is not None}
    choices = dict.fromkeys(parameters(base))
    wrong = [f"target parameter {name!r}" for name in given if name not in known]
    wrong += [
        f"base parameter {answer!r} (for {name!r})"
        for name, answer in given.items()
        if not isinstance(answer, str) or answer not in choices
    ]
    if wrong:
        raise MatchError(
            f"mapping names {', '.join(wrong)}, which the parameter graph does not have; expected "
            "{target name: base name}, with names as in model.named_parameters()"
        )
    return given


def _by_structure(base: nx.DiGraph, target: nx.DiGraph, given: Mapping[str, str]) -> Shares:
    """Shares of all parameters that ``given`` leaves, by the strictest reading that succeeds."""
    graphs = base, target
    if not (base.graph.get("complete", True) and target.graph.get("complete", True)):
        graphs = _as_chain(base), _as_chain(target)
    first: tuple[Quotient, Quotient] | None = None
    # What the mapping takes away leaves its operation behind if both sides have it, and a gap to
    # close if only one has.
    for close in ("nothing", "stream", "sources") if given else ("nothing",):
        b = _without(graphs[0], set(given.values()), close)
        t = _without(graphs[1], set(given), close)
        # Kinds first: they tell an RMSNorm's weight from another factor, but classes get renamed.
        for kinds in (True, False):
            pairs = isomorphism(b, t, kinds)
            if pairs is not None:
                return {
                    name: {other: Fraction(1)}
                    for other, name in pairs.items()
                    if not t.nodes[other].get("junction")
                }
            # Runs without a fork last: beside residual blocks, two norms are no repeated block.
            for bare in (False, True):
                quotients = fold_alike(b, t, kinds=kinds, bare=bare)
                first = first or quotients
                pairs = isomorphism(quotients[0].graph, quotients[1].graph, kinds)
                if pairs is not None:
                    return _shared(*quotients, pairs)
    assert first is not None
    raise _unmatched(base, target, given, *first)


def _as_chain(pg: nx.DiGraph) -> nx.DiGraph:
    """What is left of a graph when its data flow is not to be used."""
    if not pg.graph.get("complete", True):
        return pg
    used = [(name, pg.nodes[name]) for name in parameters(pg) if pg.nodes[name]["op"]]
    return chain((name, a["kind"], a["slot"], a["rank"]) for name, a in used)


def _without(pg: nx.DiGraph, names: set[str], close: str) -> nx.DiGraph:
    """The graph without some parameters and the unused ones.

    ``close="stream"`` also takes out the junctions that they leave with a single operand on data,
    ``"sources"`` those that they leave without operands as well.
    """
    rest = pg.copy()
    for node in list(pg):
        attributes = pg.nodes[node]
        if not attributes.get("junction"):
            if node in names or not attributes["op"]:
                rest.remove_node(node)
            continue
        operands = list(rest.pred[node])
        if len(operands) == pg.in_degree(node):
            continue
        if not operands:
            if close == "sources" or not attributes.get("data", True):
                rest.remove_node(node)
        elif len(operands) == 1 and close != "nothing" and on_data(rest, operands[0]):
            for reader, edge in rest.adj[node].items():
                if not rest.has_edge(operands[0], reader):
                    rest.add_edge(operands[0], reader, **edge)
            rest.remove_node(node)
    return rest


# Shares


def _shared(base: Quotient, target: Quotient, pairs: Mapping[str, str]) -> Shares:
    """Lay the copies of each base parameter over those of its counterpart in the target."""
    size = dict(target.size)
    translated: dict[Run, Run] = {}
    back = {b: t for t, b in pairs.items()}
    for first, last in base.size:
        key = back[first], back[last]
        translated[first, last] = key
        size[key] = max(size.get(key, 0), base.size[first, last])
    members: tuple[dict[str, list[str]], ...] = (defaultdict(list), defaultdict(list))
    for side, quotient in zip(members, (base, target), strict=True):
        for name in quotient.addresses:
            side[quotient.image[name]].append(name)
    shares: Shares = {}
    for kept_target, kept_base in pairs.items():
        if target.graph.nodes[kept_target].get("junction"):
            continue
        givers = [
            (name, len(base.addresses[name]), {translated[k]: (i, n) for k, i, n in where})
            for name in members[0][kept_base]
            for where in base.addresses[name]
        ]
        takers = [
            (name, 1, {k: (i, n) for k, i, n in where})
            for name in members[1][kept_target]
            for where in target.addresses[name]
        ]
        levels = sorted({k for *_, a in givers + takers for k in a}, key=lambda k: -size[k])
        for giver, taker, share in _overlaps(givers, takers, levels):
            row = shares.setdefault(giver, {})
            row[taker] = row.get(taker, Fraction(0)) + share
    return shares


_Member = tuple[str, int, dict[Run, tuple[int, int]]]


def _overlaps(
    givers: list[_Member], takers: list[_Member], levels: list[Run]
) -> Iterable[tuple[str, str, Fraction]]:
    """Shares of givers by takers: the product over nested runs, outermost first."""
    if not levels:
        for giver, uses, _ in givers:
            for taker, _, _ in takers:
                yield giver, taker, Fraction(1, uses * len(takers))
        return
    level, *inner = levels
    given: dict[tuple[int, int], list[_Member]] = defaultdict(list)
    taken: dict[tuple[int, int], list[_Member]] = defaultdict(list)
    for member in givers:
        given[member[2].get(level, (0, 1))].append(member)
    for member in takers:
        taken[member[2].get(level, (0, 1))].append(member)
    counts = {m for _, m in taken}
    for (i, n), from_copy in given.items():
        parts = {
            (j, m): Fraction(min((i + 1) * m, (j + 1) * n) - max(i * m, j * n), n * m)
            for m in counts
            for j in range(i * m // n, -(-(i + 1) * m // n))
            if (j, m) in taken
        }
        whole = sum(parts.values())
        for copy, part in parts.items():
            for giver, taker, share in _overlaps(from_copy, taken[copy], inner):
                yield giver, taker, share * part / whole


# What does not match


def _unmatched(
    base: nx.DiGraph,
    target: nx.DiGraph,
    given: Mapping[str, str],
    base_quotient: Quotient,
    target_quotient: Quotient,
) -> MatchError:
    """The error that names every parameter without a counterpart, and its nearest candidates."""
    left = _left_over(base_quotient.graph, target_quotient.graph)
    quotients = (base_quotient, target_quotient)
    odd = [
        [
            name
            for name in q.addresses
            if not q.graph.nodes[q.image[name]].get("junction") and q.image[name] in kept
        ]
        for q, kept in zip(quotients, left, strict=True)
    ]
    odd_base = [name for name in parameters(base) if name in set(odd[0])]
    odd_target = [name for name in parameters(target) if name in set(odd[1])]
    lines = [
        f"structure leaves {_count(len(odd_target), 'target parameter')} and "
        f"{_count(len(odd_base), 'base parameter')} without a counterpart:"
    ]
    for side, other, pg, names, near in (
        ("target", "base", target, odd_target, _Nearest(base)),
        ("base", "target", base, odd_base, _Nearest(target)),
    ):
        number = len(parameters(pg))
        for name in names:
            position = (pg.nodes[name]["order"] + 0.5) / number
            lines.append(
                f"  {side} {_described(pg, name)}; nearest in the {other}: "
                f"{near(pg, name, position)}"
            )
    example = odd_target[0] if odd_target else "target name"
    lines.append(
        f"Settle it with mapping={{{example!r}: 'base name', ...}}, from target names to base "
        "names, as a dict or a function; a base parameter named several times is split equally, "
        "what the mapping leaves out is aligned by structure without the parameters that it names, "
        "and a mapping of every target parameter needs no structure at all"
    )
    if given:
        lines[0] = f"with {_count(len(given), 'parameter')} mapped, {lines[0]}"
    return MatchError("\n".join(lines))


def _left_over(base: nx.DiGraph, target: nx.DiGraph) -> tuple[set[str], set[str]]:
    """Parameters of each graph that have none like them in the other.

    Those with like surroundings are paired first, then those with like near surroundings, down to
    the immediate neighbours. If that pairs all, what differs is how they are connected: then it is
    the parameters whose surroundings differ soonest.
    """
    names = [parameters(base), parameters(target)]
    rounds = neighbourhoods((base, target), radius=6)
    rest = names
    for labels in reversed(rounds):
        rest = _unpaired(rest, labels)
    if not any(rest):
        differing = (left for labels in rounds if any(left := _unpaired(names, labels)))
        rest = next(differing, names)
    return set(rest[0]), set(rest[1])


def _unpaired(names: list[list[str]], labels: list[dict[str, int]]) -> list[list[str]]:
    """What remains when those of equal label are paired off, from both ends: blocks are inside."""
    alike: list[dict[int, list[str]]] = []
    for side, label in zip(names, labels, strict=True):
        alike.append(defaultdict(list))
        for v in side:
            alike[-1][label[v]].append(v)
    rest: list[set[str]] = []
    for mine, theirs in (alike, reversed(alike)):
        rest.append(set())
        for key, found in mine.items():
            common = min(len(found), len(theirs.get(key, ())))
            rest[-1].update(found[(common + 1) // 2 : len(found) - common // 2])
    return [[v for v in side if v in left] for side, left in zip(names, rest, strict=True)]


_SIGNATURE = ("op", "slot", "rank", "kind")


class _Nearest:
    """The parameters of a graph that are most like a given one, in attributes and position."""

    def __init__(self, pg: nx.DiGraph) -> None:
        names = parameters(pg)
        self.groups: dict[tuple[object, ...], list[tuple[float, str]]] = defaultdict(list)
        for index, name in enumerate(names):
            signature = tuple(pg.nodes[name][key] for key in _SIGNATURE)
            self.groups[signature].append(((index + 0.5) / len(names), name))

    def __call__(self, pg: nx.DiGraph, name: str, position: float, number: int = 3) -> str:
        signature = tuple(pg.nodes[name][key] for key in _SIGNATURE)

        def nearby(group: list[tuple[float, str]]) -> list[tuple[float, str]]:
            index = bisect.bisect(group, (position, ""))
            return group[max(index - number, 0) : index + number]

        nearest = heapq.nsmallest(
            number,
            (
                (_differences(signature, other), abs(place - position), place, found)
                for other, group in self.groups.items()
                for place, found in nearby(group)
            ),
        )
        return ", ".join(repr(other) for *_, other in nearest) or "none"


def _differences(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _described(pg: nx.DiGraph, name: str) -> str:
    a = pg.nodes[name]
    kind = f" in {a['kind']}" if a["kind"] else ""
    return f"{name!r} ({a['op']} {a['slot']}, rank {a['rank']}{kind})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
