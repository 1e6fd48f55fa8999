"""``flerm-fx inspect`` shows what a base profile holds."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from flerm_fx.boundary.compat import pytree
from flerm_fx.boundary.text import json_text
from flerm_fx.dump.columns import columns
from flerm_fx.dump.table import format_estimate, format_shape
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.profile import BaseProfile


def inspect(
    profile: Annotated[Path, typer.Argument(help="A base profile, base.safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a profile was recorded with, and each parameter's FSLRs.

    Columns: the FSLR at the start, the late one if some parameter had none at the start, and those
    of the run's own updates at its first and last recorded step.

    Example: flerm-fx inspect base.safetensors
    """
    loaded = BaseProfile.load(profile)
    print(_as_json(loaded) if as_json else _as_table(loaded))


def settings(profile: BaseProfile) -> dict[str, Any]:
    """Return how a profile was recorded, in terms that JSON knows."""
    batches = [
        [[list(t.shape) for t in pytree.tree_leaves(part) if isinstance(t, Tensor)] for part in b]
        for b in profile.pool
    ]
    return {
        "optimizer": profile.optimizer.source,
        "optimizer_settings": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in profile.optimizer.settings.items()
        },
        "learning_rate": profile.learning_rate,
        **({"groups": groups(profile)} if profile.optimizers.others else {}),
        "loss": profile.loss,
        "mode": "training" if profile.training else "evaluation",
        "settle": profile.settle,
        "resolve_after": profile.resolve_after,
        "method": profile.method,
        "rtol": profile.rtol,
        "seed": profile.seed,
        "pool": batches,
        "steps": list(profile.trajectory.steps),
        "versions": dict(profile.versions),
    }


def groups(profile: BaseProfile) -> list[str]:
    """Describe each parameter group of a run in a line: what it holds, its rule, rate and decay."""
    run = profile.optimizers
    lines = []
    for index, (rule, rate) in enumerate(zip(run.rules, run.learning_rates, strict=True)):
        held = sum(run.index(name) == index for name in profile.parameters)
        decay = rule.settings.get("weight_decay", 0)
        lines.append(f"{held} of {rule.source} at {rate:g}, weight decay {_plain(decay)}")
    return lines


def _as_table(profile: BaseProfile) -> str:
    trajectory = profile.trajectory
    header = ["parameter", "op", "shape", "start"]
    header += ["late"] if profile.late else []
    ends = [0, -1][: len(trajectory.steps)]
    header += [f"step {trajectory.steps[end]}" for end in ends]
    rows = []
    for name in profile.parameters:
        estimates = [profile.start[name], *([profile.late[name]] if profile.late else [])]
        estimates += [trajectory.fslrs[name][end] for end in ends]
        op = str(profile.graph.nodes[name].get("op", "")).removeprefix("aten.") or "-"
        shape = format_shape(profile.shapes[name])
        rows.append([name, op, shape, *(format_estimate(e.value, e.stderr) for e in estimates)])
    facts = settings(profile) | ({"losses": _losses(profile)} if trajectory.losses else {})
    lines = [f"{key}: {_plain(value)}" for key, value in facts.items()]
    return "\n".join([*lines, "", *columns(header, rows, right=set(header[3:]))])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(one)}" for key, one in value.items())
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(_plain, value[:4]))}, … {_plain(value[-1])} ({len(value)})"
    if isinstance(value, list):
        return ", ".join("×".join(map(str, v)) if _is_shape(v) else _plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, int) for n in value)


def _as_json(profile: BaseProfile) -> str:
    parameters = {
        name: {
            "shape": list(profile.shapes[name]),
            "op": profile.graph.nodes[name].get("op", ""),
            "start": _number(profile.start[name]),
            **({"late": _number(profile.late[name])} if profile.late else {}),
            "trajectory": [_number(e) for e in profile.trajectory.fslrs.get(name, ())],
        }
        for name in profile.parameters
    }
    document = {**settings(profile), "losses": _losses(profile), "parameters": parameters}
    return json_text(document)


def _losses(profile: BaseProfile) -> list[float | None]:
    """Return the losses of the recorded steps, as JSON can hold them."""
    return [loss if math.isfinite(loss) else None for loss in profile.trajectory.losses]


def _number(estimate: Estimate) -> dict[str, Any]:
    return {
        "fslr": estimate.value,
        "stderr": estimate.stderr,
        "method": estimate.method,
        "note": estimate.note,
    }
