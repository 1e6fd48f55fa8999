"""The assignments become JSON, for programs to read.

The schema, which a later version only adds to while ``version`` stays 1::

    {"format": "flerm_fx.dump", "version": 1,
     "parameters": [                      # in execution order
       {"parameter": str,                 # name in the target
        "node": str,                      # get_attr node in the graph; "" without a graph
        "op": str,                        # the operation it enters first, "aten.linear"
        "shape": [int, ...],
        "base": [{"parameter": str, "share": number}, ...],
        "base_fslr": number | null,       # sum of share * FSLR over base
        "target": {"value": number | null, "stderr": number | null,
                   "method": str, "samples": int, "note": str},
        "multiplier": number | null,
        "status": "matched" | "unresolved" | "unmatched" | "unused" | "predicted",
        "after": int,                     # steps after the start at which both were measured
        "error": number | null,           # relative standard error of base_fslr / target
        "interval": [number, number]},    # of a predicted multiplier, at 90 %; else missing
        ...],
     "warnings": [str, ...]}              # that compile gave

A number that is not finite, which JSON cannot hold, is null.
"""

from collections.abc import Sequence
from typing import Any

from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.text import json_text

VERSION = 1


def to_json(assignments: Sequence[Assignment], warned: Sequence[str] = ()) -> str:
    r"""Return the assignments in the schema above.

    >>> to_json([]).replace("\n", "")
    '{  "format": "flerm_fx.dump",  "version": 1,  "parameters": [],  "warnings": []}'
    """
    document = {
        "format": "flerm_fx.dump",
        "version": VERSION,
        "parameters": [_parameter(assignment) for assignment in assignments],
        "warnings": list(warned),
    }
    return json_text(document)


def _parameter(assignment: Assignment) -> dict[str, Any]:
    target = assignment.target
    return {
        "parameter": assignment.parameter,
        "node": assignment.node,
        "op": assignment.op,
        "shape": list(assignment.shape),
        "base": [{"parameter": name, "share": share} for name, share in assignment.base],
        "base_fslr": assignment.base_fslr,
        "target": {
            "value": target.value,
            "stderr": target.stderr,
            "method": target.method,
            "samples": target.samples,
            "note": target.note,
        },
        "multiplier": assignment.multiplier,
        "status": assignment.status,
        "after": assignment.after,
        "error": assignment.error,
        **({"interval": list(assignment.interval)} if assignment.interval else {}),
    }
