"""What the data flow alone cannot tell is unsure where the names of one side are in no lists."""

from collections.abc import Collection

from flerm_fx.align.doubts import Doubt
from flerm_fx.align.evidence import Evidence
from flerm_fx.align.mass import Shares, by_target
from flerm_fx.align.reading import Reading


def unsure(reading: Reading, evidence: Evidence) -> dict[str, str]:
    """Return what is unsure about target parameters in a reading by the data flow, with the reason.

    A person without names would ask

    - all over, where copies had to be counted through, whatever their runs, since these do not
      answer to one another;
    - all over, where several uses of one parameter pass for copies of it and of others, as steps of
      time do;
    - where neither side's names have lists, and single layers in a row pass for copies, of which
      one may be another layer;
    - and there where what reads the input, or nothing stands behind, passes for a copy of what is
      within.
    """
    answers = by_target(reading.shares)
    if not reading.exact:
        return dict.fromkeys(answers, "blocks answer to blocks by their number alone")
    copies = {
        t: base
        for t, base in answers.items()
        if len(base) > 1 or any(len(reading.shares[b]) > 1 for b in base)
    }
    if any(not reading.in_time.isdisjoint(base) for base in copies.values()):
        return dict.fromkeys(
            answers, "several uses of one parameter, as in steps of time, are taken for copies"
        )
    if reading.listed:
        return {}
    ours, theirs = reading.unforked
    found: dict[str, str] = {}
    for t, base in copies.items():
        if {ours.get(b, 1) for b in base} != {theirs.get(t, 1)}:
            found[t] = "single layers in a row are taken for copies, and one may be another layer"
        elif _at_end(evidence, base, t):
            found[t] = "an end of the network is taken for a copy of what is within"
    return found


def by_order(laid: Shares) -> dict[str, Doubt]:
    """Return doubts about what is taken for copies of others by the order of modules alone, where
    the data flow is not known.
    """
    return {
        t: Doubt(t, tuple(base), "the order of modules alone tells which copies answer to it")
        for t, base in by_target(laid).items()
        if len(base) > 1 or any(len(laid[b]) > 1 for b in base)
    }


def _at_end(evidence: Evidence, base: Collection[str], target: str) -> bool:
    """Tell whether one of some parameters reads the input, or has nothing behind it."""
    return any(
        ends.is_last(name) or ends.which([name]) == "entrance"
        for ends, names in zip(evidence.ends, (base, [target]), strict=True)
        for name in names
    )
