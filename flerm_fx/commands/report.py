"""``flerm-fx report`` writes a base profile as an HTML page, alone or beside a compiled model."""

from pathlib import Path
from typing import Annotated

import typer

from flerm_fx.commands.compile import SEEDS, compiled_model
from flerm_fx.commands.mapping import Mapping
from flerm_fx.commands.match import OnUnmatched
from flerm_fx.dump.report import to_html
from flerm_fx.dump.write import check_writable, write
from flerm_fx.errors import shown
from flerm_fx.profile.profile import BaseProfile


def report(
    profile: Annotated[Path, typer.Argument(help="A base profile, base.safetensors.")],
    model: Annotated[
        str | None,
        typer.Option(help="Show it beside: package.module:factory, called without arguments."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    seed: Annotated[
        int, typer.Option(help="Of the model's initial weights.", min=0, max=SEEDS)
    ] = 0,
    rtol: Annotated[float, typer.Option(help="Relative standard error of the multipliers.")] = 0.1,
    on_unmatched: Annotated[
        OnUnmatched, typer.Option(help="What becomes of parameters without a counterpart.")
    ] = OnUnmatched.error,
    mapping: Mapping = None,
) -> None:
    """Write a page with the parameter graph, a table of all parameters, and the trajectory.

    It is one file that opens offline. With --model, the model is compiled as by flerm-fx compile,
    and shown beside the base with its multipliers.

    Example: flerm-fx report base.safetensors --model my_project.models:large
    """
    check_writable(out)
    base = BaseProfile.load(profile)
    if model is None:
        write(to_html(base), out)
    else:
        compiled_model(base, model, seed, rtol, on_unmatched, mapping).dump("html", out)
    print(f"wrote {shown(out)}")
