"""Cost of a training step by each way to train with multipliers, as a ratio to the plain model's.

    python -m benchmarks.emitters

One thread. In each round every way takes one step, from another first one each time; a ratio is the
median over rounds of that to the eager step of the same round. What is timed is the CPU time of
the process, which other processes disturb less than the clock. Multipliers are drawn, log-normal,
so that each parameter has one of its own: the most scale nodes and groups that there can be.

``run()`` returns all that is printed, as a dict.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import flerm_fx
from flerm_fx.assign.assignment import Assignment
from flerm_fx.emit.merging import merged
from flerm_fx.emit.scaled import ScaledModel
from flerm_fx.probe.estimate import NOT_MEASURED
from flerm_fx.recipe.multiplier import group_settings
from flerm_fx.recipe.update_rule import UpdateRule
from models.transformer import Transformer

LEARNING_RATE = 1e-6
"""Small, so that no way leaves the finite numbers while it is timed."""

SPREAD = math.log(4)
"""Standard deviation of the logarithm of a multiplier."""

ERROR = 0.1
"""Relative standard error of a multiplier, as ``compile`` measures it unless it is told other."""

RECORDED_STEPS = 201


@dataclass(frozen=True)
class Case:
    """A model, its tokens, and how often each way takes a step."""

    model: Callable[[], nn.Module]
    tokens: Tensor
    rounds: int


@dataclass(frozen=True)
class Way:
    """A way to train: what is called, and what steps."""

    call: Callable[[Tensor], Tensor]
    optimizer: Optimizer


class Logits(nn.Module):
    """A language model of transformers, from token ids to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V)."""
        logits: Tensor = self.model(tokens).logits
        return logits


def gpt2(blocks: int = 12, vocabulary: int = 50257) -> nn.Module:
    """GPT-2 at random weights, without dropout: the small one, 124 million parameters, or a cut."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=blocks,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return Logits(GPT2LMHeadModel(config))


def cases(quick: bool) -> dict[str, Case]:
    """Models and tokens, seeded."""
    torch.manual_seed(0)
    if quick:
        return {
            "transformer, 1 block of 16, 2 x 8 tokens": Case(
                lambda: Transformer(width=16, depth=1, context=8), torch.randint(256, (2, 8)), 2
            )
        }
    return {
        "transformer, 4 blocks of 256, 16 x 64 tokens": Case(
            lambda: Transformer(width=256, depth=4, context=64), torch.randint(256, (16, 64)), 40
        ),
        "GPT-2, 2 blocks, 8,192 words, 8 x 128 tokens": Case(
            lambda: gpt2(2, 8192), torch.randint(8192, (8, 128)), 16
        ),
        "GPT-2 small, 8 x 128 tokens": Case(gpt2, torch.randint(50257, (8, 128)), 5),
    }


def drawn_multipliers(model: nn.Module) -> dict[str, float]:
    """A log-normal multiplier for each parameter, seeded."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: math.exp(SPREAD * float(torch.randn((), generator=generator)))
        for name, _ in model.named_parameters()
    }


def ways(model: nn.Module, tokens: Tensor) -> dict[str, Way]:
    """Each way; those without scales on one set of weights, those with scales on another."""
    multipliers = drawn_multipliers(model)
    emitted = ScaledModel(copy.deepcopy(model), multipliers)
    nodes = emitted.graph_for((tokens,), {})
    exported = ScaledModel(model, dict.fromkeys(multipliers, 1.0))
    assert nodes is not None
    plain = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    scaled = torch.optim.Adam(emitted.parameters(), lr=LEARNING_RATE, fused=True)
    grouped = torch.optim.Adam(_groups(model, multipliers), lr=LEARNING_RATE, fused=True)
    grouped.state = plain.state  # of the same parameters; it saves a gigabyte
    return {
        "eager": Way(model, plain),
        "graph, no scale": Way(exported, plain),
        "graph, scale nodes": Way(nodes, scaled),
        "graph, lowered": Way(emitted, scaled),
        "param_groups": Way(model, grouped),
    }


def _groups(model: nn.Module, multipliers: dict[str, float]) -> list[dict[str, Any]]:
    """As :meth:`flerm_fx.CompiledModel.param_groups` makes them."""
    rule = UpdateRule.from_name("Adam", {})
    return [
        {"params": [parameter], **group_settings(rule, LEARNING_RATE, multipliers[name])}
        for name, parameter in model.named_parameters()
    ]


def step_seconds(way: Way, tokens: Tensor) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and of the optimizer's step after it."""
    way.optimizer.zero_grad()
    began = time.process_time()
    logits = way.call(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.autograd.backward(loss)
    passed = time.process_time()
    way.optimizer.step()
    return passed - began, time.process_time() - passed


def step_ratios(case: Case) -> dict[str, dict[str, float]]:
    """Each way's seconds, and its ratios to the eager ones: passes alone, and the whole step."""
    torch.manual_seed(0)
    each = ways(case.model(), case.tokens)
    names = list(each)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(-1, case.rounds):
        for index in range(len(names)):
            name = names[(turn + index) % len(names)]
            taken = step_seconds(each[name], case.tokens)
            if turn >= 0:
                seconds[name].append(taken)
    return {name: _summary(seconds[name], seconds["eager"]) for name in names}


def _summary(
    taken: list[tuple[float, float]], eager: list[tuple[float, float]]
) -> dict[str, float]:
    pairs = list(zip(taken, eager, strict=True))
    return {
        "passes, s": statistics.median(a for a, _ in taken),
        "optimizer, s": statistics.median(b for _, b in taken),
        "passes": statistics.median(a / c for (a, _), (c, _) in pairs),
        "step": statistics.median((a + b) / (c + d) for (a, b), (c, d) in pairs),
    }


def optimizer_ratios(quick: bool) -> dict[str, dict[str, float]]:
    """An optimizer's step with a group for each parameter of a transformer, and with groups that
    are merged within errors of :data:`ERROR`, over one group.
    """
    wide, tiny, repetitions = ((16, 1), (16, 1), 1) if quick else ((512, 6), (16, 6), 15)
    return {f"{d} blocks of {w}": _over_one(w, d, repetitions) for w, d in (wide, tiny)}


def _over_one(width: int, depth: int, repetitions: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = Transformer(width=width, depth=depth)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    multipliers = drawn_multipliers(model)
    rows = [
        Assignment(name, "", "", (), (), m, NOT_MEASURED, m, "matched", error=ERROR)
        for name, m in multipliers.items()
    ]
    fewer = _merged_groups(model, merged(rows))
    found: dict[str, float] = {"groups": len(multipliers), "merged groups": len(fewer)}
    for kind in ("fused", "foreach"):
        chosen: dict[str, Any] = {kind: True}
        one = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **chosen)
        many = torch.optim.Adam(_groups(model, multipliers), lr=LEARNING_RATE, **chosen)
        few = torch.optim.Adam(fewer, lr=LEARNING_RATE, **chosen)
        many.state = few.state = one.state
        taken: list[list[float]] = []
        for _ in range(repetitions + 1):
            seconds = []
            for optimizer in (one, many, few):
                began = time.process_time()
                optimizer.step()
                seconds.append(time.process_time() - began)
            taken.append(seconds)
        for what, index in (("", 1), (", merged", 2)):
            found[kind + what] = statistics.median(s[index] / s[0] for s in taken[1:])
    return found


def _merged_groups(model: nn.Module, multipliers: dict[str, float]) -> list[dict[str, Any]]:
    groups: dict[float, dict[str, Any]] = {}
    for group, m in zip(_groups(model, multipliers), multipliers.values(), strict=True):
        groups.setdefault(m, {**group, "params": []})["params"] += group["params"]
    return list(groups.values())


def recording(quick: bool) -> dict[str, float]:
    """What recording adds to a run: the start at once, and the trajectory every 100 steps."""
    starts, trajectories = [], []
    width, repetitions = (16, 1) if quick else (128, 3)
    for _ in range(repetitions):
        plain, _ = _run(width, recorded=False)
        recorded, start = _run(width, recorded=True)
        starts.append(start / plain)
        trajectories.append(recorded / plain)
    return {
        "steps": RECORDED_STEPS,
        "start, over the run": statistics.median(starts),
        "run with hooks, over the run": statistics.median(trajectories),
    }


def _run(width: int, recorded: bool) -> tuple[float, float]:
    """Seconds of the steps of a run, and of the start that is measured before it."""
    torch.manual_seed(0)
    model = Transformer(width=width, depth=2, context=64)
    tokens = torch.randint(256, (20, 65))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    began = time.process_time()
    if recorded:
        recorder = flerm_fx.record(model, optimizer, inputs, targets, every=100, settle=0)
    started = time.process_time()
    for _ in range(RECORDED_STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        torch.autograd.backward(loss)
        optimizer.step()
    ended = time.process_time()
    if recorded:
        recorder.close()
    return ended - started, started - began


def run(quick: bool = False) -> dict[str, Any]:
    """All measurements, with the settings that they were taken under; ``quick`` to see it run."""
    torch.set_num_threads(1)
    return {
        "threads": 1,
        "torch": torch.__version__,
        "steps": {name: step_ratios(case) for name, case in cases(quick).items()},
        "a group for each parameter, over one": optimizer_ratios(quick),
        "record(every=100)": recording(quick),
    }


def main() -> None:
    """Print the tables."""
    found = run()
    columns = ["passes, s", "optimizer, s", "passes", "step"]
    for case, rows in found["steps"].items():
        print(case.ljust(48), *(column.rjust(12) for column in columns))
        for name, row in rows.items():
            print(f"  {name}".ljust(48), *(f"{row[column]:12.3f}" for column in columns))
    each = found["a group for each parameter, over one"]
    for title, values in (*each.items(), ("record(every=100)", found["record(every=100)"])):
        print(f"{title}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items()))


if __name__ == "__main__":
    main()
