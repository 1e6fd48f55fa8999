"""The documentation's code runs, and prints what the pages say that it prints."""

import contextlib
import copy
import inspect
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

Namespace = dict[str, Any]

SLOW = {
    "tutorial.md",
    "which.md",
    "how-to/trainer.md",
    "how-to/lightning.md",
    "how-to/loops.md",
    "how-to/kinds.md",
    "how-to/lora.md",
    "how-to/pretraining.md",
}
"""Pages that take seconds: they train, or import transformers."""


@dataclass(frozen=True)
class Snippet:
    """A block of Python, and what it prints where the page shows that."""

    code: str
    line: int
    section: str
    output: str | None = None


def snippets(text: str, indented: bool = False) -> list[Snippet]:
    """The fenced blocks of Python, or those that are indented.

    A fence of ``text`` after one, with nothing but blank lines between, is what it prints.
    """
    lines = text.splitlines()
    found: list[Snippet] = []
    section, index, adjacent = "", 0, False
    while index < len(lines):
        line, begin = lines[index], index + 1
        if line.startswith("```"):
            index += 1
            while not lines[index].startswith("```"):
                index += 1
            body = "\n".join(lines[begin:index])
            if line == "```python":
                found.append(Snippet(body, begin + 1, section))
            elif line == "```text" and adjacent:
                last = found.pop()
                found.append(Snippet(last.code, last.line, last.section, body))
            adjacent = line == "```python"
        elif indented and line.startswith("    ") and lines[index - 1] == "":
            while index < len(lines) and (lines[index].startswith("    ") or not lines[index]):
                index += 1
            code = "\n".join(row[4:] for row in lines[begin - 1 : index])
            found.append(Snippet(code.rstrip(), begin, section))
            index -= 1
        elif line:
            section = line.lstrip("# ") if line.startswith("#") else section
            adjacent = False
        index += 1
    return found


def run(page: str, snippet: Snippet, names: Namespace) -> None:
    code = "\n" * (snippet.line - 1) + snippet.code
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec", dont_inherit=True), names)
    if snippet.output is not None:
        assert_prints(printed.getvalue(), snippet.output)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def assert_prints(printed: str, shown: str, rel: float = 0.05) -> None:
    """The same words, and numbers to the accuracy that they have from machine to machine."""

    def split(text: str) -> list[str]:
        return [word for word in text.replace("-+-", "").split() if word.strip("-")]

    one, other = split(printed), split(shown)
    assert len(one) == len(other), printed
    for word, expected in zip(one, other, strict=True):
        if word != expected:
            assert NUMBER.fullmatch(word) and NUMBER.fullmatch(expected), f"{word!r} in\n{printed}"
            assert float(word) == pytest.approx(float(expected), rel=rel), printed


PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if "```python" in path.read_text(encoding="utf-8")
)
DISTRIBUTED = "how-to/distributed.md"
"""Its snippets are a program of several processes, which they end."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files are written elsewhere, random numbers are as they were, and others may warn.

    That a model has no graph is no warning for a page that does not speak of it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", flerm_fx.CaptureWarning)
        yield
    if torch.distributed.is_initialized():  # by a Trainer, as the variables above are set
        torch.distributed.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p
        for p in PAGES
        if p != DISTRIBUTED
    ],
)
def test_the_snippets_of_a_page_run_in_order(page: str) -> None:
    names: Namespace = {"__name__": "__main__"}
    for snippet in snippets((DOCS / page).read_text(encoding="utf-8")):
        run(page, snippet, names)


@pytest.mark.slow
def test_the_snippets_about_several_processes_run_in_two(tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    page = snippets((DOCS / DISTRIBUTED).read_text(encoding="utf-8"))
    program.write_text("\n\n".join(snippet.code for snippet in page), encoding="utf-8")
    run_in_two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *run_in_two, str(program)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert flerm_fx.BaseProfile.load(tmp_path / "base.safetensors").trajectory.steps == (0, 2)


# Pages whose snippets are indented, and speak of a model, a loop and a profile that readers have.


def prepared() -> Namespace:
    """A small and a large model, a loop, and a profile with a trajectory."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def train(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
        for _ in range(2):
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            for optimizer in optimizers:
                optimizer.step()

    small, large = net(8), net(32)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    with flerm_fx.record(small, optimizer, inputs, targets) as recorder:
        train(small, optimizer)
    recorder.profile.save("base.safetensors")
    return {
        "__name__": "__main__",
        "torch": torch,
        "flerm_fx": flerm_fx,
        "inputs": inputs,
        "targets": targets,
        "small": small,
        "make_small": lambda: net(8),
        "make_large": lambda: net(32),
        "loader": [(inputs, targets)] * 2,
        "make_optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
        "large": large,
        "train": train,
        "profile": recorder.profile,
        "lr": 1e-2,
        "steps": 4,
        "optimizer": torch.optim.AdamW([*small.parameters(), *large.parameters()], lr=1e-2),
        "loop": lambda: None,
    }


def schedules(names: Namespace) -> None:
    names["OneCycleLR"] = torch.optim.lr_scheduler.OneCycleLR
    names["compiled"] = flerm_fx.compile(names["large"], names["profile"])
    names["loop"] = lambda: (
        names["train"](names["large"], names["optimizer"]),
        names["scheduler"].step(),
    )


def shards(names: Namespace) -> None:
    from torch.distributed import init_process_group
    from torch.distributed.fsdp import fully_shard

    init_process_group("gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    names["fully_shard"] = lambda model: fully_shard(model, mesh=mesh)
    names["loop"] = lambda: names["train"](names["model"], names["optimizer"])


def resumes(names: Namespace) -> None:
    model = names["model"] = names["large"]
    optimizer = names["optimizer"] = torch.optim.AdamW(model.parameters(), lr=1e-2)
    names["scheduler"] = torch.optim.lr_scheduler.ConstantLR(optimizer)
    names["matcher"] = flerm_fx.match(model, optimizer, names["profile"])
    names["train"](model, optimizer)
    names["matcher"].close()
    names["path"] = "checkpoint.pt"


def gpt2s(names: Namespace) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(31, (8, 8))
    names["batch"] = {"input_ids": tokens, "labels": tokens}
    for name, width in (("small", 8), ("large", 16)):
        config = transformers.GPT2Config(
            vocab_size=31,
            n_positions=8,
            n_embd=width,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        names[name] = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(names["small"].parameters(), lr=1e-3)
    with flerm_fx.record(names["small"], optimizer, names["batch"]) as recorder:
        names["small"](**names["batch"]).loss.backward()
        optimizer.step()
    names["profile"] = recorder.profile


def checkpoints(names: Namespace) -> None:
    gpt2s(names)
    names["plain"] = copy.deepcopy(names["large"])
    names["compiled"] = flerm_fx.compile(names["large"], names["profile"])
    names["state"] = names["compiled"].state_dict()
    names["folder"] = "folder"


def accumulates(names: Namespace) -> None:
    names["model"] = names["large"]
    names["optimizer"] = torch.optim.AdamW(names["large"].parameters(), lr=1e-2)
    names["batches"] = [(names["inputs"], names["targets"])] * 2
    names["loss_of"] = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    names["scaler"] = torch.amp.GradScaler("cpu")


def several(names: Namespace) -> None:
    large = names["large"]
    names["model"] = names["small"]
    matrices = [p for p in large.parameters() if p.ndim == 2]
    vectors = [p for p in large.parameters() if p.ndim != 2]
    names["large_muon"] = torch.optim.Muon(matrices, lr=2e-2)
    names["large_adamw"] = torch.optim.AdamW(vectors, lr=3e-4)
    names["loop"] = lambda: (
        names["train"](names["small"], names["muon"], names["adamw"]),
        names["train"](large, names["large_muon"], names["large_adamw"]),
    )


def trainers(names: Namespace) -> None:
    gpt2s(names)
    lightning = pytest.importorskip("lightning")
    from transformers import Trainer, TrainingArguments

    batch, large = names["batch"], names["large"]

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = large

        def forward(self, **batch: Any) -> Any:
            return self.model(**batch)

        def training_step(self, batch: Any, index: int) -> Any:
            return self(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Fast(lightning.Trainer):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(max_steps=1, accelerator="cpu", logger=False, **options)

    data = [{key: rows[index] for key, rows in batch.items()} for index in range(8)]
    names |= {
        "Trainer": Trainer,
        "args": TrainingArguments("out", max_steps=2, report_to=[], use_cpu=True, save_steps=9),
        "data": data,
        "path": "base.safetensors",
        "L": types.SimpleNamespace(Trainer=Fast),
        "module": Module(),
        "loader": torch.utils.data.DataLoader(data, batch_size=4),  # type: ignore[arg-type]
    }


def accelerates(names: Namespace) -> None:
    accelerate = pytest.importorskip("accelerate")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # which the fixture puts back
        os.environ.pop(name)
    accelerate.state.AcceleratorState._reset_state(True)  # what a Trainer has left there
    data = torch.utils.data.TensorDataset(names["inputs"], names["targets"])
    names["accelerator"] = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    names["loader"] = torch.utils.data.DataLoader(data, batch_size=4)
    names["optimizer"] = torch.optim.AdamW(names["large"].parameters(), lr=1e-2)


class Logged(contextlib.nullcontext["Logged"]):
    """Stands for a run of W&B, or for MLflow, which are not installed."""

    def __init__(self) -> None:
        super().__init__(self)
        self.steps: list[int] = []

    def log(self, numbers: dict[str, float], step: int) -> None:
        assert {"flerm/fslr/0.weight", "flerm/multiplier/0.weight"} <= numbers.keys()
        self.steps.append(step)


def logs(names: Namespace) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    names["SummaryWriter"] = tensorboard.SummaryWriter
    names["optimizer"] = torch.optim.AdamW(names["large"].parameters(), lr=1e-2)
    names["runs"] = wandb, mlflow = Logged(), Logged()
    names["wandb"] = types.SimpleNamespace(init=lambda **options: wandb)
    names["mlflow"] = types.SimpleNamespace(
        start_run=lambda **options: mlflow, log_metrics=mlflow.log
    )


SETUPS: dict[str, Callable[[Namespace], None]] = {
    "Which form": lambda names: None,
    "A scheduler overwrites the learning rates": schedules,
    "Multipliers are lost on deepcopy, or under FSDP": shards,
    "A run is killed and resumed": resumes,
    "Checkpoints": checkpoints,
    "Gradient accumulation, clipping, mixed precision": accumulates,
    "Several optimizers": several,
    "Trainers": trainers,
    "Accelerate": accelerates,
    "TensorBoard, W&B and MLflow": logs,
}
"""What the sections of docs/training.md take for granted."""


def sections(page: str) -> dict[str, list[Snippet]]:
    found: dict[str, list[Snippet]] = {}
    for snippet in snippets((DOCS / page).read_text(encoding="utf-8"), indented=True):
        found.setdefault(snippet.section, []).append(snippet)
    return found


TRAINING = sections("training.md")


def test_every_section_with_a_snippet_is_run() -> None:
    assert SETUPS.keys() == TRAINING.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize("section", TRAINING)
def test_the_snippets_of_training_run(section: str) -> None:
    """``...`` stands for the reader's loop."""
    names = prepared()
    SETUPS[section](names)
    for snippet in TRAINING[section]:
        code = re.sub(r"^( +)\.\.\.$", r"\1loop()", snippet.code, flags=re.MULTILINE)
        run("training.md", Snippet(code, snippet.line, section), names)
    assert all(logged.steps == [0] for logged in names.get("runs", ()))


@pytest.mark.usefixtures("_apart")
def test_the_snippets_of_the_readme_and_the_design_run() -> None:
    readme = snippets((ROOT / "README.md").read_text(encoding="utf-8"))
    design = sections("design.md")["1. The problem"]
    assert len(readme) == len(design) == 1
    for snippet in (*readme, *design):
        names = prepared() | {"the_rate_tuned_on_small": 1e-2}
        run(f"line {snippet.line}", snippet, names)


def rows(page: str) -> list[list[str]]:
    """The cells of the first table in a text."""
    lines = page[page.index("\n| ") :].strip().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


MEASURED = {
    "Llama, 4 times as wide and as deep": ("Llama, width and depth", "4"),
    "ViT, 4 times as wide": ("ViT, width", "4"),
    "GPT-2, 4 times as wide": ("GPT-2, width", "4"),
    "Llama, 4 times as wide": ("Llama, width", "4"),
    "GPT-NeoX, 4 times as wide": ("GPT-NeoX, width", "4"),
    "OLMo 2, 4 times as wide": ("OLMo 2, width", "4"),
    "GPT-2, 4 times as deep": ("GPT-2, depth", "4"),
    "Llama, 4 times as deep": ("Llama, depth", "4"),
    "GPT-2, 4 times the initial weights": ("GPT-2, initialisation", "4"),
}
"""What the README calls the rows of the first table of results."""


def at_best() -> dict[tuple[str, str], dict[str, str]]:
    """The first table of results, by axis and scale."""
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    names, *cells = rows(page.split("## At the base's best rate")[1])
    return {(row[0], row[1]): dict(zip(names, row, strict=True)) for row in cells}


def test_the_figures_in_the_readme_are_those_of_the_results() -> None:
    header, *shown = rows((ROOT / "README.md").read_text(encoding="utf-8"))
    assert header[1:] == ["standard training", "with flerm_fx"]
    assert {row[0] for row in shown} == MEASURED.keys()
    results = at_best()
    for label, standard, compiled in shown:
        found = results[MEASURED[label]]
        assert (standard, compiled) == (found["standard"], found["compile"]), label


def test_so_are_those_with_a_rate_for_each_kind() -> None:
    pytest.importorskip("experiments")
    from experiments.axes import AXES
    from experiments.measures import seed_mean
    from experiments.runner import best_rate
    from experiments.store import Store

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    header, *shown = rows(readme[readme.index("| the large model, with a rate") - 2 :])
    assert header[1:] == ["the small model", "standard training", "with flerm_fx"]
    results, store = at_best(), Store(DOCS / "results")
    for label, base, standard, compiled in shown:
        title = label.replace(", 4 times as wide", ", kinds tuned, width")
        (axis,) = (axis for axis in AXES.values() if axis.title == title)
        best, runs = best_rate(axis, store), store.of(axis, "standard")
        assert base == f"{float(seed_mean(runs, 1, [best], [0, 1, 2])[0]):.3f}", label
        found = results[title, "4"]
        assert (standard, compiled) == (found["standard"], found["compile"]), label


def test_the_reference_begins_with_a_table_of_all_that_can_be_imported() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8").split("\n::: ")[0]
    names = [name for name in flerm_fx.__all__ if not name.startswith("__")]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_messages_that_are_gone_into_are_messages_of_the_library() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [" ".join(quote.split()) for quote in re.findall(r'"([^"`]{12,})"', page)]
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "flerm_fx").rglob("*.py"))
    messages = re.sub(r'"\s+f?"', "", source)  # literals of several lines are one
    parts = [part.strip() for quote in quoted for part in quote.split("…")]
    assert len(parts) > 15
    assert [part for part in parts if part not in messages] == []


def test_the_page_of_commands_is_complete() -> None:
    typer = pytest.importorskip("typer")
    from flerm_fx.commands.cli import build_app

    def options(command: Any, name: str = "") -> dict[str, set[str]]:
        if hasattr(command, "commands"):
            below = {f"{name} {key}".strip(): c for key, c in command.commands.items()}
            return {key: value for n, c in below.items() for key, value in options(c, n).items()}
        return {name: {o for p in command.params for o in p.opts[:1] if o.startswith("--")}}

    expected = options(typer.main.get_command(build_app()))
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert all(f"| `flerm-fx {name}" in page for name in expected)
    _, *listed = rows(page.split("## Options")[1])
    for name, each in listed:
        found = set(re.findall(r"--[a-z-]+", each))
        assert found == expected.pop(name.strip("`")) - {"--help"}, name
    assert not expected


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("notebooks/*.ipynb")))
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(DOCS / "notebooks" / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep it without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()


@pytest.mark.slow
def test_the_site_can_be_searched_from_disk_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    if path is None:
        pytest.skip("needs Chromium on the path")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "how-to" / "lora.html").as_uri())
        page.fill("input[name=query]", "first guess")
        results = page.locator(".md-search-result__link")
        results.first.wait_for(timeout=60_000)
        found = [link.get_attribute("href") or "" for link in results.all()]
        browser.close()
    assert any("glossary.html" in link for link in found)
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def parameters_of(call: Any) -> list[str]:
    return [name for name in inspect.signature(call).parameters if name not in ("self", "cls")]


@pytest.mark.parametrize(
    "name", [n for n in flerm_fx.__all__ if not n.endswith(("Error", "Warning"))]
)
def test_docstrings_have_every_parameter_and_an_example(name: str) -> None:
    interface = getattr(flerm_fx, name)
    text = inspect.getdoc(interface) or ""
    assert ">>>" in text
    calls = {name: interface} if inspect.isfunction(interface) else {}
    if inspect.isclass(interface):
        kinds = [k for k in interface.__mro__ if k.__module__.startswith("flerm_fx.")]
        of_others = {m for k in interface.__mro__ if k not in kinds for m in vars(k)}
        names = {m for k in kinds for m in vars(k) if m[0] != "_" and m not in of_others}
        own = {member: getattr(interface, member) for member in names}
        calls = {n: m for n, m in own.items() if inspect.isfunction(m) or inspect.ismethod(m)}
    for member, call in calls.items():
        text = inspect.getdoc(call) or ""
        missing = [p for p in parameters_of(call) if f"\n    {p}: " not in text]
        assert not missing, f"{member} says nothing of {missing}"
