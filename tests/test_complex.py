"""Complex parameters, and parameters of several types in one model, beside real ones."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flerm_fx
from flerm_fx.capture.tracing import capture
from flerm_fx.emit.lower import lowered
from flerm_fx.model.inputs import check_finite
from flerm_fx.ops.scale import ScaleNodes, is_scale
from tests.cases import features, random_updates

EPSILON = torch.finfo(torch.float32).eps

CLOSE = 256 * EPSILON
"""Relative difference of two computations in float32 of sums of some 10^2 terms."""


def complex_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=torch.complex64) / math.sqrt(shape[0]))


class Spectral(nn.Module):
    """A Fourier layer, with its modes as complex weights."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lift, self.project = nn.Linear(1, width), nn.Linear(width, 1)
        self.modes = complex_parameter(width, width, 4)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.lift(x.unsqueeze(-1)).mT)[..., :4]
        mixed = torch.einsum("bim,iom->bom", spectrum, self.modes)
        hidden = torch.fft.irfft(mixed, n=x.shape[1])
        return self.project(F.gelu(hidden.mT)).squeeze(-1)  # type: ignore[no-any-return]


class Written(Spectral):
    """A Fourier layer as neural operators have it, which writes modes into an empty spectrum."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.lift(x.unsqueeze(-1)).mT)
        mixed = torch.zeros_like(spectrum)
        mixed[:, :, :3] = torch.einsum("bim,iom->bom", spectrum[:, :, :3], self.modes[..., :3])
        mixed[..., -1] = torch.einsum("bi,io->bo", spectrum[..., -1], self.modes[..., 3].conj())
        hidden = torch.fft.irfft(mixed, n=x.shape[1])
        return self.project(F.gelu(hidden.mT)).squeeze(-1)  # type: ignore[no-any-return]


class Products(nn.Module):
    """Products, a bias, conjugates and absolute values of complex numbers."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = complex_parameter(12, width), complex_parameter(width)
        self.shift, self.gain = complex_parameter(width), nn.Parameter(torch.rand(width))
        self.head = nn.Linear(2 * width, 12)

    def forward(self, x: Tensor) -> Tensor:
        z = x.to(torch.complex64) @ self.weight + self.bias
        z = torch.complex(z.real.tanh(), z.imag.sin()) * (z + self.shift).conj()
        z = z * self.gain / (1 + z.abs()) + z.angle().sgn() + torch.sgn(z)
        return self.head(torch.view_as_real(z).flatten(1))  # type: ignore[no-any-return]


class Views(nn.Module):
    """Complex weights made of real ones, and real ones of complex."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pairs = nn.Parameter(torch.randn(12, width, 2) / 4)
        self.size, self.angle = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.turned, self.out = complex_parameter(width), complex_parameter(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        z = x.to(torch.complex64) @ torch.view_as_complex(self.pairs)
        z = z * torch.polar(self.size, self.angle) * self.turned.conj()
        out = torch.view_as_real(self.out)
        return z.real.tanh() @ out[..., 0] + z.imag.exp() @ out[..., 1]


class Transforms(nn.Module):
    """Transforms of data and of weights, there and back."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(12))
        self.gain, self.bias, self.number = (complex_parameter(n) for n in (12, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.fft(x) * torch.fft.fft(self.kernel) * self.gain + self.bias
        z = torch.fft.ifft(torch.cat([z[:, :6] * self.number, z[:, 6:]], 1))
        return z.real.relu() + z.imag.square() + z.abs()


class Convolutions(nn.Module):
    """Convolutions with complex kernels."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = complex_parameter(width, 1, 3), complex_parameter(1, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv1d(x.unsqueeze(1).to(torch.complex64), self.first, padding=1)
        return F.conv1d(z * z.abs().sigmoid(), self.second, padding=1).real.squeeze(1)


class Types(nn.Module):
    """Weights of four types, each layer in its own; sums and joins promote."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.coarse = nn.Linear(12, width).bfloat16()
        self.plain, self.waves = nn.Linear(12, width), complex_parameter(2 * width, width)
        self.fine, self.head = nn.Linear(width, width).double(), nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.coarse(x.bfloat16()) + self.plain(x)
        z = torch.cat([h, h.to(torch.complex64)], 1) @ self.waves
        return self.head(self.fine(z.abs().double() + h).tanh().float())  # type: ignore[no-any-return]


class Eager(Products):
    """Does not export."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 1e9 else super().forward(x)


MODELS = [Spectral, Written, Products, Views, Transforms, Convolutions, Types, Eager]
X, Y = features(6, 12), torch.randn(6, 12, generator=torch.Generator().manual_seed(3))

eagerly = pytest.mark.filterwarnings("ignore::flerm_fx.errors.CaptureWarning")


def by_jvp(model: nn.Module, updates: dict[str, Tensor]) -> dict[str, float]:
    """FSLRs by one ``torch.func.jvp`` of the whole model for each parameter."""
    found = {}
    for name, parameter in model.named_parameters():

        def moved(value: Tensor, name: str = name) -> Tensor:
            return torch.func.functional_call(model, {name: value}, (X,))  # type: ignore[no-any-return]

        tangent = torch.func.jvp(moved, (parameter.detach(),), (updates[name],))[1]
        found[name] = float(tangent.detach().double().square().mean().sqrt())
    return found


@eagerly
@pytest.mark.parametrize("kind", MODELS)
def test_fslrs_are_those_of_a_jvp_of_the_model(kind: Callable[[], nn.Module]) -> None:
    model = kind()
    updates = random_updates(model)
    expected = by_jvp(model, updates)
    # bfloat16 keeps 8 bits, and the order of its sums is the kernel's.
    rel = 2 * torch.finfo(torch.bfloat16).eps if kind is Types else CLOSE
    exact = flerm_fx.measure(model, updates, X, method="exact")
    every = flerm_fx.measure(model, updates, X, method="sampled", samples=12)  # all coordinates
    some = flerm_fx.measure(model, updates, X, method="sampled", samples=9)
    auto = flerm_fx.measure(model, updates, X)
    for name, value in expected.items():
        assert exact[name].value == pytest.approx(value, rel=rel)
        assert auto[name].value == pytest.approx(value, rel=0.05)
        if kind is not Types:  # see the next test
            assert every[name].value == pytest.approx(value, rel=rel)
        assert abs(some[name].value - value) <= 4.5 * some[name].stderr


def test_rounding_inside_of_a_coarser_type_is_no_coupling() -> None:
    model = Types()
    for estimate in flerm_fx.measure(model, random_updates(model), X, method="sampled").values():
        assert estimate.note == ""


class Paired(Spectral):
    """The same with its modes as pairs of real numbers."""

    def __init__(self) -> None:
        super().__init__()
        modes = self.modes.detach()
        del self.modes
        self.pairs = nn.Parameter(torch.view_as_real(modes).clone())

    @property
    def modes(self) -> Tensor:  # type: ignore[override]
        return torch.view_as_complex(self.pairs)


@pytest.mark.parametrize("method", ["exact", "sampled", "auto", "full_cov", "iid", "kronecker"])
def test_a_complex_parameter_is_the_real_one_of_its_parts(method: Any) -> None:
    one, two = Spectral(), Paired()
    updates = random_updates(one)
    pairs = {"pairs": torch.view_as_real(updates["modes"])}
    found = flerm_fx.measure(one, {"modes": updates["modes"]}, X, method=method)["modes"]
    expected = flerm_fx.measure(two, pairs, X, method=method)["pairs"]
    assert found.value == pytest.approx(expected.value, rel=CLOSE)
    assert found.stderr == pytest.approx(expected.stderr, rel=1e-3)


@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.SGD])
def test_the_start_is_that_of_the_real_parts(rule: Any) -> None:
    batches = [features(6, 12) + i for i in range(3)]
    starts = []
    for model in (Spectral(), Paired()):
        optimizer = rule(model.parameters(), lr=1e-3)
        profile = flerm_fx.record(
            model, optimizer, batches, [Y] * 3, settle=4, method="exact"
        ).profile
        starts.append({n.replace("pairs", "modes"): e.value for n, e in profile.start.items()})
    for name, value in starts[0].items():
        # Adam divides by roots of squares, which takes a few more roundings over four steps.
        assert value == pytest.approx(starts[1][name], rel=1e-4)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [Spectral, Written, Products])
def test_recording_compiling_and_matching(kind: Any, tmp_path: Path) -> None:
    small = kind(4)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    options: Any = {"settle": 2, "method": "exact", "every": 2}
    with flerm_fx.record(small, optimizer, [X, X + 1, X - 1], [Y] * 3, **options) as recorder:
        train(small, optimizer)
    recorder.profile.save(tmp_path / "base.safetensors")
    profile = flerm_fx.BaseProfile.load(tmp_path / "base.safetensors")
    own = flerm_fx.compile(kind(4), profile, method="exact")
    assert set(own.multipliers.values()) == {1.0}
    outputs = []
    for emit in ("graph", "module", "param_groups"):
        model = kind(8)
        compiled = flerm_fx.compile(model, profile, emit=emit, method="exact")  # type: ignore[arg-type]
        assert {row.status for row in compiled.assignments} == {"matched"}
        assert all(check.passed for check in compiled.check())
        trained = model if emit == "param_groups" else compiled
        groups = compiled.param_groups(1e-3) if trained is model else compiled.parameters()
        train(trained, torch.optim.Adam(groups, lr=1e-3))
        outputs.append(trained(X).detach())
    for output in outputs[1:]:
        # Where a gradient is of Adam's eps, rounding moves a step.
        torch.testing.assert_close(output, outputs[0], rtol=1e-3, atol=1e-4)
    found = []
    for scaled in (False, True):
        model = flerm_fx.compile(kind(8), profile, method="exact") if scaled else kind(8)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with flerm_fx.match(model, optimizer, profile, every=2, ema=0, method="exact") as matcher:
            train(model, optimizer)
        found.append(matcher.multipliers)
    for name, multiplier in found[0].items():
        assert found[1][name] == pytest.approx(multiplier, rel=1e-3)


def test_scales_of_complex_weights_are_lowered() -> None:
    model = nn.Module()
    torch.manual_seed(0)
    model.weight = complex_parameter(64, 64)
    x = torch.randn(2, 64, dtype=torch.complex64)
    model.forward = lambda x: torch.view_as_real(x @ model.weight)  # type: ignore[method-assign]
    graph_module = capture(model, x).graph_module
    ScaleNodes({"weight": 4.0})(graph_module)
    twin = lowered(graph_module)
    (node,) = [node for node in twin.graph.nodes if is_scale(node)]
    assert node.args[0].name != "weight"
    assert torch.equal(twin(x), graph_module(x))  # 4 is a power of two
    for module in (twin, graph_module):
        (gradient,) = torch.autograd.grad(module(x).square().sum(), model.weight)
        expected = (
            4
            * torch.autograd.grad(
                torch.view_as_real(x @ (4 * model.weight)).square().sum(), model.weight
            )[0]
            / 4
        )
        torch.testing.assert_close(gradient, expected, rtol=CLOSE, atol=CLOSE)


def test_numbers_that_are_not_finite_are_named() -> None:
    check_finite("w", torch.tensor([1 + 2j, 3.0]), "update")
    with pytest.raises(flerm_fx.EstimateError, match="'w' has 2 NaN or infinite of 3"):
        check_finite("w", torch.tensor([complex(0, math.nan), complex(math.inf, 0), 1]), "update")


def test_a_complex_update_of_a_real_parameter_is_refused() -> None:
    model = nn.Linear(12, 3)
    with pytest.raises(flerm_fx.InputError, match=r"'weight' is complex, and the parameter is"):
        flerm_fx.measure(model, {"weight": torch.zeros(3, 12, dtype=torch.complex64)}, X)


def test_a_complex_output_is_refused_with_what_to_do() -> None:
    model = nn.Linear(12, 3)
    updates = random_updates(model)
    for options in ({}, {"output_fn": lambda output: output}):
        hook = model.register_forward_hook(lambda m, args, output: output + 0j)
        with pytest.raises(flerm_fx.InputError, match="torch.view_as_real makes floating ones"):
            flerm_fx.measure(model, updates, X, **options)  # type: ignore[arg-type]
        hook.remove()
