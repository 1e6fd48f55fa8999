"""``flerm-fx compile`` shows the multipliers of a model, measured against a base profile."""

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax

import flerm_fx
from flerm_fx.commands.factory import load_model
from flerm_fx.commands.mapping import Mapping, parsed
from flerm_fx.commands.match import OnUnmatched
from flerm_fx.dump import check_dump
from flerm_fx.dump.write import check_writable, write
from flerm_fx.emit.compiled import CompiledModel
from flerm_fx.errors import FlermError, InputError, shown
from flerm_fx.laws.law import ScalingLaw
from flerm_fx.profile.profile import BaseProfile

SEEDS = 2**63 - 1
"""The largest seed that a generator of torch takes."""


class Dump(StrEnum):
    """A ``Dump`` is a form of a dump."""

    table = "table"
    json = "json"
    dot = "dot"
    code = "code"
    html = "html"
    svg = "svg"
    png = "png"
    model_explorer = "model-explorer"


class Stack(StrEnum):
    """A ``Stack`` is a form of a table for what never imports flerm_fx."""

    json = "json"
    regex = "regex"
    megatron = "megatron"
    torchtitan = "torchtitan"
    param_groups = "param_groups"


class Level(StrEnum):
    """A ``Level`` says what a picture shows."""

    parameter = "parameter"
    op = "op"


def compile(
    profile: Annotated[
        Path, typer.Argument(help="A base profile, base.safetensors, or a law, .json.")
    ],
    model: Annotated[
        str, typer.Option(help="The target: package.module:factory, called without arguments.")
    ],
    dump: Annotated[
        Dump | None,
        typer.Option("--format", "--dump", help="What to print.", show_default="table"),
    ] = None,
    overrides: Annotated[
        Stack | None,
        typer.Option(help="In place of that: a table for a stack that never imports flerm_fx."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it there, and print nothing.")] = None,
    level: Annotated[Level, typer.Option(help="What a picture shows.")] = Level.parameter,
    focus: Annotated[
        str | None, typer.Option(help="Draw one module, such as blocks.0, and its neighbours.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the model's initial weights.", min=0, max=SEEDS)
    ] = 0,
    rtol: Annotated[float, typer.Option(help="Relative standard error of the multipliers.")] = 0.1,
    check: Annotated[
        bool, typer.Option("--check", help="Measure the FSLRs again on the compiled model.")
    ] = False,
    on_unmatched: Annotated[
        OnUnmatched, typer.Option(help="What becomes of parameters without a counterpart.")
    ] = OnUnmatched.error,
    mapping: Mapping = None,
) -> None:
    """Print the multiplier of each parameter of a model, as flerm_fx.compile finds it.

    The model is measured on the inputs that are stored in the profile. A law, which ends in .json,
    predicts the multipliers, and the model is built on the device meta. The exit code is 1 where
    --check finds a parameter whose FSLR is not the base's.

    Example: flerm-fx compile base.safetensors --model my_project.models:large --check
    """
    form = dump or Dump.table
    if overrides is None:
        check_dump(form.value, out, level.value, focus)
    elif dump is not None or focus is not None or level is not Level.parameter:
        raise InputError(
            "--overrides prints a table for another stack in place of a dump, which --format, "
            "--level and --focus are of; leave out one or the other"
        )
    elif out is not None:
        check_writable(out)
    base = ScalingLaw.load(profile) if profile.suffix == ".json" else BaseProfile.load(profile)
    compiled = compiled_model(base, model, seed, rtol, on_unmatched, mapping)
    failed = [c for c in compiled.check() if not c.passed] if check else []
    if overrides is None:
        text = compiled.dump(form.value, out, level=level.value, focus=focus)
    else:
        text = compiled.overrides(overrides.value)
        if out is not None:
            write(text, out)
    if out is None and form is Dump.code and sys.stdout.isatty():
        Console().print(Syntax("", "python", theme="ansi_dark").highlight(text), soft_wrap=True)
    elif out is None:
        print(text)
    if failed:
        first = failed[0]
        raise FlermError(
            f"{len(failed)} parameters miss the base's FSLRs, such as {shown(first.parameter)}: "
            f"{first.measured.value:g} in place of {first.expected:g}"
        )


def compiled_model(
    base: BaseProfile | ScalingLaw,
    model: str,
    seed: int,
    rtol: float,
    on_unmatched: OnUnmatched,
    mapping: list[str] | None,
) -> CompiledModel:
    """Return the model that a name gives, compiled against a base profile in the base's mode.

    For a law it is built on the device meta.
    """
    import torch

    torch.manual_seed(seed)
    predicted = isinstance(base, ScalingLaw)
    profile = base.profile if isinstance(base, ScalingLaw) else base
    with torch.device("meta") if predicted else nullcontext():
        target = load_model(model).train(profile.training)
    return flerm_fx.compile(
        target, base, rtol=rtol, mapping=parsed(mapping), on_unmatched=on_unmatched.value
    )
