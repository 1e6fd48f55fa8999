"""The library names here, and nowhere else, whatever torch keeps to itself or may still change.

What differs between versions of torch is told apart here. :data:`OLDEST` is the first release that
has all of it; ``tests/boundary/test_compat.py`` holds that each name exists and does what is
relied on.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.autograd.function import BackwardCFunction
from torch.fx._pytree import tree_flatten_spec
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.modules import module as _module
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = [
    "BackwardCFunction",
    "HigherOrderOperator",
    "OpOverload",
    "PassBase",
    "PassResult",
    "TorchFunctionMode",
    "pytree",
    "tree_flatten_spec",
]

OLDEST = (2, 10)
"""The oldest torch that the library runs on: ``TreeSpec.child`` is of this release."""


# Operators


def schema_of(target: Any) -> Any:
    """Return the schema of an operator; None for other callables and for names.

    >>> schema_of(torch.ops.aten.linear.default).arguments[1].name, schema_of(len)
    ('weight', None)
    """
    return getattr(target, "_schema", None)


def softmax_backward(gradient: Tensor, output: Tensor, dim: int) -> Tensor:
    """Return the backward pass of softmax, by its kernel."""
    moved: Tensor = torch.ops.aten._softmax_backward_data(gradient, output, dim, output.dtype)
    return moved


def attention_and_weights(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, **options: Any
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention without a fused kernel, and the softmax in it."""
    output, weights = torch.ops.aten._scaled_dot_product_attention_math.default(
        query, key, value, mask, 0.0, is_causal, **options
    )
    return output, weights


NO_GRAD_REGION: Any = torch.ops.higher_order.wrap_with_set_grad_enabled
"""What ``torch.export`` makes of ``torch.no_grad``."""


def is_of_torch(backward: type) -> bool:
    """Tell whether a backward pass in Python is torch's own, as that of ``torch.cond`` is."""
    return forward_class(backward).__module__.startswith("torch._higher_order_ops")


def forward_class(backward: type) -> type:
    """Return the ``torch.autograd.Function`` whose backward pass it is; itself where that is not
    told.
    """
    kind: type = getattr(backward, "_forward_cls", backward)
    return kind


# Sizes


def hint_of(size: int | torch.SymInt) -> int | None:
    """Return a size at the batch of the capture; None where the size depends on the data."""
    return size if isinstance(size, int) else size.node.hint


def shape_given(
    shape: Sequence[Any], known: Iterable[tuple[Sequence[Any], Sequence[int]]]
) -> tuple[int, ...] | None:
    """Return what a captured shape is, where other shapes of the capture are known.

    Args:
        shape: of whole numbers and symbolic sizes.
        known: other captured shapes, each with what it is.

    Returns:
        The shape; None where the others do not decide it, or are not what was captured.
    """
    sizes: dict[Any, int] = {}
    for captured, actual in known:
        if len(captured) != len(actual):
            return None
        for size, value in zip(map(_expression, captured), actual, strict=True):
            if sizes.setdefault(size, size if isinstance(size, int) else value) != value:
                return None
    given = [e if isinstance(e, int) else e.subs(sizes) for e in map(_expression, shape)]
    is_known = all(isinstance(e, int) or e.is_Integer for e in given)
    return tuple(map(int, given)) if is_known else None


def _expression(size: int | torch.SymInt) -> Any:
    return size if isinstance(size, int) else size.node.expr


def depends_on_data(size: Any) -> bool:
    """Tell whether a size is known only once the data are, as the number of an expert's tokens
    is.
    """
    # Here, as it brings sympy, half a second of import.
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(free_unbacked_symbols(size))


# Graphs


GUARDS = "_guards_fn"
"""The module of an exported program that checks the inputs' shapes."""

OF_EXPORT = "_empty_nn_module_stack"
"""torch.export's name for the whereabouts of operations that it adds itself."""


def guards_of(exported: fx.GraphModule, otherwise: Any) -> Any:
    """Return what checks the inputs of an exported program."""
    return getattr(exported, GUARDS, otherwise)


def rename(node: fx.Node, name: str) -> None:
    """Give a node another name, or one like it where that is taken."""
    node._rename(name)


def taken_names() -> set[str]:
    """Return the names that a graph module needs for itself, beside those of any module."""
    return {*vars(fx.GraphModule), "_graph"} - set(vars(nn.Module))


def input_spec(graph: fx.Graph) -> pytree.TreeSpec:
    """Return how the arguments of a graph that ``torch.export`` made flatten to its
    placeholders.
    """
    return _codegen(graph).pytree_info.in_spec


def return_first_alone(graph: fx.Graph) -> None:
    """Let a graph whose output node has lost all but the first result's leaves return that one."""
    info = _codegen(graph).pytree_info
    assert info.out_spec is not None
    graph.set_codegen(_PyTreeCodeGen(info._replace(out_spec=info.out_spec.child(0))))


def _codegen(graph: fx.Graph) -> _PyTreeCodeGen:
    codegen = graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    return codegen


# Modules

REGISTRIES = ("_parameters", "_buffers", "_modules")
"""The attributes of a module that hold what is registered in it."""


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters that are registered in a module itself, to be read or changed."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers that are registered in a module itself, to be read or changed."""
    return module._buffers


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the modules that are registered in a module itself, whatever its ``__getattr__``
    does.
    """
    return module._modules


def adopt(module: nn.Module, other: nn.Module) -> None:
    """Give a module all that is registered in another: the same dictionaries, not copies."""
    for name in (*REGISTRIES, "_non_persistent_buffers_set"):
        vars(module)[name] = vars(other)[name]


def unwrapped_by_dynamo(module: nn.Module) -> nn.Module | None:
    """Return the module inside of what ``torch.compile`` returns; None for any other."""
    inner = vars(module).get("_modules", {}).get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else None


def forget_compilation(module: nn.Module) -> None:
    """Undo ``Module.compile`` on a copy, whose compiled call would be the original's."""
    vars(module).pop("_compiled_call_impl", None)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Let what is compiled run as it was written, while it lasts.

    Operations such as ``torch.cond`` and ``flex_attention`` compile what they are given each time
    that they are called, without which they do not run: what calls ``torch.compile`` meanwhile
    gets what it calls for.
    """
    compiles: Any = torch.compile

    def compiled(*args: Any, **kwargs: Any) -> Any:
        function = compiles(*args, **kwargs)
        if isinstance(function, nn.Module):  # of the user's, to be run as it was written
            return function

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.compiler.set_stance("default"):
                return function(*args, **kwargs)

        return call

    with torch.compiler.set_stance("force_eager"):
        torch.compile = compiled
        try:
            yield
        finally:
            torch.compile = compiles


def apply_to_tensors(module: nn.Module, function: Any) -> None:
    """Replace each parameter and buffer of a module by a function of it, as ``Module.to`` does."""
    module._apply(function)  # type: ignore[no-untyped-call]


EXTRA_STATE = "_extra_state"
"""What the key of ``Module.get_extra_state`` in a state dict ends in."""


# Hooks

FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
BACKWARD_HOOKS = ("_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS: dict[str, Any] = vars(_module)
"""Where the hooks on all modules are, by :func:`global_name`."""


def global_name(kind: str) -> str:
    """Return the name among :data:`GLOBAL_HOOKS` of a kind of hooks on all modules."""
    return "_global" + kind


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """Return the hooks before and after a module's forward pass, by their keys."""
    return {**module._forward_pre_hooks, **module._forward_hooks}


def remove_forward_hooks(module: nn.Module, hook: Any) -> None:
    """Take a hook off a module, with all that is noted of it."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, held in hooks.items() if held is hook]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)


def state_dict_hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return the hooks behind ``state_dict``, and those before ``load_state_dict``."""
    return module._state_dict_hooks, module._load_state_dict_pre_hooks


def gradient_hooks(tensor: Tensor) -> dict[int, Any]:
    """Return the hooks on a tensor's gradient."""
    return tensor._backward_hooks or {}


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Tell whether the optimizer's constructor called that of torch, which makes hooks possible."""
    return "_optimizer_step_pre_hooks" in vars(optimizer)


# Tensors


def version_of(tensor: Tensor) -> int:
    """Return a number that grows with each write to a tensor; 0 where none is kept."""
    return 0 if tensor.is_inference() else tensor._version


def times_written(tensor: Tensor) -> int:
    """Return how often a tensor was written in place, as far as autograd knows."""
    return tensor._version


def memory_of(tensor: Tensor) -> Any:
    """Return what tensors that share memory have in common, and no others; the shards of
    ``DTensor`` too.

    A tensor that does not tell where its memory is shares it with itself alone.
    """
    local = getattr(tensor, "_local_tensor", tensor)
    try:
        return local.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, or batched by vmap
        return None if local is not tensor else ("tensor", id(tensor))


# Sharding

_FSDP_MARKS = ("__composable_api_state", "_is_fsdp_managed_module", "_fsdp_use_orig_params")


def marks_of_sharding(module: nn.Module) -> list[str]:
    """Return the attributes that ``fully_shard`` has given a module."""
    return [name for name in vars(module) if name.startswith(_FSDP_MARKS)]


def is_hook_of_sharding(hook: Any) -> bool:
    """Tell whether ``fully_shard`` registered a hook."""
    owner = type(getattr(hook, "__self__", None))
    return owner.__module__.startswith("torch.distributed.fsdp")


def is_hook_of_tensor_parallelism(hook: Any) -> bool:
    """Tell whether ``parallelize_module`` registered a hook."""
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.distributed.tensor")


@contextlib.contextmanager
def without_gradient_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let no hook on tensors' gradients run while it lasts, nor what runs behind them."""
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    hooks = [h for t in tensors for kind in kinds if (h := getattr(t, kind, None)) is not None]
    held = [dict(each) for each in hooks]
    try:
        for each in hooks:
            each.clear()
        yield
    finally:
        for each, those in zip(hooks, held, strict=True):
            each.clear()
            each.update(those)


@contextlib.contextmanager
def without_sharding_classes(model: nn.Module) -> Iterator[None]:
    """Let the modules of a model have the classes that ``fully_shard`` found, while it lasts."""
    from torch.distributed.fsdp import FSDPModule

    kinds = {module: type(module) for module in model.modules() if isinstance(module, FSDPModule)}
    try:
        for module, kind in kinds.items():
            module.__class__ = kind.__bases__[1]
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


def outside_transforms() -> contextlib.AbstractContextManager[Any]:
    """Leave the transforms of ``torch.func`` that are around, while it lasts.

    Ranks exchange tensors by autograd functions, which have no rule for ``vmap``.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


# Data


def forget_workers(loader: Any) -> None:
    """Let a copy of a ``DataLoader`` make workers of its own, and leave its original's alone."""
    vars(loader)["_iterator"] = None
