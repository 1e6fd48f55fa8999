"""The benchmarks run from end to end; what they measure is for a quiet machine."""

import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.__main__ import PARTS, main
from benchmarks.compiling import SETTLE
from benchmarks.hindsight import cost_of, draws_needed, equal_accuracy
from benchmarks.report import MARKER
from benchmarks.results import MethodResult, Spread


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_quick_run_measures_writes_and_draws(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    page.write_text(f"# Kept\n\n{MARKER}\n\nReplaced.\n", encoding="utf-8")
    cases = ["resmlp", "convnet-train", "gpt2"]
    options = ["--quick", "--threads", "1", "--out", str(tmp_path / "out"), "--markdown", str(page)]
    assert main([*PARTS, *cases, *options]) == 0
    found = results.read(tmp_path / "out" / "bench.json")
    assert [case.case for case in found.estimators] == cases
    for case in found.estimators:
        ratios = [m.steps.median for m in case.methods]
        ratios += [case.forward.median, case.loop.steps, case.loop.exact]
        ratios += [case.equal_accuracy.cost] if case.equal_accuracy else []
        ratios += [case.hindsight.steps, case.hindsight.best_steps, case.capture]
        ratios += [m.memory for m in case.methods if m.memory is not None]
        assert all(0 < ratio < math.inf for ratio in ratios)
        # Tiny batches leave little to tell: the estimators' own tests hold them to account.
        assert statistics.median(m.error for m in case.methods if m.method == "sampled") < 1
    assert {r.settle for r in found.compiling} == set(SETTLE["gpt2"])
    for result in [*found.compiling, *found.scaling.many]:  # type: ignore[union-attr]
        assert math.isclose(sum(result.stages.values()), result.steps, rel_tol=0.5)
        assert all(0 <= steps < math.inf for steps in result.stages.values())
        idle = {stage for stage, steps in result.stages.items() if not steps}
        assert idle <= {"size"}  # outputs that begin no larger than the base's are not followed
    assert all(row.rounding < 0.5 for row in found.precision)
    assert all(row.rounding < 1e-3 for row in found.precision if "float32" in row.arithmetic)
    assert found.scaling is not None
    assert all(math.isfinite(e.exponent) for e in found.scaling.exponents)
    assert found.matching
    assert all(row.copies > 1 for row in found.holding)
    assert all(0 <= row.error <= row.worst < 2 for row in found.multipliers)
    assert found.emitters["steps"]
    assert [row.tensors for row in found.again] and all(row.steps.median > 0 for row in found.again)
    for drawing in (tmp_path / "out" / "error-cost.png", page.parent / "error-cost.png"):
        assert drawing.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Kept") and "Replaced" not in text and "| exact |" in text


def test_parts_and_cases_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpt17"]) == 2
    assert "gpt17" in capsys.readouterr().err


def sampled(draws: int, steps: float, error: float) -> MethodResult:
    spread = Spread(steps, steps, steps, 1)
    name = f"sampled, m = {draws}"
    return MethodResult(name, "sampled", draws, spread, error, error, 1, None, None, "", "")


def kronecker(passes: int, error: float) -> MethodResult:
    spread = Spread(float(passes), passes, passes, 1)
    return MethodResult(
        "kronecker", "kronecker", passes, spread, error, error, 1, None, None, "", ""
    )


def test_equal_accuracy_takes_the_fewest_draws_that_are_as_good() -> None:
    methods = [sampled(1, 2.0, 0.2), sampled(2, 3.0, 0.14), sampled(4, 5.0, 0.1)]
    found = equal_accuracy([*methods, kronecker(10, 0.3), kronecker(40, 0.15)], 40)
    assert found is not None
    assert (found.samples, found.cost) == (2, 3 / 40)


def test_equal_accuracy_is_with_passes_that_were_run() -> None:
    assert equal_accuracy([sampled(1, 2.0, 0.2), kronecker(1, 0.3)], 40) is None


def test_draws_and_costs_between_measured_ones() -> None:
    methods = [sampled(1, 2.0, 0.2), sampled(2, 3.0, 0.14), sampled(4, 5.0, 0.1)]
    assert draws_needed(methods, 0.05) == 16
    costs = [cost_of(draws, methods) for draws in (1, 3, 16)]
    assert costs == pytest.approx([2.0, 4.0, 17.0])


@pytest.mark.slow
def test_each_rank_gives_a_sample_of_a_live_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.live"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [(row[1].strip(), int(row[3])) for row in rows] == [
        ("plain", 1),
        ("FSDP2", 2),
        ("TP", 1),
    ]


@pytest.mark.slow
def test_a_draw_of_a_sharded_model_gathers_one_tensor_at_a_time() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streaming"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    sharded, links = rows[2:4], rows[6:]
    assert [row[1].strip() for row in sharded] == ["FSDP2", "TP"]
    for row in sharded:
        largest, at_once, traffic = map(float, row[4:7])
        assert largest == 1.0
        assert at_once < 2.1  # with the one that is on its way
        assert traffic < 3.0
    assert [row[1].strip() for row in links] == ["0 ms", "0.5 ms", "1 ms", "2 ms", "4 ms"]
