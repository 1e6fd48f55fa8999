"""Recording: right numbers, and no trace on the run."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import flerm_fx
from flerm_fx.probe.turns import Turn
from flerm_fx.recipe.schedule import start_steps
from tests.cases import CASES, DataDependent, features, make, target_for
from tests.rounding import rounding, terms


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> None:
    for _ in range(steps):
        output = model(x)
        logits = output["logits"] if isinstance(output, dict) else output
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [*model.state_dict().values()]
    state += [p.grad for p in model.parameters() if p.grad is not None]
    for values in optimizer.state.values():
        state += [v for v in values.values() if isinstance(v, Tensor)]
    return [*state, torch.get_rng_state()]


@pytest.mark.parametrize("settle,every", [(0, 1), (2, 3)])
@pytest.mark.parametrize("name", ["convnet", "pre-norm", "oddity"])
def test_recording_leaves_the_run_bit_for_bit(name: str, settle: int, every: int) -> None:
    finals = []
    for recorded in (False, True):
        model, x = make(name)
        if name == "pre-norm":
            model.blocks[0].register_forward_hook(  # type: ignore[index, union-attr]
                lambda module, args, output: nn.functional.dropout(output, 0.1, True)
            )
        y = target_for(model, x)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(7)
        if recorded:
            with flerm_fx.record(model, optimizer, x, y, every=every, settle=settle) as recorder:
                train(model, optimizer, x, y, 4)
            assert recorder.profile.trajectory.steps == tuple(range(0, 4, every))
        else:
            train(model, optimizer, x, y, 4)
        finals.append(everything(model, optimizer))
    plain, with_recorder = finals
    assert len(plain) == len(with_recorder)
    assert all(torch.equal(a, b) for a, b in zip(plain, with_recorder, strict=True))


def test_certain_steps_are_recorded_as_every_step_is() -> None:
    profiles = []
    for options in ({"every": 1}, {"at": (0, 1, 4)}):
        model, x = make("mlp")
        y = target_for(model, x)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with flerm_fx.record(model, optimizer, x, y, **options) as recorder:
            train(model, optimizer, x, y, 6)
        profiles.append(recorder.profile.trajectory)
    every, certain = profiles
    assert certain.steps == (0, 1, 4)
    for name, estimates in certain.fslrs.items():
        assert estimates == tuple(every.fslrs[name][step] for step in certain.steps)


def test_the_start_is_the_fslr_of_the_first_unit_update() -> None:
    model, x = make("mlp")
    y = target_for(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    profile = flerm_fx.record(model, optimizer, x, y, method="exact").profile
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    train(twin, torch.optim.Adam(twin.parameters(), lr=3e-3), x, y, 1)
    for name, parameter in twin.named_parameters():
        update = (parameter.detach() - before[name]) / 3e-3
        tangent = torch.func.jvp(
            lambda p, name=name: functional_call(model, {name: p}, (x,)),
            (before[name],),
            (update,),
        )[1]
        expected = tangent.square().mean().sqrt().item()
        assert profile.start[name].value == pytest.approx(expected, rel=1e-4)


def test_start_and_first_recorded_step_agree_on_the_same_batch() -> None:
    model, x = make("resmlp")
    y = target_for(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with flerm_fx.record(model, optimizer, x, y, method="exact") as recorder:
        train(model, optimizer, x, y, 1)
    profile = recorder.profile
    for name, estimate in profile.trajectory.at(0).items():
        assert estimate.value == pytest.approx(profile.start[name].value, rel=1e-4)


@pytest.mark.parametrize("settle", [1, 3, 5])
def test_settling_measures_later_steps(settle: int) -> None:
    model, x = make("mlp")
    y = target_for(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    settled = flerm_fx.record(model, optimizer, x, y, settle=settle, method="exact").profile
    assert settled.warmup == int(0.4 * settle)
    found = {step: settled.settling.at(step) for step in settled.settling.steps}
    last = start_steps(settle, settled.warmup)
    assert tuple(found) == last
    # The same steps by hand, each measured on the examples whose turn it is.
    course = {}
    for index, step in enumerate(last):
        turn, twin = Turn(index, len(last)), copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
        rising = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (settled.warmup + 1), 1.0)
        )
        probed = turn.of(x), turn.of(y)
        with flerm_fx.record(twin, optimizer, *probed, at=[step], method="exact") as recorder:
            for _ in range(step + 1):
                train(twin, optimizer, x, y, 1)
                rising.step()
        course[step] = recorder.profile.trajectory.at(step)
    for step, estimates in found.items():
        for name, estimate in estimates.items():
            assert estimate.value == pytest.approx(course[step][name].value, rel=1e-3)
    assert last[-1] == settle
    for name, estimate in settled.start.items():
        mean = sum(course[step][name].value for step in last) / len(last)
        assert estimate.value == pytest.approx(mean, rel=1e-3)


def test_outputs_and_losses_are_those_on_the_batch_of_each_step() -> None:
    model, x = make("mlp")
    y, batches = target_for(model, x), [x, x + 0.5, 2 * x]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    profile = flerm_fx.record(model, optimizer, batches, [y] * 3, settle=3, warmup=0).profile
    found, losses = [], []
    for step in range(4):
        batch = batches[1 + step % 2]
        found.append(float(model(batch).detach().square().mean().sqrt()))
        losses.append(nn.functional.cross_entropy(model(batch), y).item())
        train(model, optimizer, batch, y, 1)
    assert profile.settling.steps == (1, 2, 3)
    assert profile.output_rms == pytest.approx(found, rel=rounding(2 * 3 * terms(model)))  # 3 steps
    assert [moment.loss for moment in profile.moments.values()] == pytest.approx(
        losses, rel=rounding(2 * 3 * terms(model))
    )


@pytest.mark.parametrize("batches,settle", [(1, 0), (3, 10)])
def test_by_default_the_pool_is_passed_five_times(batches: int, settle: int) -> None:
    model, x = make("mlp")
    y = target_for(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    profile = flerm_fx.record(model, optimizer, [x] * batches, [y] * batches).profile
    assert profile.settle == settle
    assert profile.warmup == int(0.4 * settle)
    assert profile.settling.steps == (start_steps(settle, profile.warmup) if settle else ())


def test_the_learning_rate_and_schedulers_do_not_move_unit_updates() -> None:
    starts = []
    for scale in (1.0, 0.01):
        model, x = make("mlp")
        y = target_for(model, x)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2 * scale)
        starts.append(flerm_fx.record(model, optimizer, x, y, method="exact").profile.start)
    for name, estimate in starts[0].items():
        assert estimate.value == pytest.approx(starts[1][name].value, rel=2e-3)
    model, x = make("mlp")
    y = target_for(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 2)
    with flerm_fx.record(model, optimizer, x, y, every=100) as recorder:
        train(model, optimizer, x, y, 1)
        for _ in range(2):
            scheduler.step()
            train(model, optimizer, x, y, 1)
    profile = recorder.profile
    assert profile.learning_rate == 1e-2
    assert profile.trajectory.steps == (1,)
    assert profile.trajectory.learning_rates == (5e-3,)


@pytest.mark.parametrize("settle", [0, 2])
def test_a_profile_survives_its_file(settle: int, tmp_path: Any) -> None:
    model, x = make("tied")
    y = target_for(model, x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    with flerm_fx.record(model, optimizer, [x, x + 0], [y, y], every=2, settle=settle) as recorder:
        train(model, optimizer, x, y, 3)
    recorder.profile.save(tmp_path / "base.safetensors")
    loaded = flerm_fx.BaseProfile.load(tmp_path / "base.safetensors")
    assert loaded.start == recorder.profile.start
    assert vars(loaded.settling) == vars(recorder.profile.settling)
    assert loaded.output_rms == recorder.profile.output_rms
    assert loaded.update_sizes == recorder.profile.update_sizes
    assert loaded.warmup == recorder.profile.warmup
    assert vars(loaded.trajectory) == vars(recorder.profile.trajectory)
    assert dict(loaded.optimizer.settings)["betas"] == (0.9, 0.95)
    assert len(loaded.pool) == 2


def test_a_model_that_returns_its_own_loss_needs_no_targets() -> None:
    class Output(dict[str, Tensor]):
        @property
        def loss(self) -> Tensor:
            return self["loss"]

        @property
        def logits(self) -> Tensor:
            return self["logits"]

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> Output:
            logits = self.linear(x)
            return Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

    torch.manual_seed(0)
    model, x, labels = WithLoss(), features(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        profile = flerm_fx.record(model, optimizer, {"x": x, "labels": labels}).profile
        compiled = flerm_fx.compile(model, profile)
    assert set(compiled.multipliers.values()) == {1.0}


def recording(
    change: Callable[[dict[str, Any]], None] = lambda arguments: None, **options: Any
) -> flerm_fx.Recorder:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    arguments: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "inputs": features(6, 4),
        "targets": torch.tensor([0, 1, 2, 0, 1, 2]),
    }
    change(arguments)
    return flerm_fx.record(**{**arguments, **options})


def freeze_out(arguments: dict[str, Any]) -> None:
    arguments["optimizer"] = torch.optim.Adam(arguments["model"][0].parameters(), lr=1e-3)


def break_weights(arguments: dict[str, Any]) -> None:
    with torch.no_grad():
        arguments["model"][2].weight[0, 0] = float("nan")


@pytest.mark.parametrize(
    "options,error,message",
    [
        ({"inputs": torch.zeros(1, 4)}, flerm_fx.InputError, "a batch of 1"),
        ({"targets": None}, flerm_fx.InputError, "no targets to take a loss of.*pass targets"),
        (
            {"targets": torch.zeros(5)},
            flerm_fx.InputError,
            r"targets of shape \(5,\) do not go with",
        ),
        ({"inputs": []}, flerm_fx.InputError, "list of inputs is empty"),
        ({"every": 0}, flerm_fx.InputError, "every must be a whole number of at least 1, got 0"),
        ({"at": [0, 0.5]}, flerm_fx.InputError, r"at must hold whole numbers .*, got \[0, 0.5\]"),
        ({"settle": -1}, flerm_fx.InputError, "settle must be a whole number of at least 0"),
        (
            {"resolve_after": -1},
            flerm_fx.InputError,
            "resolve_after must be a whole number of at least 0, got -1",
        ),
        ({"resolve_after": True}, flerm_fx.InputError, "resolve_after must be .*, got True"),
        ({"method": "guess"}, flerm_fx.InputError, "unknown method 'guess'"),
        ({"loss_fn": "no_such_loss"}, flerm_fx.OptimizerError, "no_such_loss"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        recording(**options)


def test_a_parameter_outside_the_optimizer_is_named() -> None:
    with pytest.raises(flerm_fx.OptimizerError, match=r"2 trainable.*'2\.weight', '2\.bias'"):
        recording(freeze_out)


def test_a_learning_rate_of_zero_is_refused() -> None:
    def stop(arguments: dict[str, Any]) -> None:
        arguments["optimizer"].param_groups[0]["lr"] = 0.0

    with pytest.raises(flerm_fx.OptimizerError, match="learning rate is 0; expected one above 0"):
        recording(stop)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(flerm_fx.EstimateError, match="the loss is nan on the first batch"):
        recording(break_weights)


def test_a_start_that_diverges_says_at_which_step_and_rate() -> None:
    def blow_up(arguments: dict[str, Any]) -> None:
        arguments["optimizer"] = torch.optim.SGD(arguments["model"].parameters(), lr=1e30)

    with pytest.raises(
        flerm_fx.DivergenceError, match=r"at step \d+ of 9 settling steps at learning rate 1e\+30"
    ):
        recording(blow_up, settle=9)


def test_a_step_on_gradients_that_are_not_finite_is_undone() -> None:
    recorder = recording()
    model, optimizer = recorder.model, recorder.optimizer
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    with pytest.raises(flerm_fx.EstimateError, match=r"step 0, which was undone\) of parameter '0"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_refusals_leave_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(flerm_fx.FlermError):
        flerm_fx.record(model, optimizer, features(6, 4), torch.zeros(6).long(), settle=5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state


@pytest.mark.parametrize("name", CASES)
def test_every_case_records(name: str) -> None:
    model, x = make(name)
    y = target_for(model, x) if name != "linear" else features(7, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    profile = flerm_fx.record(model, optimizer, x, y).profile
    assert any(estimate.value > 0 for estimate in profile.start.values())


def test_a_model_without_a_graph_is_recorded() -> None:
    torch.manual_seed(0)
    model, x = DataDependent(), features(6, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with pytest.warns(flerm_fx.CaptureWarning):
        profile = flerm_fx.record(model, optimizer, x, torch.tensor([0, 1, 2, 0, 1, 2])).profile
    assert not profile.graph.graph["complete"]


def test_several_optimizers_are_recorded_and_compiled() -> None:
    """Each parameter under the rule that trains it; the base compiled against itself has 1."""

    def net(width: int) -> nn.Module:
        torch.manual_seed(width)
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        return [
            torch.optim.Muon(matrices, lr=0.02),
            torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1], lr=1e-3),
        ]

    x, y = features(12, 4), torch.arange(12) % 3
    small = net(8)
    profile = flerm_fx.record(small, optimizers(small), x, y, method="exact").profile
    assert profile.optimizer.name == "Muon"
    assert [(rule.name, rate) for rule, rate in profile.optimizers.others] == [("AdamW", 1e-3)]
    assert profile.optimizers.held == {"0.weight": 0, "0.bias": 1, "2.weight": 0, "2.bias": 1}
    assert set(flerm_fx.compile(small, profile, method="exact").multipliers.values()) == {1.0}
    large = net(32)
    compiled = flerm_fx.compile(large, profile, method="exact")
    assert all(check.passed for check in compiled.check())
    for index, names in enumerate((["0.weight", "2.weight"], ["0.bias", "2.bias"])):
        groups = compiled.param_groups(0.1, optimizer=index)
        held = {id(p) for group in groups for p in group["params"]}
        assert held == {id(dict(large.named_parameters())[name]) for name in names}
    with pytest.raises(flerm_fx.InputError, match="there is no optimizer 2"):
        compiled.param_groups(0.1, optimizer=2)
    with pytest.raises(flerm_fx.InputError, match="trained by 2 optimizers .*, and optimizer= has"):
        flerm_fx.compile(large, profile, optimizer=torch.optim.Adam)


def test_a_parameter_in_two_optimizers_is_named() -> None:
    model = nn.Linear(4, 3)
    twice = [torch.optim.Adam(model.parameters(), lr=1e-3) for _ in range(2)]
    with pytest.raises(flerm_fx.OptimizerError, match="2 parameters are in several .*'weight'"):
        flerm_fx.record(model, twice, features(6, 4), torch.arange(6) % 3)


def test_decay_beside_the_gradient_is_no_part_of_an_update() -> None:
    x, y = features(6, 4), torch.arange(6) % 3
    found = []
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
        with flerm_fx.record(model, optimizer, x, y, method="exact") as recorder:
            train(model, optimizer, x, y, 1)
        found.append(recorder.profile.trajectory.at(0))
    for name, estimate in found[0].items():
        assert found[1][name].value == pytest.approx(estimate.value, rel=1e-3)
        assert estimate.value == pytest.approx(recorder.profile.start[name].value, rel=1e-3)


def test_a_recorder_resumes_and_refuses_another_models_state() -> None:
    x, y = features(6, 4), torch.arange(6) % 3

    def begun() -> tuple[nn.Module, torch.optim.Optimizer, flerm_fx.Recorder]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, flerm_fx.record(model, optimizer, x, y, every=2)

    model, optimizer, recorder = begun()
    train(model, optimizer, x, y, 3)
    state = copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "recorder": recorder.state_dict(),
        }
    )
    train(model, optimizer, x, y, 4)
    again, other, resumed = begun()
    again.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["recorder"])
    train(again, other, x, y, 4)
    assert resumed.step == recorder.step == 7
    assert resumed.profile.start == recorder.profile.start
    assert vars(resumed.profile.trajectory) == vars(recorder.profile.trajectory)
    assert torch.equal(again.weight, model.weight)  # type: ignore[arg-type]
    with pytest.raises(flerm_fx.InputError, match="state and the model differ in '0.bias'"):
        recording().load_state_dict(state["recorder"])


def test_a_recording_has_the_loss_of_the_probe_batch_before_each_step() -> None:
    model, x = make("mlp")
    y, other = target_for(model, x), 2 * features(*x.shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    expected = []
    with flerm_fx.record(model, optimizer, x, y, every=1) as recorder:
        for _ in range(3):
            with torch.no_grad():
                expected.append(nn.functional.cross_entropy(model(x), y).item())
            train(model, optimizer, other, y, 1)
    losses = recorder.profile.trajectory.losses
    assert losses == pytest.approx(expected, rel=rounding(terms(model)))
    assert len(set(expected)) == 3


def test_a_loss_that_fails_while_the_base_trains_is_an_error_and_no_gap() -> None:
    model, x = make("mlp")
    y = target_for(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    fails = False

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets, reduction="none" if fails else "mean")

    with flerm_fx.record(model, optimizer, x, y, loss_fn=loss, settle=0, every=1):
        before = {name: p.clone() for name, p in model.named_parameters()}
        fails = True
        with pytest.raises(flerm_fx.InputError, match="expected one number"):
            train(model, optimizer, x, y, 1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_loss_that_the_model_returns_is_recorded() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.layer(x)
            return nn.functional.cross_entropy(logits, y), logits

    torch.manual_seed(0)
    model, x, y = Own(), features(12, 6), torch.randint(4, (12,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    expected = model(x, y)[0].item()
    with flerm_fx.record(model, optimizer, {"x": x, "y": y}) as recorder:
        model(x, y)[0].backward()
        optimizer.step()
    assert recorder.profile.trajectory.losses == pytest.approx([expected], rel=rounding(6))
