"""One call for the five formats."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, get_args

import networkx as nx
from torch.fx import GraphModule

from flerm_fx.assignment import Assignment
from flerm_fx.dump.code import to_code
from flerm_fx.dump.dot import to_dot
from flerm_fx.dump.json import to_json
from flerm_fx.dump.table import to_table
from flerm_fx.dump.write import write
from flerm_fx.errors import InputError
from flerm_fx.profile import BaseProfile
from flerm_fx.report import to_html

Format = Literal["table", "json", "dot", "code", "html"]


def dump(
    assignments: Sequence[Assignment],
    graph_module: GraphModule | None,
    format: Format = "table",
    path: str | PathLike[str] | None = None,
    *,
    profile: BaseProfile | None = None,
    graph: nx.DiGraph | None = None,
) -> str:
    """Show what the compiler decided for each parameter.

    Args:
        assignments: one per parameter, in execution order.
        graph_module: the captured graph, with or without scale nodes in it; ``"dot"`` and
            ``"code"`` need it, and ``None`` stands for a model that runs eagerly.
        format: ``"table"``, aligned text; ``"json"``, the schema in :mod:`flerm_fx.dump.json`;
            ``"dot"``, a Graphviz picture of the parameters and the data flow between them;
            ``"code"``, the graph's Python code with a comment on every parameter; ``"html"``, the
            report of :mod:`flerm_fx.report`.
        path: a file to write the text to as well, in UTF-8; an existing one is replaced.
        profile: of the base, which ``"html"`` shows beside the target.
        graph: the target's parameter graph, which ``"html"`` needs as well.

    Returns:
        The text, FSLRs in output units per unit of learning rate.

    Raises:
        InputError: for an unknown format, for one without what it needs, and for a path that cannot
            be written.

    >>> from flerm_fx.probe.estimate import Estimate
    >>> weight = Assignment("weight", "weight", "aten.linear", (2, 3), (("weight", 1.0),), 1.0,
    ...                     Estimate(2.0, 0.0, "exact", 0), 0.5, "matched")
    >>> print(dump([weight], None))
    parameter  node  op      shape  base  base FSLR  target FSLR  multiplier  status
    ---------  ----  ------  -----  ----  ---------  -----------  ----------  -------
    weight     =     linear  2×3    =             1        2 ± 0         0.5  matched
    1 parameter: 1 matched; multipliers 0.5 to 0.5.
    '=' is the parameter's own name.
    """
    if format not in get_args(Format):
        expected = ", ".join(repr(name) for name in get_args(Format))
        raise InputError(f"dump: format is one of {expected}, and not {format!r}")
    if format == "table":
        text = to_table(assignments)
    elif format == "json":
        text = to_json(assignments)
    elif format == "html":
        if profile is None or graph is None:
            raise InputError("dump: format 'html' needs the base profile and the parameter graph")
        text = to_html(profile, graph, assignments)
    elif graph_module is None:
        raise InputError(
            f"dump: format {format!r} draws the captured graph, and this model has none, because "
            "torch.export could not capture it and it runs eagerly; use 'table', 'json' or 'html'"
        )
    else:
        text = (to_dot if format == "dot" else to_code)(assignments, graph_module)
    if path is not None:
        write(text, path)
    return text
