"""Mutated profile files give a valid profile or a ProfileError, and nothing else."""

import json
import random
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flerm_fx

MEMORY = 2**29
"""Bytes of address space that reading a file of a few kilobytes may take."""

NUMBERS = [0, -1, 1, 2, 3, 255, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan")]
DEEP = "a deep list"
STRINGS = ["", "x", "weight", "0.weight", "Adam", "__class__", "\x00", "../../etc/passwd", "é" * 9]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A profile with a late start, a trajectory, two optimizers and a pool of dicts."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 4)
            self.gate = nn.Parameter(torch.zeros(4))
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.body(x)
            return self.head(h + self.gate * h.tanh())

    torch.manual_seed(0)
    model = Net()
    optimizers = [
        torch.optim.Muon([model.body.weight, model.head.weight], lr=0.1),
        torch.optim.AdamW([model.body.bias, model.head.bias, model.gate], lr=0.01),
    ]
    x, y = torch.randn(4, 3), torch.randint(2, (4,))
    with flerm_fx.record(model, optimizers, [{"x": x}] * 2, [y] * 2, every=1) as recorder:
        for _ in range(2):
            nn.functional.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
    path = tmp_path_factory.mktemp("fuzz") / "base.safetensors"
    recorder.profile.save(path)
    return path.read_bytes()


def mutants(content: bytes, seed: int) -> Iterator[bytes]:
    """Damaged bytes, and well-formed files with an odd header, in turn."""
    rng = random.Random(seed)
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    while True:
        yield _damaged(rng, content)
        changed = json.loads(json.dumps(outer))
        header = json.loads(changed["__metadata__"]["flerm_fx"])
        for _ in range(rng.randint(1, 3)):
            header = _edited(rng, header)
        changed["__metadata__"]["flerm_fx"] = _text(header)
        if rng.random() < 0.2:
            changed = _edited(rng, changed)
        text = _text(changed).encode()
        data = bytearray(body)
        if data and rng.random() < 0.3:
            at = rng.randrange(0, len(data) - 7)
            data[at : at + 8] = struct.pack("<d", float(rng.choice(NUMBERS)))
        yield struct.pack("<Q", len(text)) + text + bytes(data)


def _damaged(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    kind = rng.randrange(5)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        start = rng.randrange(len(data))
        del data[start : start + rng.randint(1, 64)]
    elif kind == 3:
        start, source = rng.randrange(len(data)), rng.randrange(len(data))
        data[start:start] = data[source : source + rng.randint(1, 64)]
    else:
        data[:8] = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63, len(data)]))
    return bytes(data)


def _edited(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with something in it put out, doubled, exchanged, or of another kind."""
    if depth > 0 and (not isinstance(value, dict | list) or not value or rng.random() < 0.2):
        return _any(rng, value)
    if not isinstance(value, dict | list) or not value:
        return _any(rng, value)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    action = rng.random()
    if action < 0.15:
        del value[key]
    elif action < 0.25:
        other = rng.choice(keys)
        value[key], value[other] = value[other], value[key]
    elif action < 0.3 and isinstance(value, list):
        value.append(value[key])
    elif action < 0.35 and isinstance(value, dict):
        value[rng.choice(STRINGS)] = value[key]
    else:
        value[key] = _edited(rng, value[key], depth + 1)
    return value


def _any(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.01:
        return DEEP
    return rng.choice(
        [None, True, False, rng.choice(NUMBERS), rng.choice(STRINGS), [], {}, [value]]
    )


def _text(value: Any) -> str:
    """As JSON, in which a list may be deeper than Python writes one."""
    return json.dumps(value).replace(json.dumps(DEEP), 3000 * "[" + 3000 * "]")


def survive(content: bytes, path: Path, count: int, seed: int) -> int:
    """Read so many mutants, and save what is a profile; returns how many were."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    valid = 0
    try:
        source = mutants(content, seed)
        for _ in range(count):
            mutant = next(source)
            path.write_bytes(mutant)
            try:
                profile = flerm_fx.BaseProfile.load(path)
            except flerm_fx.ProfileError:
                continue
            except BaseException as error:
                path.with_suffix(".crash").write_bytes(mutant)
                raise AssertionError(f"{type(error).__name__} on a mutant") from error
            valid += 1
            profile.save(path)
            again = flerm_fx.BaseProfile.load(path)
            assert again.start == profile.start
            assert again.optimizers.held == profile.optimizers.held
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return valid


LONG = [pytest.param(10_000, seed, marks=pytest.mark.slow) for seed in range(1, 11)]


@pytest.mark.parametrize("count,seed", [(1_000, 0), *LONG])
def test_mutated_files(content: bytes, tmp_path: Path, count: int, seed: int) -> None:
    valid = survive(content, tmp_path / "mutant.safetensors", count, seed)
    assert 0 < valid < count
