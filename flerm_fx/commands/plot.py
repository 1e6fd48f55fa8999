"""``flerm-fx plot`` draws a picture of trajectories."""

from pathlib import Path
from typing import Annotated

import typer

from flerm_fx.dump.plot import check_picture, write_plot
from flerm_fx.errors import shown
from flerm_fx.profile.profile import BaseProfile


def plot(
    profiles: Annotated[list[Path], typer.Argument(help="Base profiles with trajectories.")],
    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = Path("fslr.png"),
    per_rate: Annotated[
        bool, typer.Option("--per-rate", help="Per unit of learning rate, not for each step.")
    ] = False,
) -> None:
    """Draw how far each layer's steps move the function, over training.

    A heat map with a row for each parameter, and a line for each kind of layer; a pair for each
    profile, on one scale of colours, so that optimizers can be compared.

    Example: flerm-fx plot adam.safetensors sgd.safetensors --out dynamics.png
    """
    check_picture(out)
    titles = [path.stem for path in profiles]
    if len(set(titles)) < len(titles):
        titles = [str(path) for path in profiles]
    loaded = {t: BaseProfile.load(p) for t, p in zip(titles, profiles, strict=True)}
    rules = {t: each.optimizer.source.removeprefix("torch.optim.") for t, each in loaded.items()}
    write_plot({f"{t}: {rules[t]}": each for t, each in loaded.items()}, out, per_rate=per_rate)
    print(f"{shown(out)}: {len(loaded)} profile{'s' if len(loaded) > 1 else ''}")
