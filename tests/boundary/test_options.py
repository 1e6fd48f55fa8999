"""Options of public calls that make no sense: refused by name when given, with nothing changed."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flerm_fx
from flerm_fx.boundary.options import checked, integer, number, steps
from flerm_fx.integrations.tensorboard import to_tensorboard
from tests.cases import features

X, Y = features(16, 6), torch.arange(16) % 3
NAN, INFINITE = math.nan, math.inf


def mlp(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def adam(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, number_of_steps: int) -> None:
    for _ in range(number_of_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def profile() -> flerm_fx.BaseProfile:
    model = mlp()
    optimizer = adam(model)
    with flerm_fx.record(model, optimizer, X, Y, every=1) as recorder:
        train(model, optimizer, 2)
    return recorder.profile


@pytest.fixture(scope="module")
def compiled(profile: flerm_fx.BaseProfile) -> tuple[nn.Module, flerm_fx.CompiledModel]:
    model = mlp(16)
    return model, flerm_fx.compile(model, profile)


def refused(
    call: Callable[..., Any],
    model: nn.Module,
    arguments: tuple[Any, ...],
    option: str,
    value: Any,
    message: str,
) -> None:
    """A call with one option raises an InputError that names it, and leaves no trace."""
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    optimizers = [each for each in arguments if isinstance(each, torch.optim.Optimizer)]
    with pytest.raises(flerm_fx.InputError) as raised:
        call(*arguments, **{option: value})
    assert message in str(raised.value)
    assert option in str(raised.value)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    for optimizer in optimizers:
        assert not optimizer.state and not optimizer._optimizer_step_pre_hooks


COMMON = [
    *(("rtol", v) for v in (0, 1, 5.0, -0.1, NAN, INFINITE, "x", True, None, 1j, torch.ones(2))),
    *(("method", v) for v in ("guess", None, 3, ["exact"])),
    *(("output_fn", v) for v in (3, "logits")),
]
SCHEDULED = [
    *(("every", v) for v in (0, -1, 1.0, 2.5, "3", True, None, NAN, np.float64(3.0))),
    *(("at", v) for v in (3, "abc", "", [0, 0.5], [-1], [True], ["0"], itertools.count())),
    *(("log", v) for v in (3, "log", {})),
]
RECORD = [
    *COMMON,
    *SCHEDULED,
    *((n, v) for n in ("settle", "resolve_after") for v in (-1, 1.0, True, "1", NAN)),
    ("resolve_after", None),
    *(("generator", v) for v in (0, np.random.default_rng(0))),
    *(("lr", v) for v in (0, -1.0, NAN, INFINITE, "0.1", True)),
    *(("loss_fn", v) for v in (3, ["mse_loss"])),
]
MATCHING = [
    *(("mapping", v) for v in (3, "weight", ["weight"])),
    *(("on_unmatched", v) for v in ("skip", None, 1)),
]
MATCH = [
    *(each for each in COMMON if each[0] != "rtol" or each[1] is not None),
    *SCHEDULED,
    *MATCHING,
    *(("stretch", v) for v in (0, -1, NAN, INFINITE, "2", None, True)),
    *(("ema", v) for v in (1, -0.1, NAN, "0.9", False)),
]
COMPILE = [
    *COMMON,
    *MATCHING,
    *(("emit", v) for v in ("magic", None, 3, ["graph"])),
    *(("donate", v) for v in ("no", 1, None)),
    *(("loss_fn", v) for v in (3, ["mse_loss"])),
]
MEASURE = [
    *COMMON,
    *(("samples", v) for v in (0, -1, 1.5, True, "3")),
    *(("generator", v) for v in (0, "seed")),
]


@pytest.mark.parametrize("option,value", RECORD)
def test_record(option: str, value: Any) -> None:
    model = mlp()
    refused(flerm_fx.record, model, (model, adam(model), X, Y), option, value, "")


@pytest.mark.parametrize("option,value", MATCH)
def test_match(option: str, value: Any, profile: flerm_fx.BaseProfile) -> None:
    model = mlp(16)
    refused(flerm_fx.match, model, (model, adam(model), profile), option, value, "")


@pytest.mark.parametrize("option,value", COMPILE)
def test_compile(option: str, value: Any, profile: flerm_fx.BaseProfile) -> None:
    model = mlp(16)
    refused(flerm_fx.compile, model, (model, profile), option, value, "")


@pytest.mark.parametrize("option,value", MEASURE)
def test_measure(option: str, value: Any) -> None:
    model = mlp()
    updates = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    refused(flerm_fx.measure, model, (model, updates, X), option, value, "")


def test_samples_go_with_methods_that_draw() -> None:
    model = mlp()
    updates = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for method in ("auto", "exact"):
        with pytest.raises(flerm_fx.InputError, match="samples is for the methods that draw"):
            flerm_fx.measure(model, updates, X, method=method, samples=3)  # type: ignore[arg-type]
    assert flerm_fx.measure(model, updates, X, method="iid", samples=3)["0.weight"].samples == 3


@pytest.mark.parametrize(
    "option,value",
    [
        *(("lr", v) for v in (0, -1.0, NAN, INFINITE, "0.1", True, 1e-30)),
        *(("weight_decay", v) for v in (NAN, INFINITE, -1.0, "0.1", True)),
        *(("optimizer", v) for v in (1, -1, True, "0", 0.0)),
        *(("merge", v) for v in (1, None, "yes")),
    ],
)
def test_param_groups(
    option: str, value: Any, compiled: tuple[nn.Module, flerm_fx.CompiledModel]
) -> None:
    model, found = compiled
    with pytest.raises(flerm_fx.InputError, match=option):
        found.param_groups(**{"lr": 1e-2, option: value})
    assert len(model.state_dict()) == 4


@pytest.mark.parametrize(
    "option,value",
    [
        *(("format", v) for v in ("text", None, 3, ["table"])),
        *(("level", v) for v in ("module", None, 3)),
        *(("focus", v) for v in (3, ["0"])),
    ],
)
def test_dump(option: str, value: Any, compiled: tuple[nn.Module, flerm_fx.CompiledModel]) -> None:
    with pytest.raises(flerm_fx.InputError, match=option):
        compiled[1].dump(**{"format": "code", option: value})


@pytest.mark.parametrize(
    "option,value",
    [
        *(("max_norm", v) for v in (0, -1, NAN, "1", None, True)),
        *(("norm_type", v) for v in (0, -2.0, NAN, "inf", None)),
        *(("model", v) for v in (None, [nn.Parameter(torch.ones(2))])),
    ],
)
def test_clipping(option: str, value: Any) -> None:
    with pytest.raises(flerm_fx.InputError, match=f"^{option} must be"):
        flerm_fx.clip_grad_norm_(**{"model": mlp(), "max_norm": 1.0, option: value})


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda p: flerm_fx.instrument(None, X), "model must be an nn.Module, got NoneType"),  # type: ignore[arg-type]
        (lambda p: flerm_fx.instrument(mlp(), X, 3), "output_fn must be a function from what"),  # type: ignore[arg-type]
        (lambda p: flerm_fx.measure(None, {}, X), "model must be an nn.Module, got NoneType"),  # type: ignore[arg-type]
        (lambda p: flerm_fx.match(None, None, p), "model must be an nn.Module, got NoneType"),  # type: ignore[arg-type]
        (
            lambda p: flerm_fx.match(mlp(), adam(mlp()), "p.safetensors"),  # type: ignore[arg-type]
            "base_profile must be a BaseProfile or a law, got str; read a file with flerm_fx.BaseP",
        ),
        (lambda p: to_tensorboard(3), "writer must have an add_scalar, got 3"),  # type: ignore[arg-type]
    ],
)
def test_what_is_none_of_it_is_named(
    call: Callable[[Any], Any], message: str, profile: flerm_fx.BaseProfile
) -> None:
    with pytest.raises(flerm_fx.InputError, match=message):
        call(profile)


@pytest.mark.parametrize("optimizer", ["Adam", 3, torch.optim.SGD])
def test_another_optimizerthan_the_bases_is_refused(
    optimizer: Any, profile: flerm_fx.BaseProfile
) -> None:
    with pytest.raises(flerm_fx.OptimizerError, match="optimizer( must be a torch|= is torch)"):
        flerm_fx.compile(mlp(16), profile, optimizer=optimizer)


def test_matching_takes_the_rule_of_the_base(profile: flerm_fx.BaseProfile) -> None:
    model = mlp(16)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.raises(
        flerm_fx.OptimizerError, match="is trained by torch.optim.SGD, and its counterpart in"
    ):
        flerm_fx.match(model, sgd, profile)
    assert not sgd._optimizer_step_pre_hooks
    # AdamW differs from Adam in its decay alone, which is no part of an update.
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    flerm_fx.match(model, adamw, profile).close()


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)):
        found = checked("every", value)
        assert (type(found), found) == (int, 3)
        assert type(number("lr", value, above=0)) is float
    for value in (0.25, np.float32(0.25), np.float64(0.25), torch.tensor(0.25), Fraction(1, 4)):
        found = checked("rtol", value)
        assert (type(found), found) == (float, 0.25)
    assert steps("at", (np.int64(1), torch.tensor(4))) == {1, 4}
    assert steps("at", range(3)) == {0, 1, 2}
    profiles = []
    for every, rtol in ((2, 0.05), (np.int64(2), np.float64(0.05))):
        model = mlp()
        profiles.append(flerm_fx.record(model, adam(model), X, Y, every=every, rtol=rtol).profile)
    assert profiles[0].start == profiles[1].start
    assert type(profiles[1].rtol) is float


def test_a_message_has_the_option_what_was_expected_and_what_came() -> None:
    for call, message in (
        (lambda: integer("every", 2.5, 1), "every must be a whole number of at least 1, got 2.5"),
        (
            lambda: number("rtol", "a\nb", above=0, below=1),
            r"rtol must be a finite number above 0 and below 1, got 'a\nb'",
        ),
        (
            lambda: checked("at", 3),
            "at must hold whole numbers of steps from 0 on, as in at=[0, 1, 2, 4], got 3",
        ),
        (lambda: checked("at", itertools.count()), "from 0 on, got more than 1,000,000"),
        (lambda: number("lr", 10**400, above=0), "lr must be a finite number above 0, got 1000"),
        (lambda: number("lr", torch.ones(2), above=0), "above 0, got a Tensor"),
    ):
        with pytest.raises(flerm_fx.InputError) as raised:
            call()  # type: ignore[no-untyped-call]
        assert message in str(raised.value)


# Rates whose steps are lost in rounding.


@pytest.mark.parametrize("settle", [0, 2])
@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.SGD])
def test_a_rate_at_which_nothing_moves_is_refused(settle: int, rule: Any) -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    optimizer = rule(model.parameters(), lr=1e-30)
    with pytest.raises(flerm_fx.OptimizerError, match="at learning rate 1e-30 moves no weight.*h"):
        flerm_fx.record(model, optimizer, X, Y, settle=settle)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not optimizer._optimizer_step_pre_hooks


def test_the_bound_is_half_of_the_last_place() -> None:
    """Of weights of 1 in float32: 2^-25 below, where numbers are denser, and 2^-24 above."""
    for exponent, moves in ((-23, True), (-26, False)):
        model = nn.Linear(6, 3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        # Without eps, Adam's first step is of the size of the rate everywhere.
        optimizer = torch.optim.Adam(model.parameters(), lr=2.0**exponent, eps=0.0)
        weights = [p.detach().clone() for p in model.parameters()]
        if moves:
            flerm_fx.record(model, optimizer, X, Y).close()
        else:
            with pytest.raises(flerm_fx.OptimizerError, match="moves no weight"):
                flerm_fx.record(model, optimizer, X, Y)
        train(model, optimizer, 1)
        moved = any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        assert moved is moves


def test_vanishing_gradients_are_not_the_rates_fault() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    small = flerm_fx.record(
        model, optimizer, X, Y, loss_fn=lambda z, y: 1e-10 * nn.functional.cross_entropy(z, y)
    )
    assert all(estimate.value > 0 for estimate in small.profile.start.values())


# States.


def states(profile: flerm_fx.BaseProfile) -> dict[str, tuple[Any, dict[str, Any]]]:
    """A recorder and a matcher, with states of theirs after some steps."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    model = mlp()
    optimizer = adam(model)
    recorder = flerm_fx.record(model, optimizer, [X, X], [Y, Y], every=1, settle=2)
    train(model, optimizer, 2)
    found["recorder"] = recorder, recorder.state_dict()
    model = mlp(16)
    optimizer = adam(model)
    matcher = flerm_fx.match(model, optimizer, profile, every=1, ema=0.5)
    train(model, optimizer, 2)
    found["matcher"] = matcher, matcher.state_dict()
    return found


def changed(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a state with another value somewhere inside."""
    if not path:
        return value
    twin = dict(state) if isinstance(state, Mapping) else list(state)
    twin[path[0]] = changed(state[path[0]], path[1:], value)
    return twin


BAD = [
    *(("recorder", ("step",), v) for v in (-1, 1.5, None, True)),
    *(("recorder", ("learning_rates", 0), v) for v in (NAN, -1.0, "x", None)),
    ("recorder", ("learning_rates",), []),
    ("recorder", ("learning_rates",), 3),
    *(("recorder", ("start", "0.weight", 0), v) for v in (NAN, -1.0, INFINITE, "x")),
    ("recorder", ("start", "0.weight"), [1.0]),
    ("recorder", ("start",), {}),
    ("recorder", ("settling",), {}),
    ("recorder", ("settling", 1, 1), NAN),
    ("recorder", ("late",), {"0.weight": (1.0, 0.0, "exact", 0, "")}),
    ("recorder", ("steps",), [1, 0]),
    ("recorder", ("steps",), [0]),
    ("recorder", ("rates", 1), 0.0),
    ("recorder", ("fslrs", 0, "0.weight", 1), NAN),
    ("recorder", ("fslrs",), []),
    ("recorder", ("waiting",), "no"),
    *(("matcher", ("multipliers", "0.weight"), v) for v in (NAN, 0.0, -1.0, INFINITE, "1", None)),
    ("matcher", ("multipliers",), {}),
    ("matcher", ("multipliers",), None),
    ("matcher", ("step",), -1),
    ("matcher", ("averages", "own", "0.weight"), (NAN, 1.0)),
    ("matcher", ("averages", "own", "0.weight"), (-1.0, 1.0)),
    ("matcher", ("averages", "own", "0.weight"), (1.0, 0.0)),
    ("matcher", ("averages", "own"), {"other": (1.0, 1.0)}),
    ("matcher", ("averages",), {}),
    ("matcher", ("history", 0, 1), NAN),
    ("matcher", ("history", 0, 3, "0.weight"), 0.0),
    ("matcher", ("history", 1, 0), 0),
    ("matcher", ("history", 0), [0]),
    ("matcher", ("history",), 3),
]


@pytest.fixture(scope="module")
def saved(profile: flerm_fx.BaseProfile) -> dict[str, tuple[Any, dict[str, Any]]]:
    return states(profile)


@pytest.mark.parametrize("whose,path,value", BAD)
def test_a_state_that_cannot_be_is_refused_whole(
    whose: str, path: tuple[Any, ...], value: Any, saved: dict[str, tuple[Any, dict[str, Any]]]
) -> None:
    holder, state = saved[whose]
    with pytest.raises(flerm_fx.InputError, match=whose):
        holder.load_state_dict({**changed(state, path, value)})
    assert holder.state_dict() == state
    holder.load_state_dict(state)
    assert holder.state_dict() == state


@pytest.mark.parametrize("whose", ["recorder", "matcher"])
def test_keys_of_a_state_are_all_there_and_no_others(
    whose: str, saved: dict[str, tuple[Any, dict[str, Any]]]
) -> None:
    holder, state = saved[whose]
    for given, message in (
        ({}, f"the {whose}'s state lacks .*'step'.*; expected what its state_dict"),
        ({k: v for k, v in state.items() if k != "waiting"}, "lacks 'waiting'"),
        ({**state, "momentum": 1}, "has an unknown 'momentum'"),
        (None, f"the {whose}'s state is None"),
    ):
        with pytest.raises(flerm_fx.InputError, match=message):
            holder.load_state_dict(given)
        assert holder.state_dict() == state


def test_pipelines_are_refused_by_name() -> None:
    """A pipe detaches what it hands on, so that its first stage would have FSLRs of 0."""
    from torch.distributed.pipelining import PipelineStage, SplitPoint, pipeline

    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        pipe = pipeline(model, (X,), split_spec={"2": SplitPoint.BEGINNING})
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        stage = PipelineStage(mlp(), 0, 1, torch.device("cpu"))
    finally:
        torch.distributed.destroy_process_group()
    optimizer = adam(model)
    for given in (pipe, nn.Sequential(pipe), stage):
        name = "PipelineStage" if given is stage else "Pipe"
        part: Any = given
        message = f"model must be .*got a {name} of torch.distributed.pipelining; measure or compil"
        for call in (
            lambda part=part: flerm_fx.measure(part, {}, X),
            lambda part=part: flerm_fx.record(part, optimizer, X, Y),
            lambda part=part: flerm_fx.Prober(part, X),
        ):
            with pytest.raises(flerm_fx.InputError, match=message):
                call()
