"""Every private or young symbol of torch: that it exists, and does what is relied on."""

import ast
import copy
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

import flerm_fx
from flerm_fx.boundary import compat, compat_sharding
from flerm_fx.boundary.compat import pytree

PACKAGE = Path(flerm_fx.__file__).parent
aten = torch.ops.aten


def exported(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    program = torch.export.export(model, inputs, strict=False)
    return program.module(check_guards=True)  # type: ignore[return-value]


# Versions


def test_the_oldest_torch_is_the_one_that_is_declared() -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    (declared,) = [d for d in tomllib.loads(text)["project"]["dependencies"] if "torch" in d]
    assert declared == "torch>=" + ".".join(map(str, compat.OLDEST))
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert version >= compat.OLDEST


# Operators


def test_operators_tell_their_schema() -> None:
    assert isinstance(aten.add.Tensor, compat.OpOverload)
    assert isinstance(torch.ops.higher_order.cond, compat.HigherOrderOperator)
    schema = compat.schema_of(aten.relu_.default)
    assert (schema.name, schema.overload_name, schema.is_mutable) == ("aten::relu_", "", True)
    assert schema.returns[0].alias_info is not None
    first = compat.schema_of(aten.add.Tensor).arguments
    assert [(a.name, a.default_value) for a in first][2] == ("alpha", 1)
    assert compat.schema_of(len) is compat.schema_of("x") is None


def test_shapes_of_a_capture_follow_from_those_of_its_inputs() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        nn.Flatten(0, 1), (torch.randn(4, 3, 5),), dynamic_shapes=({0: batch},), strict=False
    )
    (given,) = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"]
    (node,) = program.graph.output_node().all_input_nodes
    returned = node.meta["val"]
    assert compat.shape_given(returned.shape, [(given.shape, (7, 3, 5))]) == (21, 5)
    # Not what was captured, or not enough to tell.
    assert compat.shape_given(returned.shape, [(given.shape, (7, 4, 5))]) is None
    assert compat.shape_given(returned.shape, [(given.shape, (7, 3))]) is None
    assert compat.shape_given(returned.shape, []) is None


def test_the_kernel_of_softmax_is_its_jacobian() -> None:
    x, row = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    _, expected = torch.func.jvp(lambda z: z.softmax(1), (x,), (row,))
    torch.testing.assert_close(compat.softmax_backward(row, x.softmax(1), 1), expected)


def test_attention_gives_its_weights() -> None:
    query, key, value = (torch.randn(2, 3, 4).double() for _ in range(3))
    expected = (query @ key.mT / math.sqrt(4)).softmax(-1)
    found, weights = compat.attention_and_weights(query, key, value, None, False, scale=None)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(found, expected @ value)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient


def test_a_backward_pass_in_python_tells_its_function() -> None:
    backward = type(Twice.apply(torch.ones(1, requires_grad=True)).grad_fn)
    assert compat.BackwardCFunction in backward.__mro__
    assert compat.forward_class(backward) is Twice
    assert not compat.is_of_torch(backward)
    own = type("Backward", (), {"__module__": "torch._higher_order_ops.cond"})
    assert compat.is_of_torch(own)


class Quiet(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x + 1
        return x * y


def test_a_region_without_gradients_is_an_operator() -> None:
    program = torch.export.export(Quiet(), (torch.ones(3),), strict=False)
    targets = [node.target for node in program.module().graph.nodes]  # type: ignore[union-attr]
    assert compat.NO_GRAD_REGION in targets


# Sizes


def test_sizes_have_hints_or_depend_on_data() -> None:
    class Finds(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, x.nonzero()

    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Finds(), (torch.ones(5),), dynamic_shapes=dynamic, strict=False)
    doubled, found = (node.meta["val"].shape[0] for node in program.graph.output_node().args[0])  # type: ignore[union-attr]
    assert compat.hint_of(doubled) == compat.hint_of(5) == 5
    assert not compat.depends_on_data(doubled)
    assert compat.hint_of(found) is None
    assert compat.depends_on_data(found)


# Graphs


def test_an_exported_graph_has_guards_and_a_spec() -> None:
    graph_module = exported(nn.Linear(2, 1), torch.ones(3, 2))
    assert any(node.target == compat.GUARDS for node in graph_module.graph.nodes)
    guards = compat.guards_of(graph_module, None)
    with pytest.raises(AssertionError):
        guards(torch.ones(3, 4))
    assert compat.guards_of(fx.symbolic_trace(nn.ReLU()), "none") == "none"
    spec = compat.input_spec(graph_module.graph)
    given = torch.ones(3, 2)
    (flat,) = compat.tree_flatten_spec(((given,), {}), spec)
    assert flat is given


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"a": x + 1, "b": x + 2}, x + 3


def test_a_graph_returns_the_first_of_its_results() -> None:
    graph_module = exported(Pair(), torch.zeros(1))
    (returned,) = graph_module.graph.output_node().args
    graph_module.graph.output_node().args = (tuple(returned)[:2],)  # type: ignore[arg-type]
    compat.return_first_alone(graph_module.graph)
    graph_module.recompile()
    found = graph_module(torch.zeros(1))
    assert {name: value.item() for name, value in found.items()} == {"a": 1.0, "b": 2.0}


def test_what_export_adds_itself_is_in_a_module_of_that_name() -> None:
    from torch._export.passes import _node_metadata_hook as hook

    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(1)
    node = graph.call_function(aten.neg.default, (x,))
    hook._node_metadata_hook(node)
    ((path, _),) = node.meta["nn_module_stack"].values()
    assert path.startswith(compat.OF_EXPORT)


def test_nodes_are_renamed_and_graph_modules_have_names_of_their_own() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    compat.rename(node, "y")
    assert node.name == "y"
    assert {"graph", "code", "_graph", "recompile"} <= compat.taken_names()
    assert "forward" not in compat.taken_names()


def test_a_pass_is_called_between_what_it_requires_and_ensures() -> None:
    order = []

    class Pass(compat.PassBase):
        def requires(self, graph_module: fx.GraphModule) -> None:
            order.append("requires")

        def call(self, graph_module: fx.GraphModule) -> compat.PassResult:
            order.append("call")
            return compat.PassResult(graph_module, True)

        def ensures(self, graph_module: fx.GraphModule) -> None:
            order.append("ensures")

    graph_module = fx.symbolic_trace(nn.ReLU())
    result = Pass()(graph_module)
    assert result is not None
    assert (result.graph_module, result.modified) == (graph_module, True)
    assert order == ["requires", "call", "ensures"]


# Pytrees


def test_trees_flatten_and_come_back() -> None:
    tree = {"a": [1, (2, None)], "b": torch.zeros(2)}
    leaves, spec = pytree.tree_flatten(tree)
    assert leaves[:3] == [1, 2, None]  # None is a leaf
    assert pytree.tree_leaves(tree)[:3] == leaves[:3]
    assert pytree.tree_unflatten(leaves, spec)["a"] == [1, (2, None)]
    assert isinstance(spec, pytree.TreeSpec)
    assert [spec.child(i).num_leaves for i in range(2)] == [3, 1]
    assert pytree.tree_map(str, [1, (2,)]) == ["1", ("2",)]
    assert pytree.tree_map_only(int, lambda n: n + 1, [1, "x"]) == [2, "x"]
    (path, leaf), *_ = pytree.tree_leaves_with_path(tree)
    assert (pytree.keystr(path), leaf) == ("['a'][0]", 1)


# Modules


class Registers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("lost", torch.ones(1), persistent=False)
        self.inner = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.weight)  # type: ignore[no-any-return]


def test_what_is_registered_is_in_dictionaries() -> None:
    module = Registers()
    assert set(compat.REGISTRIES) <= set(vars(module))
    assert [*compat.own_parameters(module)] == ["weight"]
    assert [*compat.own_buffers(module)] == ["kept", "lost"]
    assert [*compat.own_modules(module)] == ["inner"]
    compat.own_parameters(module).clear()
    assert not hasattr(module, "weight")


def test_an_adopted_module_has_the_same_state() -> None:
    module, other = nn.Module(), Registers()
    compat.adopt(module, other)
    assert list(module.state_dict()) == list(other.state_dict())
    module.register_parameter("more", nn.Parameter(torch.ones(1)))
    assert other.more is module.more


def test_compiled_modules_are_seen_through() -> None:
    module = nn.Linear(2, 2)
    compiled: Any = torch.compile(module, backend="eager")
    assert compat.unwrapped_by_dynamo(compiled) is module
    assert compat.unwrapped_by_dynamo(module) is None
    module.compile(backend="eager")
    added = set(vars(module)) & {"_compiled_call_impl"}
    assert added
    compat.forget_compilation(module)
    assert not set(vars(module)) & added
    assert module(torch.ones(1, 2)).shape == (1, 2)


def test_what_is_compiled_runs_as_it_was_written_but_for_operations_that_compile() -> None:
    compiled: list[str] = []

    def backend(module: fx.GraphModule, _: Any) -> Any:
        compiled.append("user's")
        return module

    def twice(x: Tensor) -> Tensor:
        found: Tensor = torch.cond(x.sum() > 0, lambda x: 2 * x, lambda x: x - 1, (x,))
        return found

    called = torch.compile(twice, backend=backend)
    before = torch.compile
    with compat.uncompiled():
        assert torch.equal(called(torch.ones(2)), torch.full((2,), 2.0))
        module: Any = torch.compile(nn.Linear(2, 2), backend=backend)
        assert compat.unwrapped_by_dynamo(module) is not None
        assert module(torch.ones(1, 2)).shape == (1, 2)
    assert compiled == []
    assert torch.compile is before
    assert torch.equal(called(-torch.ones(2)), torch.full((2,), -2.0))
    assert compiled == ["user's"]


def test_each_tensor_of_a_module_is_replaced() -> None:
    module = Registers()
    compat.apply_to_tensors(module, lambda t: t.double())
    assert {t.dtype for t in module.state_dict().values()} == {torch.float64}


def test_extra_state_has_its_key() -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> int:
            return 3

    assert Extra().state_dict() == {compat.EXTRA_STATE: 3}


# Hooks


def test_hooks_are_where_they_are_looked_for() -> None:
    module = nn.Linear(2, 1)
    hook = lambda *args, **kwargs: None  # noqa: E731
    handles: list[Any] = [
        module.register_forward_pre_hook(hook),
        module.register_forward_hook(hook),
        module.register_full_backward_pre_hook(hook),
        module.register_full_backward_hook(hook),
    ]
    for kind in (*compat.FORWARD_HOOKS, *compat.BACKWARD_HOOKS):
        assert list(vars(module)[kind].values()) == [hook]
        assert compat.GLOBAL_HOOKS[compat.global_name(kind)] is not None
    seen: list[str] = []
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: seen.append("x"))
    try:
        assert len(compat.GLOBAL_HOOKS[compat.global_name("_forward_hooks")]) >= 1
        compat.GLOBAL_HOOKS[compat.global_name("_forward_hooks")].pop(everywhere.id)
        module(torch.ones(1, 2))
        assert not seen
    finally:
        everywhere.remove()
    for handle in handles:
        handle.remove()


def test_forward_hooks_are_removed_with_all_that_is_noted_of_them() -> None:
    module, called = nn.Linear(2, 1), []

    def hook(*args: Any, **kwargs: Any) -> None:
        called.append(1)

    module.register_forward_pre_hook(hook, with_kwargs=True)
    module.register_forward_hook(hook, with_kwargs=True, always_call=True)
    kept = module.register_forward_hook(lambda *_: None)
    assert len(compat.forward_hooks(module)) == 3
    compat.remove_forward_hooks(module, hook)
    assert list(compat.forward_hooks(module)) == [kept.id]
    module(torch.ones(1, 2))
    assert not called
    assert not any("hooks_" in name and vars(module)[name] for name in vars(module))


def test_hooks_of_state_dicts() -> None:
    module = nn.Linear(2, 1)
    module.register_state_dict_post_hook(lambda *_: None)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(lambda *_: None)  # type: ignore[no-untyped-call]
    saving, loading = compat.state_dict_hooks(module)
    assert len(saving) == len(loading) == 1
    saving.clear()
    assert not compat.state_dict_hooks(module)[0]


def test_hooks_of_gradients_and_of_steps() -> None:
    weight = nn.Parameter(torch.ones(1))
    assert compat.gradient_hooks(weight) == {}
    hook = weight.register_hook(lambda gradient: None)
    assert list(compat.gradient_hooks(weight)) == [hook.id]
    optimizer = torch.optim.SGD([weight], lr=0.1)
    assert compat.has_step_hooks(optimizer)
    del vars(optimizer)["_optimizer_step_pre_hooks"]
    assert not compat.has_step_hooks(optimizer)


# Tensors


def test_a_write_to_a_tensor_is_seen() -> None:
    x = torch.zeros(2)
    before = compat.version_of(x)
    x.view(1, 2).add_(1)
    assert compat.version_of(x) > before
    with torch.inference_mode():
        assert compat.version_of(torch.zeros(1)) == 0


def test_memory_that_is_shared() -> None:
    x = torch.zeros(4)
    assert compat.memory_of(x) == compat.memory_of(x[1:]) != compat.memory_of(x.clone())
    sparse = torch.eye(2).to_sparse()  # whose memory is not told
    assert compat.memory_of(sparse) == compat.memory_of(sparse)
    assert compat.memory_of(sparse) != compat.memory_of(sparse.clone())

    class Sharded:
        _local_tensor = x

    assert compat.memory_of(Sharded()) == compat.memory_of(x)  # type: ignore[arg-type]


def test_what_was_written_in_place_is_counted() -> None:
    x = torch.zeros(4)
    before = compat.times_written(x)
    x.sum()
    assert compat.times_written(x) == before
    x[1:].add_(1)
    assert compat.times_written(x) == before + 1


def test_a_mode_sees_functions_of_tensors() -> None:
    seen = []

    class Sees(compat.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Sees():
        torch.zeros(2).sum()
    assert torch.Tensor.sum in seen


# Sharding and data


def test_sharding_leaves_marks_and_hooks(one_process: None) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model = nn.Sequential(nn.Linear(2, 2))
    plain = set(vars(model))
    fully_shard(model)  # type: ignore[arg-type]
    assert set(compat.marks_of_sharding(model)) == set(vars(model)) - plain
    hooks = compat.forward_hooks(model).values()
    assert hooks
    assert all(map(compat.is_hook_of_sharding, hooks))
    assert not any(map(compat.is_hook_of_tensor_parallelism, hooks))
    assert isinstance(model, FSDPModule)
    with compat.without_sharding_classes(model):
        assert type(model) is nn.Sequential
    assert isinstance(model, FSDPModule)


def test_tensor_parallelism_leaves_hooks(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = nn.Linear(2, 2)
    parallelize_module(model, init_device_mesh("cpu", (1,)), ColwiseParallel())
    hooks = compat.forward_hooks(model).values()
    assert hooks
    assert all(map(compat.is_hook_of_tensor_parallelism, hooks))
    assert not any(map(compat.is_hook_of_sharding, hooks))


def test_a_sharded_tensor_is_gathered_within_a_transform(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    weight = distribute_tensor(torch.eye(2), init_device_mesh("cpu", (1,)), [Shard(0)])

    def read(x: Tensor) -> Tensor:
        with compat.outside_transforms():
            whole = weight.full_tensor()
        return x @ whole

    x = torch.rand(3, 2)
    assert torch.equal(torch.func.vmap(read)(x), x)


def sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    fully_shard(model[0])
    fully_shard(model)
    return model


def test_groups_of_sharding_tell_their_place_and_take_a_reduction(one_process: None) -> None:
    model = sharded()
    groups = compat_sharding.groups_of_sharding(model)
    assert len(groups) == 2
    assert not compat_sharding.groups_of_sharding(nn.Linear(2, 2))
    assert [compat_sharding.place_of_data(group) for group in groups] == [(0, 1), (0, 1)]
    assert not any(map(compat_sharding.keeps_on_cpu, groups))
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    before = [dict(vars(group)) for group in groups]
    with compat_sharding.reduced_by(groups, before[0]["_reduce_scatter_comm"]):
        assert all(group.reduce_grads for group in groups)
        model(torch.ones(4, 2)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    for group, attributes_before in zip(groups, before, strict=True):
        for name in ("_reduce_scatter_comm", "reduce_grads", "gradient_divide_factor"):
            assert vars(group)[name] is attributes_before[name]


def test_sharding_calls_hooks_on_gradients_where_it_puts_them(one_process: None) -> None:
    model, heard = sharded(), []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: heard.append((name, p.grad.to_local().shape))
        )
    model(torch.ones(4, 2)).sum().backward()
    assert sorted(heard) == [(name, p.shape) for name, p in sorted(model.named_parameters())]


def test_an_error_amid_a_run_of_a_sharded_model_is_forgotten(one_process: None) -> None:
    model, x = sharded(), torch.ones(4, 2)
    model(x).sum().backward()
    expected = [p.grad.full_tensor() for p in model.parameters()]  # type: ignore[union-attr]

    def fails(*_: Any) -> None:
        raise ValueError("amid a run")

    def fails_backwards(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(fails)

    for hook in (fails, fails_backwards):
        model.zero_grad()
        handle = model[0].register_forward_hook(hook)
        with pytest.raises(ValueError, match="amid a run"):
            model(x).sum().backward()
        handle.remove()
        compat_sharding.forget_run(model)
        for module in (model[0], model):
            module.reshard()
        model.zero_grad()
        model(x).sum().backward()
        found = [p.grad.full_tensor() for p in model.parameters()]  # type: ignore[union-attr]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_no_hook_on_gradients_runs() -> None:
    leaf, heard = nn.Parameter(torch.ones(2)), []
    leaf.register_hook(lambda gradient: heard.append("gradient"))
    leaf.register_post_accumulate_grad_hook(lambda p: heard.append("accumulated"))
    with compat.without_gradient_hooks([leaf, nn.Parameter(torch.ones(1))]):
        leaf.sum().backward()
    assert not heard
    leaf.sum().backward()
    assert heard == ["gradient", "accumulated"]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_copied_loader_makes_workers_of_its_own() -> None:
    loader = DataLoader(torch.arange(4), batch_size=2)  # type: ignore[arg-type]
    vars(loader)["_iterator"] = iter(())  # as of persistent workers, read elsewhere
    twin = copy.copy(loader)
    compat.forget_workers(twin)
    assert vars(twin)["_iterator"] is None
    assert vars(loader)["_iterator"] is not None


# The one place


HERE = ("boundary/compat.py", "boundary/compat_sharding.py")


def test_every_name_has_a_test() -> None:
    trees = [ast.parse((PACKAGE / path).read_text(encoding="utf-8")) for path in HERE]
    names = set(compat.__all__)
    for node in (node for tree in trees for node in tree.body):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    public = {name for name in names if not name.startswith("_")}
    used = set(
        re.findall(r"compat(?:_sharding)?\.(\w+)", Path(__file__).read_text(encoding="utf-8"))
    )
    assert public - used == {"pytree"}  # imported by name above


OF_PYTHON = {"_replace", "_getframe"}
OF_TORCH = {
    name
    for holder in (nn.Module(), torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    for name in vars(holder)
    if name.startswith("_")
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def literals(tree: ast.AST) -> set[str]:
    found = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    return {value for value in found if isinstance(value, str)}


def attributes(tree: ast.AST) -> list[ast.Attribute]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and private(n.attr)]


def imported(tree: ast.AST) -> set[str]:
    """The private parts of what is imported from torch."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found.update((node.module or "").split("."), (alias.name for alias in node.names))
        elif isinstance(node, ast.Import):
            found.update(*(a.name.split(".") for a in node.names if a.name.startswith("torch")))
    return set(filter(private, found))


def own(tree: ast.AST) -> set[str]:
    """The private names that a file gives: functions, variables and attributes."""
    functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    variables = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return (
        functions | variables | {a.attr for a in attributes(tree) if isinstance(a.ctx, ast.Store)}
    )


def test_nothing_private_of_torch_is_named_elsewhere() -> None:
    trees = {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
    }
    here = set().union(*(literals(trees.pop(path)) for path in HERE))
    hidden = OF_TORCH | {name for name in here if re.fullmatch(r"_[a-z]\w*", name)}
    found = {}
    for name, tree in trees.items():
        foreign = {a.attr for a in attributes(tree)} - (own(tree) - OF_TORCH) - OF_PYTHON
        if named := foreign | imported(tree) | (literals(tree) & hidden):
            found[name] = named
    assert not found
