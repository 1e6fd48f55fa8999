"""What computes with other weights than its own is refused by name, before anything changed."""

import functools
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.capture.tracing import capture
from tests.cases import features, random_updates

X, Y = features(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


class Model(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).tanh()))  # type: ignore[no-any-return]

    def doubled(self, x: Tensor) -> Tensor:
        return 2 * nn.Linear.forward(self.b, x)

    def adapt(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output + self.head.weight.sum()


def record(model: nn.Module) -> flerm_fx.BaseProfile:
    return flerm_fx.record(model, torch.optim.Adam(model.parameters(), lr=1e-3), X, Y).profile


def compile_(model: nn.Module, emit: str = "graph") -> None:
    flerm_fx.compile(model, record(Model()), emit=emit)  # type: ignore[arg-type]


def match(model: nn.Module) -> None:
    small = Model()
    adam = torch.optim.Adam(small.parameters(), lr=1e-3)
    with flerm_fx.record(small, adam, X, Y, every=1) as recorder:
        nn.functional.cross_entropy(small(X), Y).backward()
        adam.step()
    flerm_fx.match(model, torch.optim.Adam(model.parameters(), lr=1e-3), recorder.profile)


def a_hook(model: Model) -> None:
    model.a.register_forward_hook(lambda module, args, output: output + model.b(output))


def a_pre_hook(model: Model) -> None:
    model.head.register_forward_pre_hook(lambda module, args: (args[0] @ model.b.weight,))


def without_gradient(model: Model) -> None:
    model.a.register_forward_hook(lambda m, args, output: output + model.b.weight.data.sum())


def a_patched_forward(model: Model) -> None:
    b = model.b
    b.forward = lambda x: nn.functional.linear(x, b.weight)


def a_default(model: Model) -> None:
    def forward(x: Tensor, b: nn.Linear = model.b) -> Tensor:
        return nn.functional.linear(x, b.weight)

    model.b.forward = forward


def a_list_in_a_closure(model: Model) -> None:
    held = [model.b]
    model.a.register_forward_hook(lambda module, args, output: output + held[0](output))


HELD: dict[str, Model] = {}


def a_global(model: Model) -> None:
    HELD["model"] = model
    model.a.register_forward_hook(lambda m, args, output: output + HELD["model"].b(output))


def frozen(model: Model) -> None:
    model.b.weight.requires_grad_(False)
    model.a.register_forward_hook(lambda m, args, output: output @ model.b.weight)


CLOSURES = [
    a_hook,
    a_pre_hook,
    without_gradient,
    a_patched_forward,
    a_default,
    a_list_in_a_closure,
    a_global,
    frozen,
]


@pytest.mark.parametrize("change", CLOSURES, ids=lambda change: change.__name__)
def test_a_copy_that_computes_with_the_original_is_refused(
    change: Callable[[Model], None],
) -> None:
    model = Model()
    change(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    message = r"computes with the original's 'b\.weight'.*in .*test_stand_ins\.py:\d+"
    with pytest.raises(flerm_fx.InputError, match=message):
        record(model)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "call",
    [
        compile_,
        functools.partial(compile_, emit="module"),
        functools.partial(compile_, emit="param_groups"),
        match,
    ],
    ids=["graph", "module", "param_groups", "match"],
)
def test_so_it_is_wherever_a_copy_is_made(call: Callable[[nn.Module], None]) -> None:
    model = Model()
    a_hook(model)
    with pytest.raises(flerm_fx.InputError, match="computes with the original's"):
        call(model)
    assert [name for name, _ in model.named_parameters()] == [
        n for n, _ in Model().named_parameters()
    ]


def test_the_buffers_of_the_original_stay() -> None:
    model = Model()
    norm = nn.BatchNorm1d(6)
    model.norm = norm
    model.a.register_forward_hook(lambda module, args, output: norm(output))
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    with pytest.raises(flerm_fx.InputError, match=".*'norm.running_mean'.*'norm.weight'"):
        record(model)
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert norm.num_batches_tracked == 0


def test_measuring_without_a_copy_takes_closures_over_the_model() -> None:
    model = Model().double()
    model.a.register_forward_hook(lambda module, args, output: output + model.b(output))
    updates, x = random_updates(model), X.double()
    found = flerm_fx.measure(model, updates, x, method="exact")["b.weight"].value

    def function(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"b.weight": weight}, (x,))

    tangent = torch.func.jvp(function, (model.b.weight.detach(),), (updates["b.weight"],))[1]
    assert found == pytest.approx(tangent.square().mean().sqrt().item(), rel=1e-9)


def bound(model: Model) -> None:
    model.a.register_forward_hook(model.adapt)


def a_method(model: Model) -> None:
    model.b.forward = types.MethodType(lambda b, x: nn.functional.linear(x, b.weight), model.b)


def a_partial(model: Model) -> None:
    model.b.forward = functools.partial(lambda b, x: nn.functional.linear(x, b.weight), model.b)


@pytest.mark.parametrize("change", [bound, a_method, a_partial], ids=lambda c: c.__name__)
def test_what_a_copy_binds_anew_is_kept(change: Callable[[Model], None]) -> None:
    model = Model()
    change(model)
    found = record(model).start["head.weight" if change is bound else "b.weight"].value
    loss = nn.functional.cross_entropy(model(X), Y)
    name = "head.weight" if change is bound else "b.weight"
    (gradient,) = torch.autograd.grad(loss, [model.get_parameter(name)])
    # Adam's first unit update is the gradient's sign.
    (expected,) = flerm_fx.measure(model, {name: -gradient.sign()}, X, method="exact").values()
    assert found == pytest.approx(expected.value, rel=1e-3)


def a_view(model: Model) -> None:
    model.kept = model.b.weight.t()


def its_data(model: Model) -> None:
    model.kept = model.b.weight.data.t()


def a_parameter_in_a_list(model: Model) -> None:
    model.kept = [model.b.weight]


@pytest.mark.parametrize(
    "keep", [a_view, its_data, a_parameter_in_a_list], ids=lambda k: k.__name__
)
@pytest.mark.parametrize("call", [record, lambda m: capture(m, X)], ids=["record", "capture"])
def test_a_plain_attribute_that_is_memory_of_a_parameter_is_refused(
    call: Callable[[nn.Module], object], keep: Callable[[Model], None]
) -> None:
    class Reads(Model):
        kept: Tensor | list[Tensor]

        def forward(self, x: Tensor) -> Tensor:
            kept = self.kept[0].t() if isinstance(self.kept, list) else self.kept
            return self.head(self.a(x) @ kept)  # type: ignore[no-any-return]

    model = Reads()
    keep(model)
    with pytest.raises(flerm_fx.InputError, match=r"reads parameter 'b\.weight'.*plain attribute"):
        call(model)


def test_a_parameter_outside_of_the_model_is_refused_and_a_frozen_one_is_a_constant() -> None:
    outside = nn.Linear(6, 6, bias=False)

    def model() -> Model:
        made = Model()
        made.a.register_forward_hook(lambda module, args, output: output + outside(output))
        return made

    with pytest.raises(flerm_fx.InputError, match=r"Parameter of shape \(6, 6\) that is not"):
        record(model())
    assert outside.weight.grad is None
    outside.requires_grad_(False)
    assert record(model()).start["a.weight"].value > 0


def test_a_deepcopy_that_keeps_trainable_weights_is_refused() -> None:
    class Shared(nn.Linear):
        def __deepcopy__(self, memo: object) -> "Shared":
            return self

    model = Model()
    model.b = Shared(6, 6)
    with pytest.raises(flerm_fx.InputError, match=r"shares parameter 'b\.weight' with"):
        record(model)
    model.b.requires_grad_(False)
    assert record(model).start["a.weight"].value > 0


@pytest.mark.parametrize("call", [record, compile_, match], ids=["record", "compile", "match"])
def test_a_model_on_meta_is_refused(call: Callable[[nn.Module], object]) -> None:
    model = Model().to("meta")
    with pytest.raises(flerm_fx.InputError, match=r"'a\.weight' is on the device 'meta'.*to_empty"):
        call(model)


def test_neither_meta_nor_a_lazy_module_can_be_measured() -> None:
    model = Model()
    model.head.to("meta")
    with pytest.raises(flerm_fx.InputError, match=r"'head\.weight' is on the device 'meta'"):
        flerm_fx.measure(model, {}, X)
    with pytest.raises(flerm_fx.InputError, match=r"'head\.weight' is on the device 'meta'"):
        flerm_fx.instrument(model, X)
    with pytest.raises(flerm_fx.InputError, match="'weight' has no shape yet.*on a batch"):
        capture(nn.LazyLinear(3), X)
