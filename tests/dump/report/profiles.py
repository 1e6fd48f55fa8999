"""Profiles with invented numbers, so that a report costs no training."""

from collections.abc import Sequence

import torch

from flerm_fx.align.parameter_graph import chain
from flerm_fx.assign.assignment import Assignment
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.update_rule import UpdateRule

BLOCK = ("norm.weight", "up.weight", "up.bias", "down.weight")


def block_names(blocks: int) -> list[str]:
    """An embedding, blocks of a norm and two linear maps, and a head."""
    inner = [f"blocks.{i}.{name}" for i in range(blocks) for name in BLOCK]
    return ["embed.weight", *inner, "head.weight"]


def profile(names: Sequence[str], steps: Sequence[int] = ()) -> BaseProfile:
    """A profile whose FSLRs are 1, 2, 3, … and halve at every step."""
    values = {name: float(i + 1) for i, name in enumerate(names)}
    course = {
        name: tuple(Estimate(value / 2**k, 0.01, "exact", 0) for k in range(len(steps)))
        for name, value in values.items()
    }
    kinds = {"norm": "LayerNorm", "embed": "Embedding"}
    entries = [
        (name, kinds.get(name.split(".")[-2] if "." in name else "", "Linear"), "weight", 2)
        for name in names
    ]
    return BaseProfile(
        parameters=tuple(names),
        shapes=dict.fromkeys(names, (4, 3)),
        start={name: Estimate(value, 0.01, "exact", 0) for name, value in values.items()},
        trajectory=Trajectory(tuple(steps), (0.1,) * len(steps), course if steps else {}),
        graph=chain(entries),
        optimizers=Optimizers((UpdateRule.from_name("AdamW"),), (0.01,)),
        settle=0,
        loss="mse_loss",
        method="auto",
        rtol=0.05,
        seed=0,
        pool=((torch.zeros(4, 3), torch.zeros(4, 2)),),
        training=True,
    )


def assigned(base: BaseProfile) -> list[Assignment]:
    """A target like the base, whose FSLRs are twice the base's."""
    return [
        Assignment(
            parameter=name,
            node=name.replace(".", "_"),
            op="aten.linear",
            shape=(8, 6),
            base=((name, 1.0),),
            base_fslr=estimate.value,
            target=Estimate(2 * estimate.value, 0.01, "sampled", 8),
            multiplier=0.5,
            status="matched",
        )
        for name, estimate in base.start.items()
    ]
