"""The base profile: its file, what damages it, and the mean over seeds."""

import builtins
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import safetensors
import safetensors.torch
import torch

from flerm_fx.errors import InputError, OptimizerError, ProfileError
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.fields import FORMAT
from flerm_fx.profile.moment import Moment
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.profile.trajectory import Trajectory
from flerm_fx.recipe.optimizers import Optimizers
from flerm_fx.recipe.schedule import settling_steps, start_steps
from flerm_fx.recipe.update_rule import UpdateRule

NAMES = ("body.weight", "body.bias", "head.weight")
OUTPUTS = (4.0, 3.0, 1.0, 1.5, 2.0, 2.2, 2.4, 2.5, 2.2, 2.0)
LOSSES = tuple(4.0 - 0.25 * step for step in range(10))
"""Sizes of outputs at the settling steps of ten, 0 to 5 and 7 to 10."""
SHAPES = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (2, 4)}


def parameter_graph() -> nx.DiGraph:
    graph = nx.DiGraph(complete=True)
    slots = {"body.weight": ("weight", 2), "body.bias": ("bias", 1), "head.weight": ("weight", 2)}
    for order, (name, (slot, rank)) in enumerate(slots.items()):
        graph.add_node(
            name,
            op="aten.linear",
            slot=slot,
            rank=rank,
            kind="Linear",
            order=order,
            uses=1,
            path=name.rpartition(".")[0],
        )
    graph.add_edge("body.weight", "head.weight")
    graph.add_edge("body.bias", "head.weight")
    return graph


def estimates(scale: float = 1.0, *, stderr: float = 0.0) -> dict[str, Estimate]:
    return {
        "body.weight": Estimate(scale * 0.1, stderr, "exact", 0),
        "body.bias": Estimate(scale * math.pi, stderr, "sampled", 16, "batch-coupled examples"),
        "head.weight": Estimate(scale * 3.0, stderr, "sampled", 16),
    }


def trajectory(scale: float = 1.0) -> Trajectory:
    first, second = estimates(scale), estimates(2 * scale)
    course = {name: (first[name], second[name]) for name in NAMES}
    return Trajectory((0, 100), (0.1, 0.05), course, (3.0 * scale, 2.0 * scale))


def moments(
    settle: int,
    output_rms: Sequence[float] = OUTPUTS,
    update_sizes: Mapping[str, float] | None = None,
    losses: Sequence[float] = LOSSES,
) -> dict[int, Moment]:
    """A moment for each step that has a size of the outputs."""
    if not settle:
        return {}
    of_start = start_steps(settle, 0)
    return {
        step: Moment(
            estimates(2.0) if step in of_start else {},
            rms,
            {} if step else update_sizes or dict.fromkeys(NAMES, 1.0),
            loss,
        )
        for step, rms, loss in zip(settling_steps(settle, 0), output_rms, losses, strict=False)
    }


def run_of(
    optimizer: UpdateRule,
    learning_rate: float,
    others: Sequence[tuple[UpdateRule, float]] = (),
    held: Mapping[str, int] | None = None,
) -> Optimizers:
    rules, rates = zip((optimizer, learning_rate), *others, strict=True)
    return Optimizers(rules, rates, held or {})


ADAMW = UpdateRule.from_name("AdamW", {"betas": (0.9, 0.95)})


RUN = ("optimizer", "learning_rate", "others", "held")


def profile(**changes: Any) -> BaseProfile:
    settle = changes.get("settle", 10)
    valid = type(settle) is int and settle >= 0
    run = {key: changes.pop(key) for key in RUN if key in changes}
    columns = ("output_rms", "update_sizes", "losses")
    sizes = {key: changes.pop(key) for key in columns if key in changes}
    values: dict[str, Any] = {
        "parameters": NAMES,
        "shapes": SHAPES,
        "start": estimates(),
        "trajectory": trajectory(),
        "graph": parameter_graph(),
        "optimizers": run_of(**({"optimizer": ADAMW, "learning_rate": 10**-1.75} | run)),
        "settle": 10,
        "moments": moments(settle if valid else 0, **sizes),
        "loss": "cross_entropy",
        "method": "auto",
        "rtol": 0.05,
        "seed": 2**63 + 1,
        "pool": ((torch.randn(5, 3), torch.arange(5) % 2),),
        "training": True,
        "resolve_after": 4,
        "late": estimates(0.5),
    }
    return BaseProfile(**(values | changes))


def same(left: Any, right: Any) -> bool:
    """Equal nested inputs, of equal types and dtypes."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and left.equal(right)
    if isinstance(left, tuple | list):
        return type(left) is type(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "base.safetensors"


def test_round_trip(path: Path) -> None:
    saved = profile()
    saved.save(path)
    read = BaseProfile.load(str(path))
    for name in ("parameters", "shapes", "start", "optimizer", "learning_rate", "settle", "loss"):
        assert getattr(read, name) == getattr(saved, name)
    for name in ("method", "rtol", "seed", "training", "resolve_after", "late", "versions"):
        assert getattr(read, name) == getattr(saved, name)
    assert read.output_rms == saved.output_rms
    assert read.update_sizes == saved.update_sizes
    assert dict(read.moments) == dict(saved.moments)
    assert vars(read.settling) == vars(saved.settling)
    assert tuple(read.start) == tuple(read.late) == NAMES
    assert vars(read.trajectory) == vars(saved.trajectory)
    assert nx.utils.graphs_equal(read.graph, saved.graph)
    assert same(read.pool, saved.pool)
    assert os.listdir(path.parent) == [path.name]
    read.save(path)
    assert same(BaseProfile.load(path).pool, saved.pool)


def test_round_trip_of_several_optimizers(path: Path) -> None:
    others = ((UpdateRule.from_name("Muon", {"momentum": 0.8}), 0.02),)
    profile(others=others, held={"head.weight": 1}).save(path)
    read = BaseProfile.load(path)
    assert read.optimizers.others == others
    assert read.optimizers.rule("head.weight").name == "Muon"
    assert read.optimizers.rate("head.weight") == 0.02
    assert read.optimizers.rule("body.bias").name == "AdamW"


def test_round_trip_without_trajectory_or_targets(path: Path) -> None:
    saved = profile(trajectory=Trajectory(), pool=((torch.randn(2, 3), None),), loss=None)
    saved.save(path)
    read = BaseProfile.load(path)
    assert len(read.trajectory) == 0
    assert read.loss is None
    assert same(read.pool, saved.pool)


@pytest.mark.parametrize("resolve_after", [0, 4])
def test_round_trip_without_a_late_start(path: Path, resolve_after: int) -> None:
    profile(late={}, resolve_after=resolve_after).save(path)
    read = BaseProfile.load(path)
    assert read.late == {}
    assert read.resolve_after == resolve_after


def test_file_from_before_there_was_a_late_start(path: Path) -> None:
    def forget(held: dict[str, Any]) -> None:
        for name in [name for name in held if name.split(".")[0] in ("late", "resolve_after")]:
            del held[name]

    rewrite(path, forget, forget)
    read = BaseProfile.load(path)
    assert (read.late, read.resolve_after) == ({}, 0)
    assert read.start == estimates()


def test_file_from_before_losses_were_kept(path: Path) -> None:
    rewrite(path, lambda header: header.pop("losses"))
    read = BaseProfile.load(path)
    assert all(math.isnan(moment.loss) for moment in read.moments.values())
    read.save(path)
    assert all(math.isnan(moment.loss) for moment in BaseProfile.load(path).moments.values())
    mean = BaseProfile.mean([profile(), read])
    assert all(math.isnan(moment.loss) for moment in mean.moments.values())


def test_round_trip_of_every_kind_of_input(path: Path) -> None:
    shared = torch.randn(6, 4)
    inputs = {
        "ids": torch.arange(12, dtype=torch.int32).reshape(6, 2),
        "mask": torch.tensor([True, False] * 3),
        "hidden": shared,
        "again": shared,
        "part": shared.t()[1:3].t(),
        "half": torch.randn(6, 2).bfloat16(),
        "bytes": torch.arange(6, dtype=torch.uint8),
        "minus": torch.tensor([-math.inf] * 6),
        "empty": torch.zeros(6, 0),
        "learned": torch.nn.Parameter(torch.randn(6)),
        "nested": [shared[0:6], {"a.b": shared, "a": {"b": None}}, (True, 1, 1.5, "text", None)],
        "use_cache": False,
    }
    pool = ((inputs, shared), ((shared, 3), None), (shared, {"y": shared.double()}))
    saved = profile(pool=pool)
    saved.save(path)
    read = BaseProfile.load(path)
    assert same(read.pool, saved.pool)
    loaded = read.pool[0][0]
    assert isinstance(loaded, dict)
    loaded["hidden"].zero_()
    assert not loaded["again"].equal(loaded["hidden"])
    assert not loaded["learned"].requires_grad


def test_load_does_not_hold_on_to_the_file(path: Path) -> None:
    saved = profile()
    saved.save(path)
    read = BaseProfile.load(path)
    path.write_bytes(b"")
    assert same(read.pool, saved.pool)


def test_pool_with_what_no_file_holds() -> None:
    with pytest.raises(InputError, match=r"pool\[0\]\[0\]\['cache'\] of the probe pool is object"):
        profile(pool=(({"x": torch.zeros(2), "cache": object()}, None),))
    with pytest.raises(InputError, match=r"pool\[1\]\[0\] of the probe pool is a torch.sparse_coo"):
        profile(pool=((torch.zeros(2), None), (torch.eye(2).to_sparse(), None)))
    with pytest.raises(InputError, match=r"pool\[0\]\[0\] of the probe pool is a key of type int"):
        profile(pool=(({1: torch.zeros(2)}, None),))


def test_repr_is_short() -> None:
    assert repr(profile()) == (
        "BaseProfile(3 parameters, torch.optim.AdamW at lr 0.0177828, settle 10, loss "
        "cross_entropy, trajectory of 2 steps)"
    )


def test_losses_that_are_not_known_are_kept_as_such(path: Path) -> None:
    partly = replace(trajectory(), losses=(math.nan, 2.0))
    profile(trajectory=partly).save(path)
    first, second = BaseProfile.load(path).trajectory.losses
    assert math.isnan(first) and second == 2.0
    profile(trajectory=replace(partly, losses=())).save(path)
    assert BaseProfile.load(path).trajectory.losses == ()
    none = replace(partly, losses=())
    later = Trajectory((200,), (0.1,), {name: fslrs[:1] for name, fslrs in partly.fslrs.items()})
    assert partly.then(later).losses[1] == 2.0 and math.isnan(partly.then(later).losses[2])
    assert none.then(later).losses == ()


def test_trajectory_at_a_step() -> None:
    assert trajectory().at(100) == estimates(2.0)
    with pytest.raises(
        InputError, match=r"step 50 was not recorded; the trajectory has \(0, 100\)"
    ):
        trajectory().at(50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 1), (0.1,), {}), "2 steps, but 1 learning rates"),
        (((0, 1), (0.1, 0.1), {}, (2.0,)), "2 steps, but 1 losses"),
        (((1, 0), (0.1, 0.1), {}), r"steps \(1, 0\) do not ascend"),
        (((0,), (math.nan,), {}), "learning rate nan at step 0"),
        (((0,), (0.1,), {"w": ()}), "1 steps, but 0 FSLRs of 'w'"),
        (((7,), (0.1,), {"w": (Estimate(math.inf, 0, "exact", 0),)}), "FSLR of 'w' at step 7 is i"),
    ],
)
def test_trajectory_that_contradicts_itself(arguments: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Trajectory(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": ()}, "are none, or named twice"),
        ({"parameters": (*NAMES, "body.bias")}, "are none, or named twice"),
        ({"shapes": {"body.weight": (4, 3)}}, "shapes and parameters differ in 'body.bias', 'hea"),
        ({"start": estimates() | {"x": Estimate(1, 0, "exact", 0)}}, "start and parameters .* 'x'"),
        ({"start": estimates(math.nan)}, "FSLR of 'body.weight' at the start is nan ± 0"),
        ({"start": estimates(stderr=math.inf)}, "FSLR of 'body.weight' at the start is 0.1 ± inf"),
        ({"start": estimates(-1.0)}, "is -0.1 ± 0.0; expected finite numbers >= 0"),
        ({"trajectory": Trajectory((0,), (0.1,), {})}, "trajectory and parameters differ in"),
        ({"graph": nx.DiGraph([("body.weight", "odd")])}, "graph has 'odd', which is no parameter"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, out of range"),
        (
            {"others": ((UpdateRule.from_name("Muon"), -1.0),)},
            "learning rate -1.0 of torch.optim.Muon is out of range",
        ),
        (
            {"output_rms": (1.0,)},
            "outputs were measured at 1 steps on the way; expected 10: record again",
        ),
        (
            {"moments": {**moments(10), 10: Moment(estimates(math.nan), loss=1.0)}},
            "FSLR of 'body.weight' at step 10 is nan ± 0.0",
        ),
        (
            {"moments": dict(enumerate(moments(10).values()))},
            r"moments are of steps \(0, 1, .*, 8, 9\); expected \(0, 1, .*, 9, 10\)",
        ),
        ({"output_rms": (1.0,) * 9 + (math.nan,)}, "outputs of size nan; expected finite numbers"),
        (
            {"update_sizes": dict.fromkeys(NAMES, math.inf)},
            "updates of size inf; expected finite numbers",
        ),
        ({"losses": (*LOSSES[:-1], math.inf)}, "settling steps have losses .* inf.; expected fin"),
        ({"losses": (*LOSSES[:-1], math.nan)}, "settling steps have losses .* nan.; expected fin"),
        ({"update_sizes": {"body.bias": 1.0}}, "update_sizes and parameters differ in 'body.wei"),
        ({"warmup": 10}, "warmup is 10 of 10 settling steps; expected fewer of them"),
        ({"warmup": -1}, "warmup is -1 of 10 settling steps"),
        ({"held": {"tail": 0}}, "'tail' is in parameter group 0; there are 1"),
        ({"learning_rate": math.inf}, "learning_rate is inf, out of range"),
        ({"settle": -1}, "settle is -1, out of range"),
        ({"settle": True}, "settle is True, a bool"),
        ({"resolve_after": -1, "late": {}}, "resolve_after is -1, out of range"),
        ({"resolve_after": 0}, "resolve_after is 0, out of range"),
        ({"resolve_after": 1.0}, "resolve_after is 1.0, a float"),
        ({"late": {"body.bias": Estimate(1, 0, "exact", 0)}}, "late and parameters .* 'body.weig"),
        ({"late": estimates(math.nan)}, "late FSLR of 'body.weight' is nan ± 0"),
        ({"late": estimates(-1.0)}, "is -0.1 ± 0.0; expected finite numbers >= 0"),
        ({"training": 1}, "training is 1, a int"),
        ({"loss": 3}, "loss is 3, a int"),
        ({"pool": ()}, "probe pool is empty"),
    ],
)
def test_profile_that_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        profile(**changes)


# Files that are no profile.


def fails(path: Path, message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{re.escape(str(path))}: {message}"):
        BaseProfile.load(path)


def test_missing_file_and_folder(path: Path) -> None:
    fails(path, "no such file; expected a base profile that recorder.profile.save wrote")
    fails(path.parent, "a folder; expected a base profile")


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_truncated_file(path: Path, length: int) -> None:
    profile().save(path)
    path.write_bytes(path.read_bytes()[:length])
    fails(path, "a truncated file; .* Copy the file again, or record the base model again")


@pytest.mark.parametrize("content", [b"\x80\x04\x95pickle" * 9, b"step,fslr\n0,0.1\n" * 9])
def test_other_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    fails(path, "not a safetensors file; expected a base profile")


def test_checkpoint_of_a_model(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata)
        fails(path, "a safetensors file without a flerm_fx header.*a model's checkpoint")


def rewrite(path: Path, header: Any = None, tensors: Any = None) -> None:
    """Save a profile, then let two functions edit its header and tensors in place."""
    profile().save(path)
    with safetensors.safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text = json.loads(file.metadata()["flerm_fx"])
    for edit, value in ((header, text), (tensors, held)):
        if edit is not None:
            edit(value)
    safetensors.torch.save_file(held, path, {"flerm_fx": json.dumps(text)})


def test_rewrite_alone_damages_nothing(path: Path) -> None:
    rewrite(path)
    assert BaseProfile.load(path).parameters == NAMES


def test_file_of_another_format(path: Path) -> None:
    rewrite(path, lambda header: header["versions"].update(format=FORMAT + 1, flerm_fx="9.1"))
    fails(
        path, rf"profile format {FORMAT + 1}, written by flerm_fx 9.1; .* reads format {FORMAT}: "
    )


@pytest.mark.parametrize(
    "name",
    [
        "start.fslr",
        "start.kind",
        "late.fslr",
        "late.samples",
        "trajectory.stderr",
        "trajectory.learning_rates",
        "pool.1",
    ],
)
def test_missing_tensor(path: Path, name: str) -> None:
    rewrite(path, tensors=lambda tensors: tensors.pop(name))
    fails(path, f"tensor '{name}' is missing")


def test_tensor_of_another_shape_or_dtype(path: Path) -> None:
    rewrite(path, tensors=lambda tensors: tensors.update({"start.fslr": torch.zeros(1, 4)}))
    fails(
        path, r"tensor 'start.fslr' has shape \(1, 4\) and torch.float32; expected \(1, 3\) and t"
    )
    rewrite(path, tensors=lambda tensors: tensors.update({"start.fslr": torch.zeros(1, 3)}))
    fails(path, r"tensor 'start.fslr' has shape \(1, 3\) and torch.float32; .* torch.float64")
    rewrite(path, tensors=lambda tensors: tensors.update({"late.kind": torch.zeros(3).long()}))
    fails(path, r"tensor 'late.kind' has shape \(3,\) and torch.int64; expected \(1, 3\) and t")


@pytest.mark.parametrize("name", ["start.fslr", "start.stderr"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_numbers_that_are_not_finite(path: Path, name: str, value: float) -> None:
    rewrite(path, tensors=lambda tensors: tensors[name][0, 1].fill_(value))
    fails(path, "FSLR of 'body.bias' at the start is .*; expected finite numbers >= 0")
    rewrite(path, tensors=lambda tensors: tensors[name.replace("start", "late")][0, 1].fill_(value))
    fails(path, "late FSLR of 'body.bias' is .*; expected finite numbers >= 0")


def test_negative_counts_of_samples(path: Path) -> None:
    rewrite(path, tensors=lambda tensors: tensors["start.samples"].fill_(-1))
    fails(path, "FSLR of 'body.weight' at the start has -1 samples; expected at least 0")


def test_kind_out_of_range(path: Path) -> None:
    rewrite(path, tensors=lambda tensors: tensors["start.kind"].fill_(9))
    fails(path, "tensor 'start.kind' has 9, of 3 kinds")
    rewrite(path, tensors=lambda tensors: tensors["late.kind"].fill_(-1))
    fails(path, "tensor 'late.kind' has -1, of 3 kinds")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda header: header.pop("graph"), r"the header is damaged \(KeyError: 'graph'\)"),
        (lambda header: header.pop("versions"), r"the header is damaged \(KeyError"),
        (lambda header: header.update(versions=3), r"the header is damaged \(TypeError"),
        (lambda header: header.update(parameters=3), r"the header is damaged \(TypeError"),
        (lambda header: header.update(pool=[{"pickle": "x"}]), r".* pool item of kind 'pickle'"),
        (lambda header: header.update(pool=[{"value": 1}]), r".*no \(inputs, targets\)"),
        (
            lambda header: header.update(belongs=[2**63]),
            "1 parameter groups belong to optimizers .9223372036854775808,",
        ),
        (
            lambda header: header.update(held={"body.bias": 1}),
            "'body.bias' is in parameter group 1; there are 1",
        ),
        (lambda header: header.update(optimizer={}), r"the header is damaged \(KeyError: 'name'"),
        (lambda header: header["optimizer"].update(name=3), r".*optimizer name 3 .* not text"),
        (lambda header: header["optimizer"].update(settings=3), r".*settings are a int"),
        (lambda header: header.update(training="yes"), "training is 'yes', a str"),
        (lambda header: header.pop("resolve_after"), "resolve_after is 0, out of range"),
        (lambda header: header.update(resolve_after="4"), "resolve_after is '4', a str"),
        (lambda header: header.update(resolve_after=True), "resolve_after is True, a bool"),
        (
            lambda header: header.update(learning_rate=math.nan),
            "learning_rate is nan, out of range",
        ),
        (lambda header: header.update(rtol=math.nan), "rtol is nan, out of range"),
        (lambda header: header.update(learning_rate=1e999), "learning_rate is inf, out of range"),
        (lambda header: header.update(seed=2**64), f"seed is {2**64}; expected a whole number"),
        (lambda header: header.update(seed=-(2**63) - 1), "seed is .*; expected a whole number of"),
        (
            lambda header: header["parameters"][0].__setitem__(1, [4, -3]),
            r"the shape of 'body.weight' is \(4, -3\); expected whole numbers of at least 0",
        ),
        (
            lambda header: header["parameters"][0].__setitem__(1, [4.5, 3]),
            r"the shape of 'body.weight' is \(4.5, 3\); expected whole numbers",
        ),
        (
            lambda header: header["parameters"][0].__setitem__(1, "43"),
            r"the shape of 'body.weight' is \('4', '3'\); expected whole numbers",
        ),
        (lambda header: header.update(steps=[0]), r"tensor 'trajectory.fslr' has shape \(2, 3\)"),
        (lambda header: header["parameters"].pop(), r"tensor 'start.fslr' has shape \(1, 3\)"),
        (
            lambda header: header["parameters"][0].__setitem__(0, "x"),
            "the parameter graph has 'bod",
        ),
    ],
)
def test_header_that_contradicts_itself(path: Path, edit: Any, message: str) -> None:
    rewrite(path, header=edit)
    fails(path, message)


@pytest.mark.parametrize("odd", ["a\n    import os  #", "\x1b[31m", "\u202e", "\u2028", "\ud800"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda header, odd: header["parameters"][0].__setitem__(0, odd),
        lambda header, odd: header["held"].update({odd: 0}),
        lambda header, odd: header["graph"]["nodes"][0].update(op=odd),
        lambda header, odd: header["graph"]["nodes"][0].update(path=odd),
        lambda header, odd: header["graph"]["edges"][0].__setitem__(2, odd),
        lambda header, odd: header["optimizer"].update(name=None, source=odd),
        lambda header, odd: header["optimizer"]["settings"].update({odd: 1}),
        lambda header, odd: header["optimizer"]["settings"].update(betas=[odd]),
        lambda header, odd: header["versions"].update(flerm_fx=odd),
        lambda header, odd: header["versions"].update({odd: 1}),
        lambda header, odd: header["kinds"][0].__setitem__(1, odd),
        lambda header, odd: header.update(loss=odd),
        lambda header, odd: header.update(method=odd),
        lambda header, odd: header.update({odd: "something of a later version"}),
    ],
)
def test_text_that_is_not_printable(path: Path, edit: Any, odd: str) -> None:
    rewrite(path, header=lambda header: edit(header, odd))
    fails(path, re.escape(f"{odd!r} has characters that are not printable, and names in a"))


def test_a_profile_that_could_not_be_read_is_not_saved(path: Path) -> None:
    profile(settle=7).save(path)
    before = path.read_bytes()
    for changes in ({"loss": "a\n"}, {"method": "\x9b31m"}, {"versions": {"format\x7f": 1}}):
        with pytest.raises(ProfileError, match=r"not saved: .* has characters that are not print"):
            profile(**changes).save(path)
    assert path.read_bytes() == before


def test_what_the_pool_holds_may_be_any_text_and_any_number(path: Path) -> None:
    inputs = {
        "x": torch.ones(2, 3),
        "texts": ["line\nline", "\u202e", "\ud800"],
        "odd\n": {"$number": "inf"},
        "limits": (math.inf, -math.inf, 0.5),
        "nan": math.nan,
    }
    profile(pool=((inputs, None),)).save(path)
    [(read, _)] = BaseProfile.load(path).pool
    assert isinstance(read, dict)
    assert math.isnan(read.pop("nan"))
    del inputs["nan"]
    assert same(read, inputs)
    with safetensors.safe_open(path, "pt") as file:
        text = file.metadata()["flerm_fx"]
    json.loads(text, parse_constant=lambda constant: pytest.fail(constant))


def test_a_setting_of_infinity_is_kept_and_none_of_nan(path: Path) -> None:
    rule = UpdateRule(None, {"clip": math.inf, "betas": (0.9, [0.5])}, None, "mine.Rule")
    profile(optimizer=rule).save(path)
    assert BaseProfile.load(path).optimizer.settings["clip"] == math.inf
    for settings in ({"clip": math.nan}, {"betas": (0.9, math.nan)}, {"by": {"a": [math.nan]}}):
        odd = UpdateRule(None, settings, None, "mine.Rule")
        with pytest.raises(ProfileError, match=f"setting '{next(iter(settings))}' of mine.Rule is"):
            profile(optimizer=odd)
        with pytest.raises(ProfileError, match=r"setting .* of mine.Rule is"):
            profile(others=((odd, 0.1),))


@pytest.mark.parametrize("constant", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_no_json(path: Path, constant: float) -> None:
    def edit(header: Any) -> None:
        header["pool"] = [
            {"tuple": [{"tensor": 0}, {"dict": {"limit": {"value": constant}}}]},
        ]

    rewrite(path, header=edit)
    fails(path, r"the header is damaged \(ValueError: -?(NaN|Infinity) is no JSON\)")


@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_reading_what_is_no_regular_file(path: Path, kind: str) -> None:
    os.mkfifo(path) if kind == "FIFO" else path.symlink_to("/dev/zero")
    fails(path, f"a {kind}; expected a base profile")


def test_arguments_that_are_no_path_or_no_profiles(tmp_path: Path) -> None:
    wrong: list[Any] = [None, b"base.safetensors", 3, profile()]
    for path in wrong:
        with pytest.raises(InputError, match=f"a path is a str .* got {type(path).__name__}"):
            BaseProfile.load(path)
        with pytest.raises(InputError, match=f"a path is a str .* got {type(path).__name__}"):
            profile().save(path)
    for profiles in (None, profile()):
        with pytest.raises(InputError, match=f"a list of profiles; got {type(profiles).__name__}"):
            BaseProfile.mean(profiles)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"number 1 is of type str: load a file with BaseProfile"):
        BaseProfile.mean([profile(), "base.safetensors"])  # type: ignore[list-item]
    for name in ("null\0", "\ud800", 300 * "x"):
        with pytest.raises(ProfileError, match="cannot be read"):
            BaseProfile.load(tmp_path / name)


def test_a_path_s_own_escapes_are_shown(tmp_path: Path) -> None:
    with pytest.raises(ProfileError) as raised:
        BaseProfile.load(tmp_path / "a\n\x1b[31m")
    assert "/a\\n\\x1b[31m: no such file" in str(raised.value)


def test_header_that_is_no_json(path: Path) -> None:
    for text in ("{", "[]", "3"):
        safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"flerm_fx": text})
        fails(path, "the header is damaged")


def test_optimizer_that_this_torch_lacks_can_be_read_and_says_how_to_pass_it(path: Path) -> None:
    rewrite(path, lambda header: header["optimizer"].update(name="Lion"))
    read = BaseProfile.load(path)
    with pytest.raises(OptimizerError, match="'Lion' is not in torch.optim; pass optimizer=…"):
        read.optimizer.build([torch.zeros(2)], 0.1)


# Saving, interrupted.


class FullDisk:
    """A file that takes the first bytes and then raises."""

    def __init__(self, file: Any, error: BaseException) -> None:
        self.file, self.error = file, error

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> int:
        self.file.write(content[:100])
        self.file.flush()
        raise self.error


def interrupt(monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException) -> None:
    def raising(*_: object) -> None:
        raise error

    if where == "write":
        opened = Path.open

        def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(self, mode, *args, **kwargs)
            return FullDisk(file, error) if "+" in mode else file

        monkeypatch.setattr(Path, "open", full)
    else:
        monkeypatch.setattr(os, where, raising)


@pytest.fixture(params=["write", "fsync", "replace"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("old", [True, False])
def test_full_disk_leaves_what_was_there(
    path: Path, where: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        profile(settle=7).save(path)
    before = path.read_bytes() if old else None
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        interrupt(patch, where, error)
        with pytest.raises(ProfileError, match=r"base.safetensors: .* \(No space left on device\)"):
            profile().save(path)
    assert os.listdir(path.parent) == ([path.name] if old else [])
    if old:
        assert path.read_bytes() == before
        assert BaseProfile.load(path).settle == 7


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.013, 0.21])
def test_a_kill_while_saving_leaves_a_whole_file(path: Path, seconds: float) -> None:
    """SIGKILL at some point of one save among many: the file is the old or the new one."""
    pool = ((torch.randn(200_000, 3), torch.arange(200_000) % 2),)  # 4 MB, so that a save lasts
    profile(pool=pool, seed=7).save(path)
    script = (
        "import sys; from dataclasses import replace; from flerm_fx import BaseProfile\n"
        "p = BaseProfile.load(sys.argv[1]); print(flush=True)\n"
        "while True: p = replace(p, seed=p.seed + 1); p.save(sys.argv[1])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    read = BaseProfile.load(path)
    assert read.seed >= 7
    assert same(read.pool, pool)


def test_interrupt_leaves_what_was_there(
    path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(settle=7).save(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        interrupt(patch, where, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            profile().save(path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_save_where_there_is_no_folder_or_only_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"was not saved \(No such file or directory\)"):
        profile().save(tmp_path / "none" / "base.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ProfileError, match=r"folder: the profile was not saved \(Is a directory\)"):
        profile().save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_save_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    profile().save(link)
    assert link.is_symlink()
    assert BaseProfile.load(target).parameters == NAMES


def test_load_runs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile().save(path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the file was unpickled or run")

    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    assert BaseProfile.load(path).parameters == NAMES


# The mean over seeds.


def test_mean_of_one_profile_is_that_profile() -> None:
    one = profile()
    assert BaseProfile.mean([one]) is one


def test_mean_is_geometric_so_multipliers_average() -> None:
    profiles = [
        profile(start=estimates(scale), trajectory=trajectory(scale), seed=index)
        for index, scale in enumerate((1.0, 2.0, 8.0))
    ]
    mean = BaseProfile.mean(profiles)
    geometric = 16.0 ** (1 / 3)
    for name, one in estimates().items():
        assert mean.start[name].value == pytest.approx(geometric * one.value)
        assert mean.trajectory.at(100)[name].value == pytest.approx(2 * geometric * one.value)
        multipliers = [3.0 / each.start[name].value for each in profiles]
        averaged = math.exp(sum(map(math.log, multipliers)) / 3)
        assert 3.0 / mean.start[name].value == pytest.approx(averaged)
    assert mean.trajectory.losses == pytest.approx((11.0, 22.0 / 3))
    assert mean.start["body.bias"].samples == 48
    assert mean.start["body.bias"].note == "mean of 3 profiles; batch-coupled examples"
    assert mean.start["body.bias"].method == "sampled"
    assert mean.seed == 0


def test_standard_error_of_the_mean_is_the_spread_over_seeds() -> None:
    scales = torch.randn(64, generator=torch.Generator().manual_seed(0)).mul(0.1).exp()
    mean = BaseProfile.mean([profile(start=estimates(scale)) for scale in scales.tolist()])
    expected = scales.log().std().item() / 8
    assert mean.start["head.weight"].relative_error == pytest.approx(expected)


def test_standard_error_of_the_mean_is_not_less_than_each_one_s_own() -> None:
    mean = BaseProfile.mean([profile(start=estimates(stderr=0.3))] * 4)
    # Equal values spread by nothing, and four errors of 0.3 average to one of 0.15.
    for name in NAMES:
        assert mean.start[name].stderr == pytest.approx(0.15)


def test_mean_with_a_zero_is_arithmetic() -> None:
    dead = estimates() | {"body.bias": Estimate(0.0, 0.0, "exact", 0)}
    mean = BaseProfile.mean([profile(), profile(start=dead)]).start
    assert mean["body.bias"].value == pytest.approx(math.pi / 2)
    assert mean["body.bias"].stderr == pytest.approx(math.pi / 2)
    assert mean["body.bias"].method == "sampled+exact"
    both = BaseProfile.mean([profile(start=dead)] * 2).start["body.bias"]
    assert (both.value, both.stderr) == (0.0, 0.0)


def test_mean_of_late_starts() -> None:
    mean = BaseProfile.mean([profile(), profile(late=estimates(2.0))])
    for name, one in estimates().items():
        assert mean.late[name].value == pytest.approx(one.value)  # of a half and twice
    assert BaseProfile.mean([profile(), profile(late={})]).late == {}


def test_mean_of_outputs_is_their_root_mean_square() -> None:
    mean = BaseProfile.mean([profile(), profile(output_rms=(3.0,) * 10)])
    assert mean.output_rms == pytest.approx(
        [math.sqrt((a**2 + 9) / 2) for a in profile().output_rms]
    )


def test_mean_of_losses() -> None:
    mean = BaseProfile.mean([profile(), profile(losses=(3.0,) * 10)])
    assert [moment.loss for moment in mean.moments.values()] == [(a + 3) / 2 for a in LOSSES]


def test_mean_of_update_sizes() -> None:
    mean = BaseProfile.mean([profile(), profile(update_sizes=dict.fromkeys(NAMES, 3.0))])
    assert mean.update_sizes == dict.fromkeys(NAMES, 2.0)


def test_outputs_that_begin_too_large_have_further_to_go() -> None:
    found = profile()
    sizes = dict(zip((0, 1, 2, 3, 4, 5, 7, 8, 9, 10), OUTPUTS, strict=True))
    for step in sizes:
        assert found.way_from(sizes, step) == 1.0  # the base itself
        assert found.way_from({0: 4.0, step: 9.0 if step else 4.0}, step) == 1.0  # begins as large
    assert found.way_from({0: 12.0}, 0) == 3.0
    assert found.way_from({0: 12.0, 2: 2.5}, 2) == 2.5
    assert found.way_from({0: 12.0, 2: 9.0}, 2) == 3.0  # no more than it began with
    assert found.way_from({0: 12.0, 2: 0.5}, 2) == 1.0
    small = profile(output_rms=(0.1, *OUTPUTS[1:]))
    assert small.way_from({0: 1.5}, 0) == 1.0  # training makes them as large
    assert small.way_from({0: 6.0}, 0) == 3.0
    assert profile(output_rms=(0.0,) * 10).way_from({0: 6.0}, 0) == 1.0
    with pytest.raises(
        InputError, match=r"step 6 was not recorded; there are \(0, 1, 2, 3, 4, 5, 7"
    ):
        found.way_from({0: 1.0, 6: 1.0}, 6)


def test_mean_can_be_saved(path: Path) -> None:
    mean = BaseProfile.mean([profile(), profile(start=estimates(2.0))])
    mean.save(path)
    assert BaseProfile.load(path).start == mean.start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, r"differ in learning_rate: 0.0177\d* and 0.5"),
        ({"settle": 0}, "differ in settle: 10 and 0"),
        ({"loss": None}, "differ in loss: 'cross_entropy' and None"),
        ({"optimizer": UpdateRule.from_name("SGD")}, "differ in optimizer: '.*AdamW' and '.*SGD'"),
        (
            {"optimizer": UpdateRule.from_name("AdamW")},
            r"differ in optimizer settings: .*\(0.9, 0.95\).*\(0.9, 0.999\).*",
        ),
        (
            {"shapes": SHAPES | {"body.bias": (8,)}},
            r"differ in the shape of 'body.bias': \(4,\) and \(8,\)",
        ),
        ({"trajectory": Trajectory()}, r"differ in trajectory steps: \(0, 100\) and \(\)"),
        ({"training": False}, "differ in training: True and False"),
        ({"resolve_after": 8}, "differ in resolve_after: 4 and 8"),
    ],
)
def test_mean_of_profiles_that_differ(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"profiles 0 and 2 {message}; a mean takes"):
        BaseProfile.mean([profile(), profile(), profile(**changes)])


def test_mean_of_profiles_with_other_graphs() -> None:
    other = parameter_graph()
    other.remove_edge("body.bias", "head.weight")
    with pytest.raises(
        InputError, match="profiles 0 and 1 differ in parameter graph, at their edg"
    ):
        BaseProfile.mean([profile(), profile(graph=other)])
    other = parameter_graph()
    other.nodes["body.bias"]["op"] = "aten.add"
    with pytest.raises(InputError, match="differ in parameter graph, at node .*body.bias"):
        BaseProfile.mean([profile(), profile(graph=other)])


def test_mean_of_profiles_with_other_parameters() -> None:
    swapped = ("body.bias", "body.weight", "head.weight")
    with pytest.raises(InputError, match="differ in parameters, in their execution order"):
        BaseProfile.mean([profile(), replace(profile(), parameters=swapped)])
    one = BaseProfile.mean([profile(graph=nx.DiGraph())])
    fewer = replace(
        one,
        parameters=("body.bias",),
        shapes={"body.bias": (4,)},
        start={"body.bias": one.start["body.bias"]},
        late={},
        settle=0,
        moments={},
        trajectory=Trajectory(),
    )
    with pytest.raises(InputError, match="in 'body.weight', 'head.weight'; a mean takes"):
        BaseProfile.mean([one, fewer])


def test_mean_of_no_profiles() -> None:
    with pytest.raises(InputError, match="at least one profile; got none"):
        BaseProfile.mean([])
