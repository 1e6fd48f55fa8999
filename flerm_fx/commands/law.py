"""``flerm-fx law`` fits a scaling law, and shows what is in one."""

import ast
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flerm_fx.boundary.files import check, reason
from flerm_fx.commands.factory import load_factory
from flerm_fx.dump.plot import check_picture
from flerm_fx.errors import InputError, LawError, shown
from flerm_fx.laws.building import scaling_law
from flerm_fx.laws.law import ScalingLaw
from flerm_fx.laws.picture import write_picture
from flerm_fx.laws.table import to_table
from flerm_fx.profile.profile import BaseProfile

law = typer.Typer(
    name="law",
    help="Scaling laws: multipliers for models that are never run.",
    no_args_is_help=True,
)


@law.command("fit")
def fit(
    profile: Annotated[Path, typer.Argument(help="A base profile, base.safetensors.")],
    model: Annotated[
        str | None, typer.Option(help="package.module:factory, called with the sizes as keywords.")
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(help="Values of one of its arguments, such as width=64,128,256."),
    ] = None,
    trajectory: Annotated[
        list[Path] | None,
        typer.Option(help="In place of both: a profile of a larger model, recorded as it trained."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the law.")] = Path("law.json"),
    seeds: Annotated[int | None, typer.Option(help="Models of each size: 3.", min=1)] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Relative standard error of the multipliers: 0.1.")
    ] = None,
) -> None:
    """Measure models of several sizes, fit the law of their multipliers, and write it.

    With --trajectory nothing is measured: the law is fitted to what was recorded in runs of the
    base and of larger models, at the same steps.

    Example: flerm-fx law fit base.safetensors --model my_project.models:make
    --sizes width=64,128,256
    """
    if bool(trajectory) == bool(model or sizes) or bool(model) != bool(sizes):
        raise InputError("law fit takes --model and --sizes, or --trajectory in place of both")
    measured = {name: v for name, v in (("seeds", seeds), ("rtol", rtol)) if v is not None}
    if trajectory and measured:
        raise InputError(
            f"--{' and --'.join(measured)} say how models are measured, and with --trajectory none "
            "is; leave out what does not apply"
        )
    try:
        check(out)
    except OSError as error:
        raise LawError(f"{shown(out)}: no law can be written there ({reason(error)})") from error
    chosen = _sizes(sizes or ())
    base = BaseProfile.load(profile)
    if model is None:
        fitted = ScalingLaw.fit_trajectories(base, map(BaseProfile.load, trajectory or ()))
    else:
        fitted = _measured(base, load_factory(model), chosen, measured)
    fitted.save(out)
    print(to_table(fitted))


def _measured(
    base: BaseProfile,
    factory: Callable[..., Any],
    sizes: dict[str, list[Any]],
    options: dict[str, Any],
) -> ScalingLaw:
    """Measure models, and tell of each."""
    handler, logger = logging.StreamHandler(), logging.getLogger("flerm_fx")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with Console(stderr=True).status("measuring models"):
            return scaling_law(factory, sizes, base, **options, progress=False)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@law.command("show")
def show(
    path: Annotated[Path, typer.Argument(help="A law, law.json.")],
    picture: Annotated[
        Path | None, typer.Option(help="Also draw it there: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Print the exponents of each role, and where the law does not hold.

    Example: flerm-fx law show law.json --picture law.png
    """
    if picture is not None:
        check_picture(picture)
    loaded = ScalingLaw.load(path)
    print(to_table(loaded))
    if picture is not None:
        write_picture(loaded, picture)


def _sizes(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values of each argument."""
    chosen: dict[str, list[Any]] = {}
    for name, values in map(_size, texts):
        if name in chosen:
            both = ",".join(map(str, chosen[name] + values))
            raise InputError(
                f"--sizes has {name} twice; name all of its values once, {name}={both}"
            )
        chosen[name] = values
    return chosen


def _size(text: str) -> tuple[str, list[Any]]:
    """Return an argument's name and its values.

    >>> _size("width=64,128")
    ('width', [64, 128])
    """
    name, equals, values = text.partition("=")
    try:
        listed = [ast.literal_eval(value) for value in values.split(",")]
    except (ValueError, SyntaxError):
        listed = []
    if not (equals and name.isidentifier() and listed):
        raise InputError(f"--sizes is {text!r}; expected an argument's values, width=64,128,256")
    return name, listed
