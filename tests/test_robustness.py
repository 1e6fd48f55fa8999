"""Models and moments at which a graph could silently stop being the model."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from tests.cases import features, random_updates
from tests.rounding import assert_close, rounding, terms

X, Y = features(8, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def mlp(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def recorded(model: nn.Module, lr: float = 1e-3, **options: Any) -> flerm_fx.BaseProfile:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return flerm_fx.record(model, optimizer, X.to(next(model.parameters())), Y, **options).profile


class Gated(nn.Module):
    """Couples the batch behind a gate that is 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(6, 5)
        self.gate = nn.Parameter(torch.zeros(5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return self.head(z + self.gate * z.mean(0))  # type: ignore[no-any-return]


def test_coupling_behind_a_closed_gate_is_found() -> None:
    model = Gated()
    updates = random_updates(model)
    exact = flerm_fx.measure(model, updates, X, method="exact")
    sampled = flerm_fx.measure(model, updates, X, method="sampled", samples=20)
    noise = rounding(2 * terms(model), size=max(e.value for e in exact.values()))
    for name, estimate in sampled.items():
        assert "they meet in aten.mean" in estimate.note
        assert abs(estimate.value - exact[name].value) <= 4.5 * estimate.stderr + noise
    auto = flerm_fx.measure(model, updates, X)
    assert auto["gate"].value == pytest.approx(exact["gate"].value, rel=0.2)


class Branches(nn.Module):
    """Another function from a batch of 6 on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x).relu()
        return self.head(2 * z if x.shape[0] >= 6 else z)  # type: ignore[no-any-return]


def test_a_branch_on_the_batch_size_is_captured_on_both_sides() -> None:
    large = Branches(16)
    compiled = flerm_fx.compile(large, recorded(Branches(4)))
    for batch in (8, 7, 6, 5, 2, 1):
        assert_close(compiled(X[:batch]), large(X[:batch]), terms(large))


class Replaces(nn.Module):
    """Puts a new tensor in the place of a buffer."""

    ema: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.register_buffer("ema", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        self.ema = 0.9 * self.ema + 0.1 * z.detach().mean(0)
        return self.head(z / (1 + self.ema.abs()))  # type: ignore[no-any-return]


def test_a_replaced_buffer_goes_on_being_updated() -> None:
    large = Replaces(16)
    with pytest.warns(flerm_fx.CaptureWarning, match="in the place of buffer 'ema'"):
        compiled = flerm_fx.compile(large, recorded(Replaces(4)))
    for _ in range(3):
        assert_close(compiled(X), large(X), terms(large) + len(X))


def test_a_state_dict_carries_its_scales() -> None:
    profile = recorded(mlp(4))
    saved = flerm_fx.compile(mlp(16, seed=1), profile)
    resumed = flerm_fx.compile(mlp(16, seed=2), profile)
    assert resumed.scales != saved.scales
    resumed.load_state_dict(saved.state_dict())
    assert resumed.scales == saved.scales
    assert resumed.multipliers == saved.multipliers
    assert torch.equal(resumed(X), saved(X))
    original = mlp(16, seed=3)
    resumed.load_state_dict(original.state_dict())  # effective weights, as a checkpoint has them
    assert_close(resumed(X), original(X), terms(original))
    with pytest.raises(flerm_fx.InputError, match=r"differ in .*fold\(\)"):
        resumed.set_extra_state({"scales": {"other": 1.0}, "multipliers": {}})


def test_new_parameter_objects_are_noticed() -> None:
    compiled = flerm_fx.compile(mlp(16), recorded(mlp(4)))
    compiled(X)
    state = {k: 2 * v if isinstance(v, Tensor) else v for k, v in compiled.state_dict().items()}
    compiled.load_state_dict(state, assign=True)
    assert_close(compiled(X), compiled.fold()(X), terms(compiled))


def test_freezing_and_moving_after_compiling() -> None:
    large = mlp(16)
    compiled = flerm_fx.compile(large, recorded(mlp(4)))
    compiled.requires_grad_(False)
    compiled.eval()
    assert_close(compiled(X), large(X), terms(large))
    assert not any(p.requires_grad for p in compiled.parameters())
    compiled.double()
    assert compiled.graph_module is not None
    assert "0.weight" in compiled.dump()
    # Its weights were rounded to float32 when they were divided by the scales.
    expected = large.double()(X.double())
    assert_close(compiled(X.double()), expected, terms(large), dtype=torch.float32)


def test_scalar_arguments_do_not_pin_the_batch() -> None:
    class Tempered(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Linear(6, width), nn.Linear(width, 3)

        def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
            y = self.head(self.inner(x).reshape(x.shape[0], -1))
            return y if t is None else y / t

    large = Tempered(16)
    compiled = flerm_fx.compile(large, recorded(Tempered(4)))
    for batch in (8, 5, 1):
        t = torch.tensor(2.0)
        assert_close(compiled(x=X[:batch], t=t), large(X[:batch], t), terms(large))
        assert_close(compiled(X[:batch], t=t), large(X[:batch], t), terms(large))


def test_members_may_have_the_compiled_models_own_names() -> None:
    class Named(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.matches, self.procedure = nn.Linear(6, width), nn.Linear(width, 3)
            self.assignments, self.scales = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.procedure(self.matches(x)) * self.assignments * self.scales

    large = Named(16)
    compiled = flerm_fx.compile(large, recorded(Named(4)))
    assert_close(compiled(X), large(X), terms(large))
    assert all(check.passed for check in compiled.check())


def test_spectral_norm_trains() -> None:
    def normed(width: int) -> nn.Module:
        torch.manual_seed(0)
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(6, width))
        return nn.Sequential(first, nn.Linear(width, 3))

    large = normed(16)
    compiled = flerm_fx.compile(large, recorded(normed(4)))
    compiled(X).sum().backward()
    assert all(p.grad is not None for p in compiled.parameters())


def test_what_is_computed_without_gradients_still_moves_the_function() -> None:
    class Detours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            with torch.no_grad():
                shift = (self.linear.weight * 3).sum(1)
            return y + shift  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Detours().double()
    updates, x = random_updates(model), X.double()
    found = flerm_fx.measure(model, updates, x, method="exact")["linear.weight"].value
    expected = x @ updates["linear.weight"].T + 3 * updates["linear.weight"].sum(1)
    assert found == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-9)


def test_tiny_learning_rates_and_half_precision_do_not_lose_the_update() -> None:
    usual = recorded(mlp(4), method="exact")
    tiny = recorded(mlp(4), lr=1e-8, method="exact")
    for name, estimate in usual.start.items():
        assert tiny.start[name].value == pytest.approx(estimate.value, rel=1e-3)
    profile = recorded(mlp(4).bfloat16(), method="exact")
    for name, estimate in usual.start.items():
        # bfloat16 has 8 bits, and Adam's first step a sign that it may flip
        assert profile.start[name].value == pytest.approx(estimate.value, rel=0.1)
    compiled = flerm_fx.compile(mlp(16).bfloat16(), profile)
    assert {row.status for row in compiled.assignments} == {"matched"}


def test_check_passes_with_dropout_and_with_rules_that_bound_their_steps() -> None:
    def dropped(width: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 3))

    assert all(c.passed for c in flerm_fx.compile(dropped(32), recorded(dropped(8))).check())
    small = mlp(4)
    profile = flerm_fx.record(small, torch.optim.Rprop(small.parameters(), lr=1e-3), X, Y).profile
    assert all(c.passed for c in flerm_fx.compile(mlp(16), profile).check())


def test_another_mode_than_the_bases_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="in evaluation mode, and the base .* in training mode"):
        flerm_fx.compile(mlp(16).eval(), recorded(mlp(4)))


def test_autocast_around_recording_is_left() -> None:
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))

    plain = recorded(normed())
    with torch.autocast("cpu", torch.bfloat16):
        inside = recorded(normed())
    assert inside.start == plain.start


def test_freezing_while_recording_is_recorded_as_no_update() -> None:
    model = mlp(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with flerm_fx.record(model, optimizer, X, Y, every=1) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
            model[0].requires_grad_(False)
    first, second = recorder.profile.trajectory.fslrs["0.weight"]
    assert first.value > 0 and second.value == 0


def test_thawing_and_resting_while_recording() -> None:
    model = mlp(4)
    model[2].requires_grad_(False)
    groups = [{"params": [model[0].weight]}, {"params": [model[0].bias], "lr": 0.0}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    with flerm_fx.record(model, optimizer, X, Y, every=1) as recorder:
        model[2].requires_grad_(True)  # in no group of the optimizer
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    course = recorder.profile.trajectory.fslrs
    assert course.keys() == {"0.weight", "0.bias"}
    assert course["0.weight"][0].value > 0 and course["0.bias"][0].value == 0


@pytest.mark.parametrize("format", ["table", "json", "dot", "code"])
def test_parameter_groups_have_dumps_and_a_graph_too(format: Any) -> None:
    compiled = flerm_fx.compile(mlp(16), recorded(mlp(4)), emit="param_groups")
    assert "0.weight" in compiled.dump(format)
    assert all(p.requires_grad for p in compiled.parameters())


def test_integer_values_made_of_parameters_carry_no_tangent() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(6, 9)))
    updates = random_updates(model)
    exact = flerm_fx.measure(model, updates, X, method="exact")
    found = flerm_fx.measure(model, updates, X, method="sampled", samples=4)
    for name, estimate in found.items():
        assert abs(estimate.value - exact[name].value) <= 4.5 * estimate.stderr


def test_copies_are_independent_and_keep_their_decisions() -> None:
    compiled = flerm_fx.compile(mlp(16), recorded(mlp(4)))
    twin = copy.deepcopy(compiled)
    assert twin.multipliers == compiled.multipliers
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(twin(X), compiled(X))
    with pytest.raises(flerm_fx.InputError, match="gone"):
        twin.param_groups(1e-3)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: flerm_fx.compile(mlp(4), None), r"got NoneType; read a file with .*load"),  # type: ignore[arg-type]
        (lambda: flerm_fx.compile(None, recorded(mlp(4))), "model must be an nn.Module"),  # type: ignore[arg-type]
        (lambda: flerm_fx.record(None, None, X), "model must be an nn.Module"),  # type: ignore[arg-type]
        (lambda: flerm_fx.measure(mlp(4), {"0.weight": 3.0}, X), "is a float, not a tensor"),  # type: ignore[dict-item]
        (lambda: recorded(mlp(4), settle=True), "settle must be a whole number"),
        (
            lambda: recorded(mlp(4), loss_fn=lambda output, targets: output.detach().sum()),
            "loss does not depend on any trainable parameter",
        ),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(flerm_fx.InputError, match=message):
        call()


def test_a_sparse_gradient_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3))
    tokens = torch.randint(9, (6, 2), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    targets = torch.zeros(6, 2).long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(flerm_fx.InputError, match=r"'0\.weight' is sparse"):
            flerm_fx.record(model, optimizer, tokens, targets)
