"""``python -m experiments.exponents``: the laws of many optimizers and architectures.

A law is fitted to models that are 2, 4 and 8 times as wide as their base, or as deep, or both, or
to adapters of 2, 4 and 8 times the rank, at the first step and after 32 steps, and its exponents
are written down beside those that muP and spectral muP have. What the file of results has is not
done again.
"""

import argparse
import dataclasses
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

import flerm_fx
from experiments import data, foreign
from experiments.report import line, put
from experiments.training import Sign, optimizers
from flerm_fx.laws.mup import kind_of, mup_exponent
from flerm_fx.recipe.update_rule import UpdateRule
from models.convnet import ConvNet
from models.lora import add_lora
from models.mamba import Mamba
from models.resmlp import ResMLP
from models.transformer import Transformer

CONTEXT = 32
FACTORS = (2, 4, 8)
SETTLE = 32
BASE_SEEDS = range(4)
SEEDS = range(10, 12)
BATCHES = 21
"""One to measure on, and others to settle on."""

KINDS = ("input", "hidden", "output", "vector", "other")
"""Of parameters; ``other`` is what muP has no name for, such as a tied embedding."""

TITLES = {
    "sgd": "SGD with momentum",
    "adam": "Adam",
    "sign": "sign descent",
    "muon": "Muon, and Adam for what is no matrix",
    "adafactor": "Adafactor",
}
"""By optimizer."""

RATES = {"sgd": 2**-4, "adam": 2**-7, "sign": 2**-7, "muon": 2**-5, "adafactor": 2**-4}
"""At which a start is settled, by optimizer: each is within a tenth of a nat of the best octave, by
the loss of most bases after as many steps."""

OF_IMAGES = {"sgd": 2**-8, "sign": 2**-9, "muon": 2**-6, "adafactor": 2**-6}
"""The same for the ResMLP, whose best octaves are lower."""


@dataclass(frozen=True)
class Architecture:
    """A family of models: how one is made from a factor, and what it reads.

    ``rank`` says that the factor is that of a rank, of which muP says nothing; ``wider`` makes a
    wider base of a family that becomes deeper alone, whose parameters have kinds all the same.
    """

    title: str
    make: Callable[[int], nn.Module]
    data: data.Name
    batch: int
    rank: bool = False
    wider: Callable[[], nn.Module] | None = None


Norm = Literal["pre", "post", "post-pre-residual"]

NORMS: dict[str, tuple[Norm, str]] = {
    "pre": ("pre", "transformer, pre-norm"),
    "post": ("post", "transformer, post-norm"),
    "residual": ("post-pre-residual", "transformer, norms on residuals"),
}


def _transformer(norm: Norm, factor: int) -> nn.Module:
    return Transformer(width=16, depth=2, context=CONTEXT, norm=norm, width_multiplier=factor)


def _deep(factor: int, width: int = 32) -> nn.Module:
    """Blocks of one width."""
    return Transformer(width=width, depth=2 * factor, context=CONTEXT)


def _deep_and_wide(factor: int) -> nn.Module:
    return Transformer(width=16 * factor, depth=2 * factor, context=CONTEXT)


def _lora(factor: int) -> nn.Module:
    """The same frozen model, whatever the seed of the adapters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(width=32, depth=2, context=CONTEXT)
    return add_lora(model, rank=2 * factor, init="gaussian")


def _mixtral(factor: int) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=256,
            hidden_size=16 * factor,
            intermediate_size=32 * factor,
            num_hidden_layers=2,
            num_attention_heads=2 * factor,
            num_key_value_heads=2 * factor,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=CONTEXT,
            use_cache=False,
        )
    )


def _foreign(name: str, factor: int) -> nn.Module:
    return foreign.MODELS[name](width=16, depth=2, width_multiplier=factor)


ARCHITECTURES = {
    "mlp": Architecture(
        "ResMLP",
        lambda factor: ResMLP(784, 10, width=16, depth=4, width_multiplier=factor),
        "images",
        64,
    ),
    **{
        key: Architecture(title, functools.partial(_transformer, norm), "bytes", 8)
        for key, (norm, title) in NORMS.items()
    },
    "llama": Architecture("Llama", functools.partial(_foreign, "llama"), "bytes", 8),
    "gpt2": Architecture("GPT-2, tied", functools.partial(_foreign, "gpt2"), "bytes", 8),
    "conv": Architecture(
        "conv net", lambda factor: ConvNet(1, 10, 8, width_multiplier=factor), "pictures", 16
    ),
    "moe": Architecture("Mixtral, 4 experts", _mixtral, "bytes", 8),
    "mamba": Architecture(
        "Mamba", lambda factor: Mamba(width=16, depth=2, width_multiplier=factor), "bytes", 8
    ),
    "lora": Architecture("LoRA, rank", _lora, "bytes", 8, rank=True),
    "depth": Architecture(
        "transformer, depth", _deep, "bytes", 8, wider=functools.partial(_deep, 1, width=64)
    ),
    "both": Architecture("transformer, width and depth", _deep_and_wide, "bytes", 8),
}
"""By key."""


@dataclass(frozen=True)
class Row:
    """One exponent.

    Attributes:
        architecture, optimizer: keys.
        settle: simulated steps before the start.
        role: the parameters' first name in the base.
        kind: of :data:`KINDS`.
        dimensions: that grow as one; behind a role's own is the depth.
        exponent: of the multiplier in them, less its share of the base's mass.
        half_width: of its interval of 90 %.
        theory: muP's or spectral muP's exponent; None where neither has one.
        residual: root mean square of log multipliers about the line.
        curved: whether the law says that no one power holds.
    """

    architecture: str
    optimizer: str
    settle: int
    role: str
    kind: str
    dimensions: tuple[int, ...]
    exponent: float
    half_width: float
    theory: float | None
    residual: float
    curved: bool


def rate_of(family: Architecture, optimizer: str) -> float:
    """At which a start of a family is settled."""
    of_images = OF_IMAGES if family.data == "images" else {}
    return of_images.get(optimizer, RATES[optimizer])


def pool_of(name: data.Name, batch: int, batches: int) -> tuple[list[Tensor], list[Tensor]]:
    """So many batches of inputs and targets, of contexts cut short."""
    sample, generator = data.load(name).sample, torch.Generator().manual_seed(0)
    pool = [sample(batch, generator) for _ in range(batches)]
    if name == "bytes":
        pool = [(x[:, :CONTEXT].contiguous(), y[:, :CONTEXT].contiguous()) for x, y in pool]
    return [x for x, _ in pool], [y for _, y in pool]


def rows(architecture: str, optimizer: str, settle: int) -> Iterator[Row]:
    """Fit one law."""
    family = ARCHITECTURES[architecture]
    rate = rate_of(family, optimizer)
    inputs, targets = pool_of(family.data, family.batch, BATCHES if settle else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profile = flerm_fx.record_seeds(
            lambda: family.make(1),
            lambda model: optimizers(optimizer, model, rate),
            inputs,
            targets,
            seeds=BASE_SEEDS,
            settle=settle,
        )
        law = flerm_fx.scaling_law(
            lambda factor: family.make(factor),
            {"factor": list(FACTORS)},
            profile,
            seeds=SEEDS,
            optimizer=Sign if optimizer == "sign" else None,
        )
    wide = _shapes(family.wider()) if family.wider else {}
    adam = UpdateRule.of(torch.optim.Adam)  # whose steps are those of sign descent, to muP
    for name, of in law.roles.items():
        rule = adam if optimizer == "sign" else profile.optimizers.rule(name)
        ends = zip(of.line.axes, of.line.exponents, of.line.interval(), strict=True)
        for moved, exponent, (low, high) in ends:
            shape = of.role.shape
            own = [n != n_wide for n, n_wide in zip(shape, wide.get(name, shape), strict=True)]
            of_kind = tuple(k for k, n in enumerate(shape) if k in moved or own[k])
            yield Row(
                architecture,
                optimizer,
                settle,
                name,
                kind_of(profile.graph, name, of_kind) or "other",
                moved,
                exponent,
                (high - low) / 2,
                None if family.rank else mup_exponent(profile.graph, name, moved, rule),
                of.line.residual,
                any(finding.kind == "curvature" for finding in of.findings),
            )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def read(path: Path) -> list[Row]:
    """The rows of a file; none if it is not there."""
    if not path.exists():
        return []
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Row(**{**line, "dimensions": tuple(line["dimensions"])}) for line in lines]


@dataclass(frozen=True)
class Cell:
    """What one law says of one kind of parameter: means over its roles.

    Attributes:
        exponent: their mean.
        half_width: mean of their intervals' halves, as roles of one model err alike.
        theory: what muP or spectral muP has; None where it has nothing.
        roles: how many.
        curved: of how many no one power holds.
    """

    exponent: float
    half_width: float
    theory: float | None
    roles: int
    curved: int


def cell(found: Sequence[Row]) -> Cell:
    """Of the rows of one kind.

    >>> row = Row("mlp", "adam", 0, "a", "hidden", (0, 1), -1.0, 0.2, -1.0, 0.0, True)
    >>> cell([row, dataclasses.replace(row, exponent=-1.2, curved=False)])
    Cell(exponent=-1.1, half_width=0.2, theory=-1.0, roles=2, curved=1)
    """
    return Cell(
        fmean(row.exponent for row in found),
        fmean(row.half_width for row in found),
        found[0].theory,
        len(found),
        sum(row.curved for row in found),
    )


def cells(found: Sequence[Row]) -> dict[tuple[str, str, int], dict[str, Cell]]:
    """By architecture, optimizer and start, and by kind, in the order of this file."""
    order = [(a, o, s) for o in RATES for a in ARCHITECTURES for s in (0, SETTLE)]
    by_law: dict[tuple[str, str, int], list[Row]] = {key: [] for key in order}
    for row in found:
        by_law[row.architecture, row.optimizer, row.settle].append(row)
    return {
        key: {kind: cell(own) for kind in KINDS if (own := [row for row in of if row.kind == kind])}
        for key, of in by_law.items()
        if of
    }


def page(found: Sequence[Row]) -> Iterator[str]:
    """Tables, one an optimizer."""
    laws = cells(found)
    for optimizer in RATES:
        own = {key: of for key, of in laws.items() if key[1] == optimizer}
        if not own:
            continue
        yield from (f"## {TITLES[optimizer]}", "", line(["architecture", "start", *KINDS]))
        yield line(["---"] * (2 + len(KINDS)))
        theory = {
            kind: "" if c.theory is None else f"{c.theory:+g}"
            for of in reversed(own.values())
            for kind, c in of.items()
        }  # of the first one that has the kind, as Muon's convolutions are Adam's
        yield line(["theory", "", *(theory.get(kind, "") for kind in KINDS)])
        for (architecture, _, settle), of in own.items():
            start = f"{settle} steps" if settle else "first step"
            texts = [_text(of[kind]) if kind in of else "" for kind in KINDS]
            yield line([ARCHITECTURES[architecture].title, start, *texts])
        yield ""


def _text(of: Cell) -> str:
    curved = f" ({of.curved} of {of.roles} curved)" if of.curved else ""
    return f"{of.exponent:+.2f} ± {of.half_width:.2f}{curved}"


def draw(found: Sequence[Row], path: Path) -> None:
    """A panel for each optimizer: exponents by architecture, hollow at the first step, and bars
    where theory has them.
    """
    from matplotlib.figure import Figure

    laws = cells(found)
    names = [name for name in RATES if any(key[1] == name for key in laws)]
    figure = Figure(figsize=(5 + 3 * len(names), 7), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    shown = [name for name in ARCHITECTURES if any(key[0] == name for key in laws)]
    places = {key: -i for i, key in enumerate(shown)}
    for panel, name in zip(panels, names, strict=True):
        for at, kind in enumerate(KINDS):
            colour, shift = f"C{at}", 0.3 - 0.15 * at
            for settle, face in ((0, "white"), (SETTLE, colour)):
                own = {
                    architecture: of[kind]
                    for (architecture, optimizer, start), of in laws.items()
                    if (optimizer, start) == (name, settle) and kind in of
                }
                panel.errorbar(
                    [of.exponent for of in own.values()],
                    [places[architecture] + shift for architecture in own],
                    xerr=[min(of.half_width, 2.0) for of in own.values()],
                    fmt="o",
                    color=colour,
                    markerfacecolor=face,
                    markersize=5,
                    linewidth=1,
                    label=kind + (", first step" if not settle else ""),
                )
                for architecture, of in own.items():
                    if of.theory is not None:
                        low, high = (places[architecture] + shift + d for d in (-0.07, 0.07))
                        panel.vlines(of.theory, low, high, color=colour, linewidth=3, alpha=0.4)
        panel.set_title(TITLES[name], fontsize="small")
        panel.set_xlabel("exponent of the multiplier")
        panel.set_xlim(-3.4, 3.4)
        panel.grid(alpha=0.3)
    panels[0].set_yticks(list(places.values()), [ARCHITECTURES[name].title for name in shown])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.exponents", description=__doc__)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--optimizers", nargs="+", choices=RATES, metavar="NAME")
    parser.add_argument("--settle", type=int, nargs="+", choices=(0, SETTLE), default=[0, SETTLE])
    parser.add_argument("--out", type=Path, default=Path("results-out/laws.jsonl"))
    parser.add_argument("--markdown", type=Path, help="page to write the tables to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = read(options.out)
    done = {(row.architecture, row.optimizer, row.settle) for row in found}
    for optimizer in options.optimizers or RATES:
        for architecture in options.architectures or ARCHITECTURES:
            for settle in options.settle:
                if (architecture, optimizer, settle) in done:
                    continue
                new = list(rows(architecture, optimizer, settle))
                found += new
                with options.out.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in new)
                print(f"{architecture}, {optimizer}, settle {settle}", flush=True)
    print("\n".join(page(found)))
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        draw(found, options.markdown.with_suffix(".png"))
        put(options.markdown, "exponents", list(page(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
