"""``flerm-fx demo`` runs the demo."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flerm_fx.commands.demo.settings import WORKERS, Settings, parse_rates
from flerm_fx.commands.demo.train import Task
from flerm_fx.errors import shown


def demo(
    width: Annotated[int, typer.Option(help="How many times wider the large model is.")] = 4,
    base_width: Annotated[int, typer.Option(help="Width of the small model.")] = 32,
    depth: Annotated[int, typer.Option(help="Blocks in both models.")] = 2,
    norm: Annotated[str, typer.Option(help="pre, post or post-pre-residual.")] = "pre",
    steps: Annotated[int, typer.Option(help="Training steps of every run.")] = Task.steps,
    rates: Annotated[
        str, typer.Option(help="Learning rates LOW:HIGH[:STEP], in powers of two.")
    ] = "-10:-2",
    batch: Annotated[int, typer.Option(help="Windows in a batch.")] = Task.batch,
    context: Annotated[int, typer.Option(help="Bytes in a window.")] = Task.context,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = Task.warmup,
    seed: Annotated[int, typer.Option(help="Seeds weights and batches.")] = Task.seed,
    workers: Annotated[int, typer.Option(help="Processes that train side by side.")] = WORKERS,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-out"),
) -> None:
    """Tune a learning rate on a small language model and use it on a wider one.

    Trains byte-level transformers on the source of Python's own standard library with Adam: a small
    one over a range of learning rates, then one several times wider over the same range, in
    standard training and after flerm_fx.compile. Prints a table of the losses and a verdict, and
    writes sweep.png, sweep.html, results.json, multipliers.txt and base.safetensors.

    Examples:
        flerm-fx demo

        flerm-fx demo --width 8 --steps 300

        flerm-fx demo --norm post --rates -12:-4 --out post-norm

        flerm-fx demo --width 2 --steps 20 --rates -8:-4:2     (a minute, to see it work)
    """
    from flerm_fx.commands.demo.demo import run_demo  # it draws, which other commands do not

    console = Console()
    settings = Settings(
        width=width,
        base_width=base_width,
        depth=depth,
        norm=norm,
        rates=parse_rates(rates),
        task=Task(steps=steps, batch=batch, context=context, warmup=warmup, seed=seed),
        out=out,
        workers=workers,
    )
    try:
        run_demo(settings, console)
    except KeyboardInterrupt:
        # typer itself would end with this code and without a word
        print(f"flerm-fx: interrupted; no results were written to {shown(out)}/", file=sys.stderr)
        raise typer.Exit(130) from None
