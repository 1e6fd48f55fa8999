"""The demo goes from beginning to end: record, sweep, compile, sweep, show."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import flerm_fx
from flerm_fx.boundary.files import check, reason, write_all
from flerm_fx.commands.demo.corpus import Corpus, read_corpus, sample_windows
from flerm_fx.commands.demo.figure import COLOURS, to_png
from flerm_fx.commands.demo.optimum import Curve, find_optimum, verdict
from flerm_fx.commands.demo.page import to_page
from flerm_fx.commands.demo.results import to_results
from flerm_fx.commands.demo.settings import Settings
from flerm_fx.commands.demo.sweep import Arm, build, sweep
from flerm_fx.errors import InputError, shown
from flerm_fx.model.inputs import Inputs

PROFILE = "base.safetensors"
RESULTS = (PROFILE, "results.json", "multipliers.txt", "sweep.html", "sweep.png")

BATCHES = 21
"""Of the probe pool: one to measure on, and others to settle on."""


def run_demo(settings: Settings, console: Console) -> tuple[Curve, Curve, Curve]:
    """Tune a small language model, and see what its learning rate is worth on a larger one.

    1. Sweep learning rates on the small model.
    2. Record its function-space learning rates: ``base.safetensors``.
    3. Sweep the same rates on the large model, in standard training and compiled.
    4. Write ``sweep.png``, ``sweep.html``, ``results.json`` and ``multipliers.txt``, the dump of
       the compiled model.

    Returns:
        The curves of the small model, of the large one in standard training, and compiled.

    Raises:
        InputError: if the folder for the results cannot be written.
        FlermError: what recording or compiling raised.
    """
    began = time.monotonic()
    _prepare_folder(settings.out)
    corpus = read_corpus()
    task, profile = settings.task, settings.out / PROFILE
    small_arm = Arm(f"width {settings.base_width}", settings.base_width)
    standard_arm = Arm(f"width {settings.large_width}, standard", settings.large_width)
    compiled_arm = Arm(f"width {settings.large_width}, compiled", settings.large_width, profile)
    console.print(
        f"Text: {corpus.files} files of Python's standard library, "
        f"{(len(corpus.train) + len(corpus.validation)) / 1e6:.1f} MB. {_describe(settings)}"
    )
    with _progress_bars(console) as bars:
        total = task.steps * len(settings.rates)
        arms = (small_arm, standard_arm, compiled_arm)
        bar = {arm.name: bars.add_task(arm.name, total=total) for arm in arms}

        def advance(name: str, steps: int) -> None:
            bars.advance(bar[name], steps)

        (small,) = sweep([small_arm], settings, corpus, advance)
        if small.best < 0:
            raise InputError(
                f"the small model diverged at every rate from {small.rates[0]:.3g} to "
                f"{small.rates[-1]:.3g}; give lower --rates"
            )
        record_base(small_arm, small.rates[small.best], corpus, settings, profile)
        large = [standard_arm, compiled_arm]
        standard, compiled = sweep(large, settings, corpus, advance)
    curves = (small, standard, compiled)
    sentence = verdict(small, standard, compiled, settings.width)
    seconds = time.monotonic() - began
    compiled_model = build(compiled_arm, settings)
    assert isinstance(compiled_model, flerm_fx.CompiledModel)
    write(settings, curves, sentence, seconds, compiled_model.dump())
    console.print(to_table(curves))
    console.print(sentence, style="bold", highlight=False)
    folder = shown(settings.out)
    console.print(
        f"{seconds:.0f} s. Pictures, numbers and multipliers are in {folder}/", markup=False
    )
    return curves


def record_base(arm: Arm, rate: float, corpus: Corpus, settings: Settings, path: Path) -> None:
    """Record the small model's function-space learning rates at its best rate, to ``path``."""
    model = build(arm, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(settings.task.seed)
    task = settings.task
    batches = [
        sample_windows(corpus.train, task.batch, task.context, generator) for _ in range(BATCHES)
    ]
    inputs: list[Inputs] = [batch[0] for batch in batches]
    targets = [batch[1] for batch in batches]
    # compile() uses the start, which is measured at once on a copy: nothing is trained here.
    flerm_fx.record(model, optimizer, inputs, targets, progress=False).profile.save(path)


def to_table(curves: Sequence[Curve]) -> Table:
    """Return the loss at every rate, with the lowest of each column in bold, and the optima
    below.
    """
    table = Table(title="Validation loss, nats per byte")
    table.add_column("learning rate", justify="right")
    for curve, colour in zip(curves, COLOURS, strict=True):
        table.add_column(curve.name, justify="right", header_style=colour)
    for i, rate in enumerate(curves[0].rates):
        table.add_row(f"{rate:.3g}", *(_cell(curve, i) for curve in curves))
    table.add_section()
    optima = [find_optimum(curve) for curve in curves]
    table.add_row("optimum at", *(f"2^{optimum.log2_rate:.2f}" for optimum in optima))
    table.add_row("loss there", *(f"{optimum.loss:.3f}" for optimum in optima))
    return table


def _cell(curve: Curve, i: int) -> str:
    loss = curve.losses[i]
    text = "diverged" if math.isnan(loss) else f"{loss:.3f}"
    return f"[bold underline]{text}[/]" if i == curve.best else text


def _describe(settings: Settings) -> str:
    task = settings.task
    warmup = f"{task.warmup} of them warm-up" if task.warmup else "no warm-up"
    return (
        f"Transformers {settings.base_width} and {settings.large_width} wide, {settings.depth} "
        f"blocks, {settings.norm}-norm; Adam at a constant rate, {warmup}, {task.steps} steps of "
        f"{task.batch} windows of {task.context} bytes, the same for every run (seed {task.seed})."
    )


def _progress_bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        console=console,
    )


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            check(folder / name)
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        raise InputError(
            f"--out {shown(folder)}: cannot write there ({reason(error)}); name another folder"
        ) from error


def write(
    settings: Settings, curves: Sequence[Curve], sentence: str, seconds: float, dump: str
) -> None:
    """Write the demo's results into the folder that its settings name, all of them or none."""
    title = f"One learning rate, {settings.base_width} to {settings.large_width} wide"
    out = settings.out
    try:
        write_all(
            {
                out / "results.json": to_results(curves, sentence, settings, seconds).encode(),
                out / "multipliers.txt": f"{dump}\n".encode(),
                out / "sweep.html": to_page(curves, title, sentence, _describe(settings)).encode(),
                out / "sweep.png": to_png(curves, title),
            }
        )
    except OSError as error:
        raise InputError(
            f"--out {shown(out)}: cannot write the results ({reason(error)}); the verdict "
            f"was: {sentence}"
        ) from error
