"""One call makes all formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, get_args

from torch.fx import GraphModule

from flerm_fx.align.doubts import Doubt
from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.files import check, path_of
from flerm_fx.boundary.options import instance
from flerm_fx.dump.code import to_code
from flerm_fx.dump.dot import to_dot
from flerm_fx.dump.json import to_json
from flerm_fx.dump.model_explorer import check_folder, write_model_explorer
from flerm_fx.dump.operations import operations_to_dot
from flerm_fx.dump.render import render
from flerm_fx.dump.report import to_html
from flerm_fx.dump.table import to_table
from flerm_fx.dump.write import write, writing
from flerm_fx.errors import InputError
from flerm_fx.model.inputs import Inputs
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory

if TYPE_CHECKING:
    import networkx as nx

Format = Literal["table", "json", "html", "code", "dot", "svg", "png", "model-explorer"]
Level = Literal["parameter", "op"]

_PICTURES = ("dot", "svg", "png")


def dump(
    assignments: Sequence[Assignment],
    graph_module: GraphModule | None,
    format: Format = "table",
    path: str | PathLike[str] | None = None,
    *,
    level: Level = "parameter",
    focus: str | None = None,
    inputs: Inputs | None = None,
    profile: BaseProfile | None = None,
    graph: nx.DiGraph | None = None,
    doubts: Iterable[Doubt] = (),
    name: str = "",
    checks: Mapping[str, bool] | None = None,
    trajectory: Trajectory | None = None,
    warned: Sequence[str] = (),
) -> str:
    """Show what the compiler decided for each parameter.

    Args:
        assignments: one per parameter, in execution order.
        graph_module: the captured graph, with or without scale nodes in it; ``"dot"`` and
            ``"code"`` need it, and ``None`` stands for a model that does not export.
        format: ``"table"``, aligned text; ``"json"``, the schema in :mod:`flerm_fx.dump.json`;
            ``"html"``, the report of :mod:`flerm_fx.dump.report`; ``"code"``, the graph's Python
            code with a comment on every parameter; ``"dot"``, a picture in the DOT language, and
            ``"svg"`` and ``"png"``, the same drawn by Graphviz; ``"model-explorer"``, a folder of
            files for Google's Model Explorer.
        path: a file to write it to, text in UTF-8; an existing one is replaced as a whole, and
            keeps its mode. A device or a FIFO is none: print the text in its place. A
            ``"png"`` is no text, and needs one; ``"model-explorer"`` needs that of a folder.
        level: what a picture shows: every ``"parameter"`` and the data flow between them, or every
            ``"op"`` of the graph, with its scale nodes.
        focus: a module path or parameter to which pictures and code are confined; a picture shows
            its direct neighbours too.
        inputs: what the graph is called with, which ``"model-explorer"`` needs.
        profile: of the base, which ``"html"`` shows beside the target.
        graph: the target's parameter graph, which ``"html"`` needs as well.
        doubts: the matches that something speaks against, which ``"html"`` marks.
        name: of the target's class, for ``"html"``.
        checks: whether ``check()`` passed, by parameter, for ``"html"``; None if it was not run.
        trajectory: of the target's run, for ``"html"``.
        warned: what was warned of while compiling, for ``"html"`` and ``"json"``.

    Returns:
        The text, FSLRs in output units per unit of learning rate; with ``path``, the path.

    Raises:
        InputError: for an unknown format, for one without what it needs, an option that it does not
            have, and for a path that cannot be written.
        FlermError: for ``"svg"`` or ``"png"`` where Graphviz is not installed, or fails.

    >>> from flerm_fx.probe.estimate import Estimate
    >>> weight = Assignment("weight", "weight", "aten.linear", (2, 3), (("weight", 1.0),), 1.0,
    ...                     Estimate(2.0, 0.0, "exact", 0), 0.5, "matched")
    >>> print(dump([weight], None))
    parameter  node  op      shape  base  base FSLR  target FSLR  multiplier  error  status
    ---------  ----  ------  -----  ----  ---------  -----------  ----------  -----  -------
    weight     =     linear  2×3    =             1        2 ± 0         0.5     0%  matched
    1 parameter: 1 matched; multipliers 0.5 to 0.5.
    '=' is the parameter's own name.
    """
    check_dump(format, path, level, focus)
    content: str | bytes
    if format == "table":
        content = to_table(assignments)
    elif format == "json":
        content = to_json(assignments, warned)
    elif format == "html":
        if profile is None or graph is None:
            raise InputError("dump: format 'html' needs the base profile and the parameter graph")
        content = to_html(
            profile,
            graph,
            assignments,
            doubts,
            name=name,
            checks=checks,
            trajectory=trajectory,
            warned=warned,
        )
    elif graph_module is None:
        raise InputError(
            f"dump: format {format!r} draws the captured graph, and this model has none, because "
            "torch.export could not capture it; use 'table', 'json' or 'html'"
        )
    elif format == "code":
        content = to_code(assignments, graph_module, focus)
    elif format == "model-explorer":
        if inputs is None:
            raise InputError("dump: format 'model-explorer' saves the graph for given inputs")
        assert path is not None
        with writing(path):
            write_model_explorer(assignments, graph_module, inputs, path_of(path))
        return str(path)
    else:
        draw = to_dot if level == "parameter" else operations_to_dot
        content = draw(assignments, graph_module, focus)
        if format != "dot":
            drawn = render(content, format)
            content = drawn if format == "png" else drawn.decode()
    if path is None:
        assert isinstance(content, str)
        return content
    write(content, path)
    return str(path)


def check_dump(
    format: Format,
    path: str | PathLike[str] | None = None,
    level: Level = "parameter",
    focus: str | None = None,
) -> None:
    """Find out before long work whether :func:`dump` has these options, and can write the path.

    Raises:
        InputError: it has not, or cannot. What is at the path stays as it is.
    """
    if format not in get_args(Format):
        expected = ", ".join(repr(name) for name in get_args(Format))
        raise InputError(f"dump: format is one of {expected}, and not {format!r}")
    if level not in get_args(Level):
        raise InputError(f"dump: level is one of 'parameter', 'op', and not {level!r}")
    if level != "parameter" and format not in _PICTURES:
        raise InputError(
            f"dump: level {level!r} is for the pictures 'dot', 'svg' and 'png', and not for "
            f"format {format!r}; leave it out"
        )
    if focus is not None:
        instance("focus", focus, str, "the path of a module or the name of a parameter")
    if focus is not None and format not in (*_PICTURES, "code"):
        raise InputError(
            f"dump: focus is for 'dot', 'svg', 'png' and 'code', and not for format {format!r}; "
            "leave it out"
        )
    if format in ("png", "model-explorer") and path is None:
        kind = "file" if format == "png" else "folder"
        raise InputError(
            f"dump: format {format!r} is no text and has to be written to a {kind}; name one with "
            "path (--out of flerm-fx compile)"
        )
    if path is not None:
        place = path_of(path)
        with writing(path):
            (check_folder if format == "model-explorer" else check)(place)
