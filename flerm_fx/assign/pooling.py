"""Multipliers are pooled over the parameters of one role."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.warned import warn
from flerm_fx.errors import shown

TRUST = math.log(4.0)
"""Standard deviation of the logarithm of a multiplier about the first guess: in the course of runs
of two transformers, most were within a factor of 2 of it, and one, a last norm's, at a fifth."""

NORMAL_90 = 1.645
"""Half the width of a normal distribution's interval of 90 %, in standard deviations."""

IMPLAUSIBLE = 16.0
"""How many times a multiplier may be above or below the first guess without a warning."""

OFF = 2.5
"""How many times roles may be above or below their guesses on average without a warning, under
rules whose steps have one size. Two transformers recorded at a tenth of their best rate were 3.2
below, at three times it 1.1 to 2.3 below, and at the best one within 1.7."""


def pooled(
    rows: Sequence[Assignment],
    roles: Mapping[str, object],
    guess: Mapping[str, float],
    trust: Mapping[str, float] | None = None,
) -> tuple[Assignment, ...]:
    r"""Give the parameters of a role the multipliers at which the role's mass is the base's.

    .. math:: m_l = s_l \frac{\sum_k \mathrm{FSLR}_{base, k}}{\sum_k s_k\, \mathrm{FSLR}_k}

    with the sums over the parameters of the role, :math:`\mathrm{FSLR}_{base, k}` what each has to
    meet and :math:`s_l` the shares that each answers to. Initial weights and batches move the
    FSLRs of single blocks by far more than they are measured to, and which block of a deeper model
    answers to which one of the base is a convention. The role's multiplier is as uncertain as its
    parameters' on average, :math:`\bar\sigma`, and its logarithm becomes the mean of itself and
    that of the first guess, weighted by :math:`1 / \bar\sigma^2` and :math:`1 / (\log 4)^2`, or the
    mean square of what is known of a guess.

    A parameter within its noise takes part where its role is above it, and otherwise has the first
    guess.

    Args:
        rows: each parameter by itself.
        roles: of each parameter; those of one role are pooled.
        guess: the first multipliers.
        trust: standard deviations of their logarithms, :data:`TRUST` of those that it lacks.
    """
    trust = trust or {}
    by_role: dict[object, list[Assignment]] = defaultdict(list)
    for row in rows:
        if row.status in ("matched", "unresolved") and not row.after and row.base:
            by_role[roles[row.parameter]].append(row)
    pooled_rows: dict[str, Assignment] = {}
    for members in by_role.values():
        if any(row.status == "matched" for row in members):
            doubt = fmean(trust.get(row.parameter, TRUST) ** 2 for row in members)
            found = _of_role(members, guess, doubt)
        else:
            found = [replace(row, multiplier=guess[row.parameter]) for row in members]
        pooled_rows.update({row.parameter: row for row in found})
    return tuple(pooled_rows.get(row.parameter, row) for row in rows)


def trusted(predicted: Iterable[Assignment]) -> dict[str, float]:
    """Return by how much the logarithms of predicted multipliers may be off: their intervals'
    half widths over that of a normal distribution, and at most a first guess's.
    """
    trust = {}
    for row in predicted:
        low, high = row.interval or (0.0, math.inf)
        if low > 0 and math.isfinite(high):
            trust[row.parameter] = min(TRUST, math.log(high / low) / 2 / NORMAL_90)
    return trust


def _of_role(
    members: Sequence[Assignment], guess: Mapping[str, float], doubt: float
) -> list[Assignment]:
    """Pool the parameters of a role, whose guess has a logarithm of variance ``doubt``."""
    shares = [sum(share for _, share in row.base) for row in members]
    mass = sum(s * row.target.value for s, row in zip(shares, members, strict=True))
    whole = sum(row.base_fslr for row in members) / mass
    guessed = fmean(
        math.log(guess[row.parameter] / s) for s, row in zip(shares, members, strict=True)
    )
    uncertain = fmean(row.error for row in members if row.status == "matched") ** 2
    whole *= math.exp(uncertain / (uncertain + doubt) * (guessed - math.log(whole)))
    pooled_rows = []
    for share, row in zip(shares, members, strict=True):
        m = share * whole
        met = m * row.target.value
        pooled_rows.append(replace(row, status="matched", multiplier=m, base_fslr=met))
    return pooled_rows


def warn_of_implausible(
    rows: Sequence[Assignment],
    guess: Mapping[str, float],
    roles: Mapping[str, object],
    *,
    sized: bool,
    stacklevel: int,
) -> None:
    """Say which multipliers are far from what shapes and first updates make of them.

    Args:
        rows: as pooled.
        guess: the multipliers to expect.
        roles: of each parameter.
        sized: whether steps have one size, whatever the gradient's, so that roles are to be near
            their guesses on average, too.
        stacklevel: of the warning, for the caller.

    Warns:
        UserWarning: some are more than 16 times above or below it, or all of them 2.5 times.
    """
    logs = {
        row.parameter: math.log(row.multiplier / guess[row.parameter])
        for row in rows
        if row.status == "matched"
    }
    odd = [name for name, log in logs.items() if abs(log) > math.log(IMPLAUSIBLE)]
    of_roles = list({roles[name]: log for name, log in logs.items()}.values())
    average = fmean(of_roles) if sized and of_roles else 0.0
    if odd:
        worst = max(odd, key=lambda name: abs(logs[name]))
        what = (
            f"multipliers of {len(odd)} parameters are more than {IMPLAUSIBLE:g} times above or "
            f"below what the sizes of first updates suggest; that of '{shown(worst)}' is "
            f"{math.exp(logs[worst]):.2g} times as large"
        )
    elif abs(average) > math.log(OFF):
        what = (
            f"multipliers are {math.exp(average):.2g} times what the sizes of first updates "
            "suggest, on average over roles"
        )
    else:
        return
    warn(
        f"{what}. FSLRs of base or target may stand for little: at another rate than the one that "
        "trains the base best, it has not learned to use its parameters while settling, or is "
        "thrown by its steps. Record at that rate, with settle and warmup as long as its run needs "
        "to get going, and several bases (record_seeds)",
        stacklevel=stacklevel + 1,
    )
