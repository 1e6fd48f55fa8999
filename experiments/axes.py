"""What is made larger, and what it is trained on: the axes of the study."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from experiments import foreign
from experiments.adapters import adapted_llama
from experiments.data import Name as DataName
from experiments.recipe import PAPER, Recipe
from experiments.smollm2 import adapted
from models import ResMLP, Transformer

FACTOR = 1.85
"""Between neighbouring learning rates, as in the paper: 0.89 octaves."""

Scaled = Literal[
    "width_multiplier",
    "depth_multiplier",
    "width_and_depth",
    "width_and_batch",
    "width_and_duration",
    "init_scale",
    "rank",
    "batch",
    "duration",
    "decay",
]

OF_RUN: tuple[Scaled, ...] = ("batch", "duration", "decay")
"""What changes of the run, and nothing of the model."""

WIDE_RUNS: tuple[Scaled, ...] = ("width_and_batch", "width_and_duration")
"""What changes of the run, and the width of the model with it."""

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resmlp": ResMLP,
    "transformer": Transformer,
    "smollm2": adapted,
    "adapted-llama": adapted_llama,
    **foreign.MODELS,
}
"""Architectures that are built from settings."""


@dataclass(frozen=True)
class Grid:
    """``count`` rates from ``lowest``, each ``factor`` times the one before, or some of them.

    >>> Grid(1.0, 3).rates
    (1.0, 1.85, 3.4225000000000003)
    >>> Grid(1.0, 3, every=2).rates, Grid(1.0, 3, first=2).rates
    ((1.0, 3.4225000000000003), (3.4225000000000003,))
    """

    lowest: float
    count: int = 16
    factor: float = FACTOR
    every: int = 1
    first: int = 0

    @property
    def rates(self) -> tuple[float, ...]:
        """All of them, increasing."""
        return tuple(
            self.lowest * self.factor**k for k in range(self.first, self.count, self.every)
        )


@dataclass(frozen=True)
class Axis:
    """One family of models, from the base to the largest.

    Attributes:
        key: names it on the command line and in files.
        title: names it in tables.
        data: what it is trained on.
        model: the architecture.
        settings: of the base model.
        scaled: which argument of the architecture changes, or which two; or what of the run does.
        scales: its values; the base is 1.
        grid: learning rates.
        steps, batch: of every run.
        optimizer: see :data:`experiments.training.OPTIMIZERS`.
        recipe: how runs are trained; by that optimizer at a constant rate and nothing else if None.
        swept: part of the names of the parameters whose rate is swept; all if None.
        other_rate: of all others.
        rates: what the rate of a parameter is multiplied by, on the base and every other model, by
            the first of these that is a part of its name; 1 for all others.
        seeds: base models whose profiles are averaged, where fewer than the method's.
        base: the key of another axis that begins with the same model, whose runs and profiles of
            it this one has, too; none if empty.
        cell, cell_every: the scale that a quick run trains, and at which of the rates; it leaves
            out variants of an axis, whose cell is None.
    """

    key: str
    title: str
    data: DataName
    model: Literal[
        "resmlp",
        "transformer",
        "smollm2",
        "adapted-llama",
        "llama",
        "gpt2",
        "vit",
        "neox",
        "olmo2",
    ]
    settings: Mapping[str, Any]
    scaled: Scaled
    scales: tuple[float, ...]
    grid: Grid = field(default=Grid(1e-5))
    steps: int = 300
    batch: int = 128
    optimizer: str = "adam"
    recipe: Recipe | None = None
    swept: str | None = None
    other_rate: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 8
    base: str = ""
    cell: float | None = 4
    cell_every: int = 3

    def part(self, scales: Collection[float] | None = None, every: int = 1) -> "Axis":
        """Fewer scales, beside the base, and every so many rates: its runs are runs of the whole.

        >>> AXES["mlp-width"].part([8, 100], every=2).scales
        (1, 8)
        """
        kept = tuple(s for s in self.scales if scales is None or s == 1 or s in scales)
        grid = replace(self.grid, every=every * self.grid.every)
        return replace(self, scales=kept, grid=grid)

    def at(self, rate: float) -> "Axis":
        """The same at one rate alone.

        >>> AXES["mlp-width"].at(0.25).grid.rates
        (0.25,)
        """
        return replace(self, grid=Grid(rate, 1))

    def named(self, scale: float) -> str:
        """The key that the runs of a scale are kept under.

        >>> AXES["llama-depth"].named(1), AXES["llama-depth"].named(4)
        ('llama-width', 'llama-depth')
        """
        return self.base if self.base and scale == 1 else self.key

    def quick(self) -> "Axis | None":
        """One larger scale, and some of the rates."""
        return None if self.cell is None else self.part([self.cell], self.cell_every)

    def build(self, scale: float) -> nn.Module:
        """The model, with torch's random state as it is."""
        if self.scaled in OF_RUN:
            return MODELS[self.model](**self.settings)
        if self.scaled == "rank":
            return MODELS[self.model](rank=int(self.settings["rank"] * scale))
        value = scale if self.scaled == "init_scale" else int(scale)
        both = ("width_multiplier", "depth_multiplier")
        arguments = {"width_and_depth": both, **dict.fromkeys(WIDE_RUNS, both[:1])}
        scaled = arguments.get(self.scaled, (self.scaled,))
        return MODELS[self.model](**{**self.settings, **dict.fromkeys(scaled, value)})

    def run(self, scale: float) -> "Axis":
        """The same with the batch, the steps or the decay of a scale's runs.

        >>> AXES["gpt2-batch"].run(4).batch, AXES["gpt2-width-duration"].run(4).steps
        (64, 1600)
        """
        if self.scaled in ("batch", "width_and_batch"):
            return replace(self, batch=round(scale * self.batch))
        if self.scaled in ("duration", "width_and_duration"):
            return replace(self, steps=round(scale * self.steps))
        if self.scaled == "decay" and self.recipe is not None:
            recipe = replace(self.recipe, decay=scale * self.recipe.decay)
            return replace(self, recipe=recipe)
        return self

    def factor(self, name: str) -> float:
        """What the rate of a parameter is multiplied by.

        >>> replace(AXES["llama-width"], rates={"embed": 4.0}).factor("model.embed_tokens.weight")
        4.0
        """
        return next((factor for part, factor in self.rates.items() if part in name), 1.0)

    def width(self, scale: float) -> float:
        """How many times as wide as the base a model is.

        >>> AXES["llama-both"].width(4), AXES["llama-depth"].width(4)
        (4, 1)
        """
        wide = self.scaled in ("width_multiplier", "width_and_depth", *WIDE_RUNS)
        return scale if wide else 1

    def depth(self, scale: float) -> float:
        """How many times as deep as the base a model is."""
        return scale if self.scaled in ("depth_multiplier", "width_and_depth") else 1


MLP = Axis(
    "mlp-width",
    "ResMLP, width",
    "images",
    "resmlp",
    {"in_features": 784, "out_features": 10, "width": 32, "depth": 4},
    "width_multiplier",
    (1, 2, 4, 8, 16),
)
LM = Axis(
    "pre-width",
    "transformer, pre-norm, width",
    "bytes",
    "transformer",
    {"width": 32, "depth": 2, "context": 64, "norm": "pre"},
    "width_multiplier",
    (1, 2, 4, 8),
    # Nothing is best below; and every other, since a run takes as long as thirty of the ResMLP's.
    grid=Grid(1e-5, first=4, every=2),
    steps=200,
    batch=16,
    cell=2,
    cell_every=1,
)

LORA = Axis(
    "lora-b",
    "LoRA on SmolLM2-135M, rank, rate of B",
    "theorems",
    "smollm2",
    {"rank": 2},
    "rank",
    (1, 2, 8, 32),
    # Rates of A and B apart, each on the grid while the other rests at this one; every other, since
    # a run takes as long as a hundred of the ResMLP's.
    grid=Grid(1e-5, first=4, every=2),
    steps=30,
    batch=2,
    swept="lora_B",
    other_rate=1e-4,
    seeds=2,
    cell=8,
    cell_every=2,
)

_OCTAVES = Grid(2**-11, 7, 2.0)

LLAMA = Axis(
    "llama-width",
    "Llama, width",
    "english",
    "llama",
    {"width": 48, "depth": 2},
    "width_multiplier",
    (1, 2, 4, 8, 16),
    grid=_OCTAVES,
    steps=400,
    batch=16,
    optimizer="adamw",
    recipe=Recipe(),
    cell=None,
)
GPT2 = replace(LLAMA, key="gpt2-width", title="GPT-2, width", data="bytes", model="gpt2")
VIT = replace(
    LLAMA,
    key="vit-width",
    title="ViT, width",
    data="pictures",
    model="vit",
    settings={"width": 32, "depth": 2},
    grid=replace(_OCTAVES, every=2),
    batch=64,
)
NEOX = replace(LLAMA, key="neox-width", title="GPT-NeoX, width", model="neox")
OLMO2 = replace(LLAMA, key="olmo2-width", title="OLMo 2, width", data="bytes", model="olmo2")

ADAPTED = replace(
    LLAMA,
    key="lora-recipe",
    title="LoRA on a Llama, rank",
    data="bytes",
    model="adapted-llama",
    settings={"rank": 2},
    scaled="rank",
    scales=(1, 4, 16, 32),
)

_RUNS: dict[Scaled, tuple[float, ...]] = {
    "batch": (1, 4),
    "duration": (1, 4),
    "decay": (1, 0.1, 10, 40),
}

TUNED: dict[str, Mapping[str, float]] = {
    "llama": {
        "embed_tokens": 2.0,
        "q_proj": 2.0,
        "k_proj": 2.0,
        "v_proj": 0.5,
        "o_proj": 0.5,
        "lm_head": 8.0,
    },
    "gpt2": {"wpe": 4.0, "c_attn": 2.0, "mlp": 8.0},
    "vit": {"mlp": 0.125},
}
"""Rates of kinds of parameters over the one that is best for all: what :mod:`experiments.kinds`
finds on the base of the architecture's width."""

_INIT_SCALES = (1, 0.125, 0.25, 0.5, 2, 4, 8)


def _transformers() -> list[Axis]:
    found = []
    for norm, name in (("pre", "pre"), ("post", "post"), ("post-pre-residual", "residual")):
        wide = replace(
            LM,
            key=f"{name}-width",
            title=f"transformer, {norm}-norm, width",
            settings={**LM.settings, "norm": norm},
        )
        deep = replace(
            wide,
            key=f"{name}-depth",
            title=f"transformer, {norm}-norm, depth",
            scaled="depth_multiplier",
        )
        found += [wide, deep]
    found.append(
        replace(
            LM,
            key="pre-init",
            title="transformer, pre-norm, initialisation",
            settings={**LM.settings, "qk_norm": True},
            scaled="init_scale",
            scales=_INIT_SCALES,
        )
    )
    return found


def _under_the_recipe() -> list[Axis]:
    """Training as people do it, on models of transformers and on a ResMLP."""
    deep = [
        replace(
            axis,
            key=f"{axis.model}-depth",
            title=axis.title.replace("width", "depth"),
            scaled="depth_multiplier",
            base=axis.key,
        )
        for axis in (LLAMA, GPT2)
    ]
    both = replace(
        LLAMA,
        key="llama-both",
        title="Llama, width and depth",
        scaled="width_and_depth",
        scales=(1, 2, 4),
        base=LLAMA.key,
    )
    initial = replace(
        GPT2,
        key="gpt2-init",
        title="GPT-2, initialisation",
        scaled="init_scale",
        scales=(1, 0.0625, 0.25, 0.5, 2, 4, 16, 64),
        base=GPT2.key,
    )
    mlp = replace(
        MLP,
        key="mlp-recipe-width",
        title="ResMLP under the recipe, width",
        scales=(1, 4, 16),
        # Wide ones are best below the others' grid.
        grid=Grid(2**-14, 10, 2.0, every=2),
        optimizer="adamw",
        recipe=LLAMA.recipe,
        cell=None,
    )
    others = [
        replace(
            axis,
            key=f"{axis.model}-{scaled}",
            title=axis.title.replace("width", scaled),
            scaled=scaled,
            scales=scales,
            base=axis.key,
        )
        for axis in (LLAMA, GPT2)
        for scaled, scales in _RUNS.items()
    ]
    wide = [
        replace(
            axis,
            key=f"{axis.key}-{scaled.removeprefix('width_and_')}",
            title=f"{axis.title} and {scaled.removeprefix('width_and_')}",
            scaled=scaled,
            scales=(1, 4),
            base=axis.key,
            grid=replace(_OCTAVES, first=2, count=5),
        )
        for axis in (LLAMA, GPT2)
        for scaled in WIDE_RUNS
    ]
    tuned = [
        replace(
            axis,
            key=axis.key.replace("-", "-kinds-"),
            title=axis.title.replace(",", ", kinds tuned,"),
            base=axis.base.replace("-", "-kinds-"),
            rates=TUNED[axis.model],
        )
        for axis in (LLAMA, GPT2, VIT, deep[0])
    ]
    scheduled = [
        replace(
            axis,
            key=axis.key.replace("-width", "-cosine-width"),
            title=axis.title.replace(", width", ", cosine, width"),
            scales=(1, 4),
            recipe=PAPER,
            cell=None,
        )
        for axis in _transformers()
        if axis.key.endswith("-width")
    ]
    models = [LLAMA, GPT2, VIT, NEOX, OLMO2, ADAPTED]
    return [*models, *deep, both, initial, mlp, *others, *wide, *tuned, *scheduled]


GRIDS = {
    "adam": Grid(1e-5),
    "adamw": Grid(1e-5),
    "sgd": Grid(1e-4),
    "sign": Grid(1e-6),
    "adagrad": Grid(1e-4),
    "adamax": Grid(1e-5),
    "muon": Grid(1e-4),
}
"""Of each optimizer."""


def under(axis: Axis, optimizer: str) -> Axis:
    """The same axis under another optimizer.

    >>> under(MLP, "sgd").key
    'mlp-width-sgd'
    """
    return replace(
        axis,
        key=f"{axis.key}-{optimizer}",
        title=f"{axis.title}, {optimizer}",
        optimizer=optimizer,
        grid=GRIDS[optimizer],
    )


AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        MLP,
        replace(
            MLP,
            key="mlp-depth",
            title="ResMLP, depth",
            scaled="depth_multiplier",
        ),
        replace(
            MLP,
            key="mlp-init",
            title="ResMLP, initialisation",
            scaled="init_scale",
            scales=_INIT_SCALES,
        ),
        replace(
            MLP,
            key="mlp-width-readout",
            title="ResMLP, width, small readout",
            settings={**MLP.settings, "small_readout": True},
            cell=None,
        ),
        *_transformers(),
        *(under(MLP, name) for name in GRIDS if name != MLP.optimizer),
        LORA,
        replace(
            LORA, key="lora-a", title=LORA.title.replace(" B", " A"), swept="lora_A", cell=None
        ),
        *_under_the_recipe(),
    )
}
"""All axes, by key."""
