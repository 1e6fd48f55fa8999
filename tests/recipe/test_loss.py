"""The loss: which one is meant, by what name it is found again, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flerm_fx.errors import InputError, OptimizerError
from flerm_fx.recipe.loss import LOSS_MODULES, Loss, resolve
from tests.rounding import assert_close


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(count: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_targets_take_cross_entropy(dtype: torch.dtype) -> None:
    output, targets = randn(5, 3), classes(3, 5, dtype=dtype)
    loss = resolve(None, targets)
    assert loss.name == "cross_entropy"
    expected = functional.cross_entropy(output, targets.long())
    assert_close(loss(output, targets), expected, output.numel())


def test_cross_entropy_of_a_language_model_has_its_classes_last() -> None:
    # As many positions as classes: the shapes fit either way.
    output, targets = randn(2, 4, 4), classes(4, 2, 4)
    expected = functional.cross_entropy(output.reshape(8, 4), targets.reshape(8))
    assert_close(resolve(None, targets)(output, targets), expected, output.numel())
    assert_close(Loss.from_name("cross_entropy")(output, targets), expected, output.numel())


def test_cross_entropy_of_an_image_model_has_its_classes_second() -> None:
    output, targets = randn(2, 3, 4, 5), classes(3, 2, 4, 5)
    expected = functional.cross_entropy(output, targets)
    assert_close(resolve(None, targets)(output, targets), expected, output.numel())


def test_cross_entropy_given_in_torch_s_layout_is_not_guessed() -> None:
    loss = resolve(functional.cross_entropy, None)
    output, targets = randn(2, 3, 5), classes(3, 2, 5)
    expected = functional.cross_entropy(output, targets)
    assert_close(loss(output, targets), expected, output.numel())
    with pytest.raises(InputError, match=r"shape \(2, 3, 3\).*\(2, 3\) reads two ways.*loss_fn"):
        loss(randn(2, 3, 3), classes(3, 2, 3))


def test_cross_entropy_takes_probabilities() -> None:
    output, targets = randn(5, 3), randn(5, 3, seed=1).softmax(-1)
    expected = functional.cross_entropy(output, targets)
    loss = resolve("cross_entropy", targets)
    assert_close(loss(output, targets), expected, output.numel())
    with pytest.raises(InputError, match=r"shape \(5, 3\).*\(5,\): probabilities must have"):
        loss(output, targets[:, 0])


def test_cross_entropy_ignores_minus_one_hundred() -> None:
    output, targets = randn(4, 3), torch.tensor([0, -100, 2, 1])
    expected = functional.cross_entropy(output[[0, 2, 3]], targets[[0, 2, 3]])
    assert_close(resolve(None, targets)(output, targets), expected, output.numel())


@pytest.mark.parametrize("shape", [(5, 4), (3,), (5, 3, 2)])
def test_cross_entropy_of_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    targets = classes(3, *shape)
    with pytest.raises(InputError) as raised:
        resolve(None, targets)(randn(5, 3), targets)
    assert f"(5, 3) and torch.int64 targets of shape {shape}: expected logits" in str(raised.value)


def test_class_out_of_range_names_the_shapes() -> None:
    targets = torch.tensor([0, 3])
    with pytest.raises(InputError, match=r"cross_entropy does not take .* \(2, 3\) .*[Tt]arget 3"):
        resolve(None, targets)(randn(2, 3), targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floating_targets_take_mean_squared_error(dtype: torch.dtype) -> None:
    output, targets = randn(5, 2), randn(5, 2, seed=1)
    loss = resolve(None, targets.to(dtype))
    assert loss.name == "mse_loss"
    value = loss(output, targets.to(dtype))
    assert value.dtype == torch.float32
    assert_close(value, ((output - targets) ** 2).mean(), output.numel())


@pytest.mark.parametrize("given", [None, "mse_loss", functional.mse_loss, nn.MSELoss()])
def test_mean_squared_error_does_not_broadcast(given: Any) -> None:
    targets = randn(5)
    with pytest.raises(InputError, match=r"shape \(5, 1\) .* shape \(5,\): expected equal shapes"):
        resolve(given, targets)(randn(5, 1), targets)


@pytest.mark.parametrize("kind", LOSS_MODULES)
def test_modules_and_functions_are_known_by_name(kind: type[nn.Module]) -> None:
    name = LOSS_MODULES[kind]
    for given in (kind(), kind().eval(), getattr(functional, name), name):
        loss = resolve(given, None)
        assert loss.name == name
        assert Loss.from_name(loss.name).name == name
        assert resolve(loss, None) is loss


def test_named_losses_equal_their_modules() -> None:
    output, targets = randn(4, 3), (randn(4, 3, seed=1) > 0).float()
    for module in (nn.L1Loss(), nn.BCEWithLogitsLoss(), nn.SmoothL1Loss(), nn.HuberLoss()):
        assert_close(
            resolve(module, None)(output, targets), module(output, targets), output.numel()
        )


@pytest.mark.parametrize(
    "module",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
)
def test_module_with_settings_has_no_name(module: nn.Module) -> None:
    output, targets = randn(5, 3), classes(3, 5)
    loss = resolve(module, targets)
    assert loss.name is None
    assert_close(loss(output, targets), module(output, targets), output.numel())


def test_function_from_elsewhere_has_no_name_and_may_need_no_targets() -> None:
    def energy(output: Tensor, targets: None) -> Tensor:
        return output.square().mean(0, keepdim=True).sum(1)

    loss = resolve(energy, None)
    assert loss.name is None
    assert loss(torch.ones(2, 3), None).shape == ()
    assert str(loss) == "loss energy"


@pytest.mark.parametrize("name", ["relu", "focal", "_Reduction", "gaussian_nll_loss", "", None])
def test_from_name_looks_only_in_torch_nn_functional(name: str | None) -> None:
    with pytest.raises(OptimizerError) as raised:
        Loss.from_name(name)
    # A name comes from whoever calls, and that there is none from a profile that is compiled.
    assert ("to flerm_fx.compile" in str(raised.value)) == (name is None)
    assert "is not in torch.nn.functional; pass" in str(raised.value)
    assert "as loss_fn=…" in str(raised.value)


def test_targets_missing() -> None:
    with pytest.raises(InputError, match="no targets to take a loss of: pass targets, or a loss"):
        resolve(None, None)
    with pytest.raises(InputError, match="loss l1_loss needs a tensor .*no targets: pass targets"):
        resolve("l1_loss", None)(randn(3), None)


@pytest.mark.parametrize("targets", [torch.tensor([True]), torch.tensor([1j]), {"a": 1}])
def test_targets_without_a_default_loss(targets: Any) -> None:
    with pytest.raises(InputError, match=r"default loss .* got targets of .*: pass loss_fn"):
        resolve(None, targets)


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(InputError, match="loss_fn must be a function .* got int"):
        resolve(3, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the class L1Loss: call it first, as L1Loss\(\)$"):
        resolve(nn.L1Loss, None)


def test_loss_that_is_no_scalar() -> None:
    def squares(output: Tensor, targets: Tensor) -> Tensor:
        return (output - targets) ** 2

    with pytest.raises(InputError, match=r"loss squares gave shape \(3,\); expected one number"):
        resolve(squares, None)(randn(3), randn(3))
    with pytest.raises(InputError, match="loss <lambda> gave 0.5; expected one number"):
        resolve(lambda output, targets: 0.5, None)(randn(3), randn(3))  # type: ignore[arg-type,return-value]


def test_error_inside_a_loss_from_elsewhere_is_its_own() -> None:
    def broken(output: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        resolve(broken, None)(randn(3), randn(3))
