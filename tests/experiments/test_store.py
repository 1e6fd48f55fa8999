"""Results on the disk: whole lines, each run once, whatever interrupts."""

import math
from pathlib import Path

from experiments.store import Result, Run, Store


def result(rate: float, loss: float = 1.5) -> Result:
    return Result(Run("axis", "method", 2, 0, rate), loss, loss, 0.25)


def test_results_are_there_when_a_store_is_opened_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    found = [result(0.1), result(1 / 3), result(0.5, math.inf)]
    for each in found:
        store.add(each)
    again = Store(tmp_path / "new")
    assert again.results("axis", "method") == found
    assert again.methods("axis") == ["method"]
    assert found[1].run in again
    assert result(0.7).run not in again


def test_a_line_that_a_kill_cut_short_is_run_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(result(0.1))
    path = tmp_path / "runs.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:25])
    again = Store(tmp_path)
    assert again.results("axis", "method") == [result(0.1)]
    again.add(result(0.2))
    assert Store(tmp_path).results("axis", "method") == [result(0.1), result(0.2)]
