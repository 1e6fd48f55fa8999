"""Where results are kept: one line of JSON for each run, so that nothing is lost or run twice."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.axes import Axis


@dataclass(frozen=True)
class Run:
    """What is trained: a model of an axis by a method, at a rate, from a seed."""

    axis: str
    method: str
    scale: float
    seed: int
    rate: float


@dataclass(frozen=True)
class Result:
    """A run and what it came to; losses in nats, infinite if it diverged."""

    run: Run
    loss: float
    train_loss: float
    seconds: float


class Store:
    """The results in a folder, read at the start and appended to as runs end.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / "runs.jsonl"
        self._results = {result.run: result for result in _read(self._path)}

    def __contains__(self, run: Run) -> bool:
        return run in self._results

    def add(self, result: Result) -> None:
        """Keep a result, on the disk before anything else happens."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_to_line(result) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._results[result.run] = result

    def results(self, axis: str, method: str) -> list[Result]:
        """All results of a method on an axis."""
        return [r for r in self._results.values() if (r.run.axis, r.run.method) == (axis, method)]

    def of(self, axis: Axis, method: str) -> list[Result]:
        """The same, with those of the base, which another axis may have."""
        own = self.results(axis.key, method)
        of_base = self.results(axis.base, method) if axis.base else []
        return own + [result for result in of_base if result.run.scale == 1]

    def methods(self, axis: str) -> list[str]:
        """The methods that an axis has results of, in the order in which they came."""
        return list(
            dict.fromkeys(r.run.method for r in self._results.values() if r.run.axis == axis)
        )

    def profile(self, axis: str, name: str) -> Path:
        """Where a base profile is kept."""
        return self.folder / "profiles" / f"{axis}-{name}.safetensors"

    def law(self, axis: str, method: str, below: float) -> Path:
        """Where the law of models below a scale is kept."""
        return self.folder / "laws" / f"{axis}-{method}-below-{below:g}.json"

    def multipliers(self, axis: str, method: str, scale: float, seed: int) -> Path:
        """Where a model's multipliers are kept."""
        return self.folder / "multipliers" / f"{axis}-{method}-{scale:g}-{seed}.json"


def _to_line(result: Result) -> str:
    numbers = {"loss": result.loss, "train_loss": result.train_loss}
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return json.dumps({**asdict(result.run), **finite, "seconds": round(result.seconds, 3)})


def _read(path: Path) -> Iterator[Result]:
    """Its results; a last line that a kill cut short is taken off."""
    if not path.exists():
        return
    content = path.read_text(encoding="utf-8")
    whole = content[: content.rfind("\n") + 1]
    if whole != content:
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        fields = json.loads(line)
        loss, train_loss, seconds = (fields.pop(k) for k in ("loss", "train_loss", "seconds"))
        yield Result(
            Run(**fields),
            math.inf if loss is None else loss,
            math.inf if train_loss is None else train_loss,
            seconds,
        )
