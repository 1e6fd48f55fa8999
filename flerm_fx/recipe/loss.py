"""The loss is what training minimises, as far as the start of training has to repeat it."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flerm_fx.errors import InputError, OptimizerError

LossFunction = Callable[[Any, Any], Tensor]

LOSS_MODULES: dict[type[nn.Module], str] = {
    nn.BCELoss: "binary_cross_entropy",
    nn.BCEWithLogitsLoss: "binary_cross_entropy_with_logits",
    nn.CrossEntropyLoss: "cross_entropy",
    nn.HingeEmbeddingLoss: "hinge_embedding_loss",
    nn.HuberLoss: "huber_loss",
    nn.KLDivLoss: "kl_div",
    nn.L1Loss: "l1_loss",
    nn.MSELoss: "mse_loss",
    nn.MultiLabelMarginLoss: "multilabel_margin_loss",
    nn.MultiLabelSoftMarginLoss: "multilabel_soft_margin_loss",
    nn.MultiMarginLoss: "multi_margin_loss",
    nn.NLLLoss: "nll_loss",
    nn.PoissonNLLLoss: "poisson_nll_loss",
    nn.SmoothL1Loss: "smooth_l1_loss",
    nn.SoftMarginLoss: "soft_margin_loss",
}


@dataclass(frozen=True)
class Loss:
    """A ``Loss`` is a scalar function of the model's output and the targets.

    Attributes:
        name: its name in ``torch.nn.functional``; ``None`` for a function from elsewhere.
        fn: the function.

    >>> Loss.from_name("mse_loss")(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """

    name: str | None
    fn: LossFunction

    def __call__(self, output: Tensor, targets: Any) -> Tensor:
        """Return the loss, of shape ``()``, in the units of ``fn`` (nats for cross entropy).

        Raises:
            InputError: if targets are missing, do not fit the output, or the loss is no scalar.
        """
        if self.name is None:
            loss = self.fn(output, targets)
        elif not isinstance(targets, Tensor):
            raise InputError(f"{self} needs a tensor of targets; {_got(targets)}")
        else:
            try:
                loss = self.fn(output, targets)
            except (InputError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, ValueError, IndexError) as error:
                raise InputError(
                    f"{self} does not take {_layout(output, targets)}: {error}"
                ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise InputError(
                f"{self} gave {what}; expected one number, such as the mean over the batch"
            )
        return loss.reshape(())

    @classmethod
    def from_name(cls, name: str | None) -> "Loss":
        """Return the loss called ``name`` in ``torch.nn.functional``, and nowhere else.

        Raises:
            OptimizerError: if there is no loss of (output, targets) by that name.
        """
        if name == "cross_entropy":
            return cls(name, cross_entropy)
        if name == "mse_loss":
            return cls(name, _mean_squared_error)
        fn: Any = getattr(functional, name, None) if name is not None else None
        if not _is_loss(fn):
            if name is None:
                raise OptimizerError(
                    "the loss of this profile is a function of its recording's own, and is not in "
                    "torch.nn.functional; pass it to flerm_fx.compile again, as loss_fn=…"
                )
            raise OptimizerError(
                f"loss {name!r} is not in torch.nn.functional; pass as loss_fn=… a function from "
                "(output, targets) to the loss"
            )
        return cls(name, fn)

    def __str__(self) -> str:
        return f"loss {self.name or getattr(self.fn, '__name__', type(self.fn).__name__)}"


def resolve(loss_fn: "Loss | LossFunction | str | None", targets: Any) -> Loss:
    """Return the loss meant by ``loss_fn``, which is the one that fits the targets if it is
    ``None``.

    Integer targets take :func:`cross_entropy` and floating ones the mean squared error. Losses of
    ``torch.nn.functional``, and ``torch.nn`` loss modules with default settings, are known by
    name; any other function is used as it is and has none.

    Raises:
        InputError: if targets are missing, or of a kind that has no default loss; or ``loss_fn`` is
            no function, or a class.
        OptimizerError: for a name that ``torch.nn.functional`` does not have.

    >>> resolve(None, torch.tensor([0, 1])).name, resolve(nn.L1Loss(), None).name
    ('cross_entropy', 'l1_loss')
    """
    if isinstance(loss_fn, Loss):
        return loss_fn
    if isinstance(loss_fn, str):
        return Loss.from_name(loss_fn)
    if loss_fn is None:
        if targets is None:
            raise InputError(
                "there are no targets to take a loss of: pass targets, or a loss_fn(output, "
                "targets) that needs none"
            )
        if not isinstance(targets, Tensor) or targets.dtype == torch.bool or targets.is_complex():
            raise InputError(
                "the default loss is cross entropy for a tensor of integer targets and mean "
                f"squared error for floating ones; {_got(targets)}: pass loss_fn"
            )
        return Loss.from_name("mse_loss" if targets.is_floating_point() else "cross_entropy")
    if not callable(loss_fn) or isinstance(loss_fn, type):
        got = type(loss_fn).__name__
        if isinstance(loss_fn, type):
            got = f"the class {loss_fn.__name__}: call it first, as {loss_fn.__name__}()"
        raise InputError(
            "loss_fn must be a function of (output, targets), a torch.nn loss module, or a name "
            f"in torch.nn.functional; got {got}"
        )
    name = _name_of(loss_fn)
    if name is None:
        return Loss(None, loss_fn)
    if name == "cross_entropy":
        return Loss(name, functools.partial(cross_entropy, torch_layout=True))
    return Loss.from_name(name)


def cross_entropy(output: Tensor, targets: Tensor, *, torch_layout: bool = False) -> Tensor:
    r"""Compute the mean cross entropy in nats of logits with the classes in the last dimension.

    .. math:: -\frac{1}{|T|} \sum_{t \in T} \log \mathrm{softmax}(\mathrm{output}_t)_{y_t}

    over the positions whose target is not -100.

    Args:
        output: logits ``(B, ..., C)`` for targets ``(B, ...)``, as language models give; or, where
            only that fits, ``(B, C, ...)``, as image models give.
        targets: classes, of any integer dtype; or probabilities in the shape of the output, with
            the classes in dimension 1.
        torch_layout: for ``torch.nn.functional.cross_entropy`` passed by the caller, who means
            dimension 1: refuse shapes that fit both ways and mean different things.

    Raises:
        InputError: if the shapes do not fit, or fit twice under ``torch_layout``.

    >>> cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
    tensor(1.3863)
    """
    if targets.is_floating_point():
        if output.shape != targets.shape:
            raise InputError(
                f"cross entropy with {_layout(output, targets)}: probabilities must have the "
                "output's shape"
            )
        return functional.cross_entropy(output, targets)
    last = output.ndim == targets.ndim + 1 and output.shape[:-1] == targets.shape
    second = (
        output.ndim == targets.ndim + 1
        and output.ndim > 2
        and output.shape[:1] + output.shape[2:] == targets.shape
    )
    if last and second and torch_layout:
        raise InputError(
            f"cross entropy with {_layout(output, targets)} reads two ways, classes in dimension "
            "1 or in the last: leave loss_fn out for the last, or pass a function such as "
            "lambda output, targets: cross_entropy(output, targets) for dimension 1"
        )
    if last:
        return functional.cross_entropy(
            output.reshape(-1, output.shape[-1]), targets.flatten().long()
        )
    if second:
        return functional.cross_entropy(output, targets.long())
    raise InputError(
        f"cross entropy with {_layout(output, targets)}: expected logits (B, ..., C) or "
        "(B, C, ...) for targets (B, ...); pass a loss_fn for another layout"
    )


def _mean_squared_error(output: Tensor, targets: Tensor) -> Tensor:
    # torch would broadcast, and train (B, 1) against (B,) on B x B pairs.
    if output.shape != targets.shape:
        raise InputError(
            f"mean squared error with {_layout(output, targets)}: expected equal shapes; reshape "
            "the targets, or pass a loss_fn"
        )
    return functional.mse_loss(output, targets.to(output.dtype))


def _name_of(loss_fn: LossFunction) -> str | None:
    """Return the name in ``torch.nn.functional`` of a function, or of a module with default
    settings.
    """
    if isinstance(loss_fn, nn.Module):
        kind = type(loss_fn)
        is_default = kind in LOSS_MODULES and _settings(loss_fn) == _settings(kind())
        return LOSS_MODULES[kind] if is_default else None
    name = getattr(loss_fn, "__name__", None)
    if isinstance(name, str) and getattr(functional, name, None) is loss_fn and _is_loss(loss_fn):
        return name
    return None


def _settings(module: nn.Module) -> str:
    """Return a loss module's settings and class weights, as text so that tensors compare."""
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    return repr({**public, "training": True, "buffers": dict(module.named_buffers())})


def _is_loss(fn: Any) -> bool:
    """Tell whether a member of ``torch.nn.functional`` is a loss of an input and a target alone."""
    if not callable(fn) or not getattr(fn, "__module__", "").startswith("torch."):
        return False
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # built into torch, without a signature: no loss is
        return False
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    return required == ["input", "target"]


def _layout(output: Tensor, targets: Tensor) -> str:
    return (
        f"an output of shape {tuple(output.shape)} and {targets.dtype} targets of shape "
        f"{tuple(targets.shape)}"
    )


def _got(targets: Any) -> str:
    if targets is None:
        return "there are no targets: pass targets, or a loss_fn that needs none"
    kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
    return f"got targets of {kind}"
