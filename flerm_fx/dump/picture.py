"""A picture of boxes and arrows is written in the DOT language."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from flerm_fx.errors import shown

_GRAPH = (
    'rankdir="TB"',
    # A background of its own, so that black text is read in dark viewers too.
    'bgcolor="#ffffff"',
    'pad="0.3"',
    'nodesep="0.2"',
    'ranksep="0.2"',
    'fontname="Helvetica,Arial,sans-serif"',
    'fontsize="10"',
    # The legend on top, since many pictures are longer than a screen.
    'labelloc="t"',
)
_NODE = 'shape="box", fontname="Helvetica,Arial,sans-serif", fontsize="10", color="#404040"'
_EDGE = 'color="#606060", arrowsize="0.7"'
_CLUSTER = ('style="rounded"', 'color="#b0b0b0"', 'fontcolor="#606060"', 'labeljust="l"')


@dataclass(frozen=True)
class Box:
    """A ``Box`` is one box.

    Attributes:
        label: its lines.
        fill: colour, ``#rrggbb``.
        shape: a node shape of Graphviz; a ``"point"`` shows its label on hovering only.
        border: ``"solid"``, ``"dashed"`` or ``"dotted"``.
        tooltip: shown on hovering.
        module: a path; the box is in the innermost frame around it.
    """

    label: str
    fill: str = "#ffffff"
    shape: str = "box"
    border: str = "solid"
    tooltip: str = ""
    module: str = ""

    def attributes(self) -> str:
        """Return the attributes of its node."""
        rounded = ",rounded" if self.shape == "box" else ""
        parts = {
            "label": self.label,
            "tooltip": self.tooltip or self.label,
            "shape": self.shape,
            "style": f"filled{rounded},{self.border}",
            "fillcolor": self.fill,
        }
        if self.shape == "point":
            parts |= {"label": "", "width": "0.08"}
        return ", ".join(f"{key}={_quote(value)}" for key, value in parts.items())


@dataclass(frozen=True)
class Picture:
    """A ``Picture`` has boxes by key, edges between them, and frames around them: titles by dotted
    path.

    The second key of each pair in ``below`` is drawn below the first, with no line between them.

    >>> picture = Picture({"a": Box("first"), "b": Box("second")}, [("a", "b")], "two boxes")
    >>> print(picture.to_dot().splitlines()[-2])
      "a" -> "b";
    """

    boxes: dict[str, Box]
    edges: list[tuple[str, str]]
    legend: str
    frames: dict[str, str] = field(default_factory=dict)
    below: list[tuple[str, str]] = field(default_factory=list)

    def around(self, inside: set[str]) -> "Picture":
        """Return some boxes with their direct neighbours, which are grey; and the edges to them."""
        edges = [edge for edge in self.edges if inside.intersection(edge)]
        shown = inside.union(*edges)
        boxes = {
            key: box if key in inside else replace(box, fill="#d0d0d0", module="")
            for key, box in self.boxes.items()
            if key in shown
        }
        below = [
            pair for pair in self.below if inside.intersection(pair) and shown.issuperset(pair)
        ]
        legend = f"{self.legend}; grey: neighbours"
        return replace(self, boxes=boxes, edges=edges, below=below, legend=legend)

    def to_dot(self) -> str:
        """Return a ``digraph``."""
        settings = (*_GRAPH, f"label={_quote(self.legend)}")
        return "\n".join(
            [
                "digraph flerm_fx {",
                *(f"  {setting};" for setting in settings),
                f"  node [{_NODE}];",
                f"  edge [{_EDGE}];",
                *self._framed("", self._members(), "  "),
                *(f"  {_quote(tail)} -> {_quote(head)};" for tail, head in self.edges),
                *(f"  {_quote(up)} -> {_quote(down)} [style=invis];" for up, down in self.below),
                "}",
            ]
        )

    def _members(self) -> dict[str, tuple[list[str], list[str]]]:
        """Of each frame, those in it and the keys of its own boxes; "" is the whole picture."""
        members: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
        for key, box in self.boxes.items():
            self._open(box.module, members)[1].append(key)
        return members

    def _open(
        self, path: str, members: dict[str, tuple[list[str], list[str]]]
    ) -> tuple[list[str], list[str]]:
        """Return the members of the innermost frame around a path, which is put into its own if
        new.
        """
        while path and path not in self.frames:
            path = path.rpartition(".")[0]
        if path not in members:
            self._open(path.rpartition(".")[0], members)[0].append(path)
            members[path] = ([], [])
        return members[path]

    def _framed(
        self, frame: str, members: dict[str, tuple[list[str], list[str]]], indent: str
    ) -> Iterator[str]:
        frames, keys = members[frame]
        for key in keys:
            yield f"{indent}{_quote(key)} [{self.boxes[key].attributes()}];"
        for inner in frames:
            yield f"{indent}subgraph {_quote(f'cluster_{inner}')} {{"
            for setting in (f"label={_quote(self.frames[inner])}", *_CLUSTER):
                yield f"{indent}  {setting};"
            yield from self._framed(inner, members, indent + "  ")
            yield f"{indent}}}"


def lines(*texts: str) -> str:
    r"""Return a label of the lines that are not empty, each in one line whatever is in it.

    >>> lines("up.weight", "", "a\nb")
    'up.weight\na\\nb'
    """
    return "\n".join(shown(text) for text in texts if text)


def _quote(text: str) -> str:
    """Return a string in DOT, in which Graphviz reads escapes and HTML's character references."""
    plain = (shown(line).replace("&", "&amp;") for line in text.split("\n"))
    return '"' + "\\n".join(p.replace("\\", "\\\\").replace('"', '\\"') for p in plain) + '"'
