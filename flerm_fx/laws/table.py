"""A law becomes aligned text."""

from flerm_fx.dump.columns import columns
from flerm_fx.laws.law import ScalingLaw
from flerm_fx.laws.mup import mup_exponent
from flerm_fx.laws.role_law import LEVEL, RoleLaw
from flerm_fx.laws.student import quantile

_HEADER = ("role", "dimension", "exponent", "±", "muP", "residual", "held out", "findings")
_NUMERIC = frozenset({"exponent", "±", "muP", "residual", "held out"})


def to_table(law: ScalingLaw) -> str:
    """Return one line for each role and axis, and what speaks against the law.

    ``±`` is half of the exponent's interval at 90 %; ``muP`` its exponent where muP has a rule for
    such a parameter and optimizer, for a factory whose initialisation is muP's; ``residual`` the
    root mean square of the points about the line, and ``held out`` by how much the other sizes miss
    the largest, both in logarithms.
    """
    rows = [row for of in law.roles.values() for row in _rows(law, of)]
    rows += [[name, "-", "-", "-", "-", "-", "-", "unresolved"] for name in sorted(law.unresolved)]
    lines = columns(_HEADER, rows, _NUMERIC)
    error = law.held_out_error
    if error is not None:
        lines.append(f"The largest size is missed by {error:.2f}, from the others (RMS of roles).")
    lines += [f"{finding.role or 'all'}: {finding.text}." for finding in law.check()]
    return "\n".join(lines)


def _rows(law: ScalingLaw, of: RoleLaw) -> list[list[str]]:
    kinds = ", ".join(finding.kind for finding in of.findings) or "-"
    missed = f"{of.held_out.miss:+.2f}" if of.held_out else "-"
    last = [f"{of.line.residual:.2f}", missed, kinds]
    name, rank, t = of.role.name, len(of.role.shape), quantile(LEVEL, of.line.freedom)
    if not of.line.axes:
        return [[name, "-", "-", "-", "-", *last]]
    rule = law.profile.optimizers.rule(name)
    rows = []
    for axis, exponent, error in zip(of.line.axes, of.line.exponents, of.line.stderrs, strict=True):
        theirs = mup_exponent(law.profile.graph, name, axis, rule)
        rows.append(
            [
                name,
                ", ".join("depth" if k == rank else str(k) for k in axis),
                f"{exponent:+.2f}",
                f"{t * error:.2f}",
                "-" if theirs is None else f"{theirs:+g}",
                *last,
            ]
        )
    return rows
