"""The assignments become aligned text."""

from collections import Counter
from collections.abc import Sequence

from flerm_fx.assign.assignment import RESOLVED, Assignment
from flerm_fx.boundary.notebook import folded_table
from flerm_fx.dump.columns import columns

_HEADER = (
    "parameter",
    "node",
    "op",
    "shape",
    "base",
    "base FSLR",
    "target FSLR",
    "multiplier",
    "error",
    "status",
)
_ENDING = "'…' is the ending of the parameter's own name"
_MEANINGS = {
    "unresolved": "an FSLR is zero or within its noise, on one side or both",
    "unmatched": "the base has no counterpart",
    "unused": "the outputs do not depend on it",
    "predicted": "a law gave the multiplier, and nothing was measured",
}
_NUMERIC = frozenset({"base FSLR", "target FSLR", "multiplier", "error"})


def to_notebook(line: str, assignments: Sequence[Assignment]) -> str:
    """Return a line, and the table of all parameters behind it, as HTML."""
    rows = [
        (
            assignment.parameter,
            format_shape(assignment.shape),
            format_base(assignment.base),
            format_fslr(assignment),
            f"{assignment.multiplier:.4g}",
            format_status(assignment),
        )
        for assignment in assignments
    ]
    header = ("parameter", "shape", "base", "target FSLR", "multiplier", "status")
    return folded_table(line, header, rows, _NUMERIC)


def to_table(assignments: Sequence[Assignment]) -> str:
    """Return one line a parameter in execution order, between a header and a summary.

    Names are printed once: ``=`` is a node or base parameter called like the parameter itself, and
    ``…`` at the end of a base parameter stands for the ending of the parameter's own name. Of
    several base parameters the one with the largest share is named, the others are counted. The
    error is the relative standard error of a parameter's own multiplier, before it is pooled. A
    status ``after 4`` says that both FSLRs were measured 4 steps after the start. The JSON format
    has everything.

    >>> print(to_table([]))
    parameter  node  op  shape  base  base FSLR  target FSLR  multiplier  error  status
    ---------  ----  --  -----  ----  ---------  -----------  ----------  -----  ------
    0 parameters.
    """
    rows = [_row(assignment) for assignment in assignments]
    return "\n".join([*columns(_HEADER, rows, _NUMERIC), summary(assignments)])


def headline(assignments: Sequence[Assignment], digits: int = 4) -> str:
    """Counts by status, and the range of the multipliers found.

    >>> headline([])
    '0 parameters'
    """
    count = len(assignments)
    text = f"{count} parameter{'' if count == 1 else 's'}"
    if not assignments:
        return text
    statuses = Counter(assignment.status for assignment in assignments)
    text += ": " + ", ".join(f"{number} {status}" for status, number in statuses.items())
    matched = [a.multiplier for a in assignments if a.status in RESOLVED]
    if matched:
        text += f"; multipliers {min(matched):.{digits}g} to {max(matched):.{digits}g}"
    return text


def summary(assignments: Sequence[Assignment]) -> str:
    """Return counts by status, the range of the multipliers, and what the words mean."""
    text = headline(assignments)
    names = [name for a in assignments for name in (_node(a), _base(a))]
    shorthands = []
    if any("=" in name for name in names):
        shorthands.append("'=' is the parameter's own name")
    if any("…" in name for name in names):
        shorthands.append("'…' the ending of it" if shorthands else _ENDING)
    if any(a.after for a in assignments):
        shorthands.append("'after k' measured k steps after the start")
    lines = [text, *([", ".join(shorthands)] if shorthands else [])]
    statuses = dict.fromkeys(a.status for a in assignments)
    lines += [f"{each}: {_MEANINGS[each]}" for each in statuses if each in _MEANINGS]
    return ".\n".join(lines) + "."


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape as ``2×3``, and that of a scalar as ``()``."""
    return "×".join(str(size) for size in shape) or "()"


def format_fslr(assignment: Assignment) -> str:
    """Return the target's FSLR ± its standard error."""
    return format_estimate(assignment.target.value, assignment.target.stderr)


def format_estimate(value: float, stderr: float) -> str:
    """Return an FSLR to four digits ± its standard error to two.

    >>> format_estimate(1.23456, 0.01), format_estimate(1192.2, 211.1)
    ('1.235 ± 0.01', '1192 ± 210')
    """
    return f"{value:.4g} ± {float(f'{stderr:.2g}'):.4g}"


def format_status(assignment: Assignment) -> str:
    """Return ``matched``, or ``matched after 4`` where that was measured 4 steps after the
    start.
    """
    return assignment.status + (f" after {assignment.after}" if assignment.after else "")


def format_base(base: Sequence[tuple[str, float]]) -> str:
    """Return the base parameter with the largest share, its share if not the whole, and how many
    others.

    >>> format_base([("a", 0.5), ("b", 1.0), ("c", 0.25)])
    'b +2 more'
    >>> format_base([("a", 0.5)])
    'a ×0.5'
    """
    if not base:
        return "-"
    name, share = max(base, key=lambda part: part[1])
    text = name if share == 1.0 else f"{name} ×{share:.3g}"
    return text + (f" +{len(base) - 1} more" if len(base) > 1 else "")


def _row(assignment: Assignment) -> tuple[str, ...]:
    return (
        assignment.parameter,
        _node(assignment),
        assignment.op.removeprefix("aten.") or "-",
        format_shape(assignment.shape),
        _base(assignment),
        f"{assignment.base_fslr:.4g}",
        format_fslr(assignment),
        f"{assignment.multiplier:.4g}",
        f"{assignment.error:.0%}" if assignment.status in RESOLVED else "-",
        format_status(assignment),
    )


def _node(assignment: Assignment) -> str:
    own = assignment.parameter.replace(".", "_")  # what the exporter calls it
    return "=" if assignment.node == own else assignment.node or "-"


def _base(assignment: Assignment) -> str:
    own = assignment.parameter
    return format_base([(_without_ending(name, own), share) for name, share in assignment.base])


def _without_ending(name: str, own: str) -> str:
    """Return ``blocks.0.…`` for ``blocks.0.up.weight`` where the parameter is
    ``blocks.3.up.weight``.
    """
    if name == own:
        return "="
    parts, own_parts = name.split("."), own.split(".")
    same = 0
    while same < min(len(parts), len(own_parts)) and parts[-1 - same] == own_parts[-1 - same]:
        same += 1
    return ".".join([*parts[: len(parts) - same], "…"]) if same else name
