"""The table holds all that the rest of the library knows of any one operation.

What torch itself tells (schemas, tags) is not repeated here. An operation that is not in the table
is known by that alone, and whatever differentiates, counts or moves scalars does it in general.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flerm_fx.boundary.compat import schema_of
from flerm_fx.ops.operation import operation_name

Kind = Literal[
    "",
    "product",
    "convolution",
    "attention",
    "table",
    "elementwise",
    "norm",
    "view",
    "cast",
    "linear",
    "join",
    "dropout",
    "recurrent",
    "blank",
    "assertion",
]
"""What an operation is:

- ``product``: a contraction of its factors, ``convolution`` too;
- ``attention``: of query, key and value;
- ``table``: rows looked up;
- ``elementwise``: each element of what it makes is made of one element of each argument;
- ``norm``: a normalisation, times a weight, plus a bias;
- ``view``: an arrangement of its argument's elements, whether in the same memory or not;
- ``cast``: its argument in another type, or on another device;
- ``linear``: linear in its first argument in another way, such as a sum;
- ``join``: several tensors, one after another;
- ``dropout``: its argument times a random mask;
- ``recurrent``: a whole recurrent network, of any number of layers;
- ``blank``: takes no more than shape and type from what it reads;
- ``assertion``: computes nothing.
"""

Layout = Literal["", "out in", "in out"]
"""Which of a matrix's last two dimensions comes in, and which goes out."""


@dataclass(frozen=True)
class Facts:
    r"""A ``Facts`` says what is known of an operation.

    It computes

    .. math:: y = f(a_1, a_2, \dots) + \sum_t c_t \, t,

    with f linear in each of some arguments, and other arguments t that are added.

    Attributes:
        kind: see :data:`Kind`.
        linear: the names of the arguments in each of which f is linear, all others held. Where the
            argument is a list, f is linear in each of its members.
        terms: by the name of t: the sign, and the name of the argument that is the number c, as in
            ``"-alpha"``; ``""`` is 1.
        on_channels: whether a term is along dimension 1, and not along the last one.
        layout: of a product's last factor, or of a table; empty if it is no matrix.
        same: whether the result has the elements of the first argument in their own places.
        turns: whether it exchanges axes.
        commutes: whether the arguments can be exchanged.
        reads_shape_of_other: whether no more than shape or type is taken from ``other``.
        joins_along: whether what is joined is so along an old dimension, or along a new one.
        divides: whether it is the first argument over the second.
        homogeneous: whether a positive factor of the one argument is one of the result.
        by_batch: the name of the argument that says whether statistics are those of what is read.
        unlike: overloads that share the name alone, and of which none of this is true.

    >>> facts("aten.addmm").linear, dict(facts("aten.addmm").terms)
    (('mat1', 'mat2'), {'self': 'beta'})
    """

    kind: Kind = ""
    linear: tuple[str, ...] = ()
    terms: Mapping[str, str] = field(default_factory=dict)
    on_channels: bool = False
    layout: Layout = ""
    same: bool = False
    turns: bool = False
    commutes: bool = False
    reads_shape_of_other: bool = False
    joins_along: Literal["", "old", "new"] = ""
    divides: bool = False
    homogeneous: bool = False
    by_batch: str = ""
    unlike: tuple[str, ...] = ()

    @property
    def is_product(self) -> bool:
        """Whether it is linear in each of its factors, with at most a bias beside the product."""
        return self.kind in ("product", "convolution", "table") and bool(self.linear)

    @property
    def bias(self) -> str | None:
        """The name of what a product or a norm adds; None if that is nothing."""
        return next(iter(self.terms), None) if self.kind != "elementwise" else None

    @property
    def is_sum(self) -> bool:
        """Whether it is the sum of its arguments, one of which may have a factor."""
        return self.kind == "elementwise" and len(self.terms) == 2 and self.commutes

    @property
    def multiplies(self) -> bool:
        """Whether each element is the product of one of each of two arguments."""
        return self.kind == "elementwise" and len(self.linear) == 2

    @property
    def is_entry_by_entry(self) -> bool:
        """Whether it takes an argument's entries one by one, whatever the argument's shape."""
        return self.kind in ("elementwise", "view", "join")


NOTHING = Facts()
"""What is known of an operation that is not in the table."""

_VIEW = Facts("view", ("self",))
_TURN = replace(_VIEW, turns=True)
_SAME = replace(_VIEW, same=True)
_CAST = Facts("cast", ("self",), reads_shape_of_other=True)
_LINEAR = Facts("linear", ("self",))
_NORM = Facts("norm", ("weight",), {"bias": ""})
_CHANNEL_NORM = replace(_NORM, on_channels=True)
_CONVOLUTION = Facts("convolution", ("input", "weight"), {"bias": ""}, on_channels=True)
_DROPOUT = Facts("dropout")
_RECURRENT = Facts("recurrent", unlike=("data",))  # of packed sequences
_COMMUTES = Facts("elementwise", commutes=True)


def _all(entry: Facts, names: str) -> Iterable[tuple[str, Facts]]:
    return ((f"aten.{name}", entry) for name in names.split())


TABLE: Mapping[str, Facts] = {
    # Products
    "aten.linear": Facts("product", ("input", "weight"), {"bias": ""}, layout="out in"),
    "aten.mm": Facts("product", ("self", "mat2"), layout="in out"),
    "aten.bmm": Facts("product", ("self", "mat2"), layout="in out"),
    "aten.matmul": Facts("product", ("self", "other"), layout="in out"),
    "aten.addmm": Facts("product", ("mat1", "mat2"), {"self": "beta"}, layout="in out"),
    "aten.baddbmm": Facts("product", ("batch1", "batch2"), {"self": "beta"}, layout="in out"),
    "aten.einsum": Facts("product", ("tensors",)),
    **dict(_all(_CONVOLUTION, "convolution conv1d conv2d conv3d")),
    **dict(_all(_CONVOLUTION, "conv_transpose1d conv_transpose2d conv_transpose3d")),
    "aten.embedding": Facts("table", ("weight",), layout="in out"),
    "aten.embedding_bag": Facts("table", layout="in out"),
    "aten.scaled_dot_product_attention": Facts("attention"),
    "flerm_fx.attention": Facts("attention"),  # as a probe graph has it
    # Element by element
    "aten.add": Facts("elementwise", terms={"self": "", "other": "alpha"}, commutes=True),
    "aten.sub": Facts("elementwise", terms={"self": "", "other": "-alpha"}),
    "aten.rsub": Facts("elementwise", terms={"self": "-alpha", "other": ""}),
    "aten.mul": Facts("elementwise", ("self", "other"), commutes=True),
    "aten.div": Facts(
        "elementwise", ("self",), divides=True, unlike=("Tensor_mode", "Scalar_mode")
    ),
    "aten.neg": Facts("elementwise", ("self",)),
    "aten.relu": Facts("elementwise", homogeneous=True),
    **dict(_all(_COMMUTES, "maximum minimum")),
    # Norms
    "aten.layer_norm": _NORM,
    "aten.rms_norm": Facts("norm", ("weight",)),
    "aten.group_norm": _CHANNEL_NORM,
    "aten.batch_norm": replace(_CHANNEL_NORM, by_batch="training"),
    "aten.instance_norm": replace(_CHANNEL_NORM, by_batch="use_input_stats"),
    # Arrangements
    **dict(_all(_SAME, "alias clone contiguous")),
    **dict(_all(_VIEW, "chunk expand flatten narrow reshape select slice split split_with_sizes")),
    **dict(_all(_VIEW, "repeat squeeze tensor_split unbind unflatten unsqueeze")),
    "aten.view": replace(_VIEW, unlike=("dtype",)),
    **dict(_all(_TURN, "movedim permute swapaxes t transpose")),
    **dict(_all(_CAST, "to _to_copy")),
    "aten.cat": Facts("join", joins_along="old"),
    "aten.stack": Facts("join", joins_along="new"),
    # Linear in another way
    **dict(_all(_LINEAR, "adaptive_avg_pool2d avg_pool2d cumsum flip gather index_select")),
    **dict(_all(_LINEAR, "mean roll sum unfold")),
    # Not linear
    **dict(_all(_DROPOUT, "dropout feature_dropout")),
    **dict(_all(_RECURRENT, "lstm gru rnn_tanh rnn_relu")),
    # No more than shape or type
    **dict(_all(Facts(reads_shape_of_other=True), "expand_as reshape_as type_as view_as")),
    **dict(_all(Facts("blank"), "empty_like full_like ones_like rand_like randn_like zeros_like")),
    **dict(_all(Facts("blank"), "new_empty new_full new_ones new_zeros")),
    **dict(_all(Facts("assertion"), "_assert_tensor_metadata _assert_scalar _assert_async")),
    **dict(_all(Facts("assertion"), "sym_constrain_range sym_constrain_range_for_size")),
}
"""By name, for every overload that is not in place."""


@functools.cache
def facts(op: Any) -> Facts:
    """Return what is known of an operation, which is one of torch's, a function, or a name of the
    table.

    Nothing is known of an operation in place, which is linear in nothing that remains.

    >>> import torch
    >>> facts(torch.ops.aten.conv2d.padding).kind, facts(torch.ops.aten.conv2d.padding).bias
    ('convolution', 'bias')
    >>> facts(torch.ops.aten.add_.Tensor) == facts(torch.ops.aten.sort.default) == NOTHING
    True
    """
    if isinstance(op, str):
        return TABLE.get(op, NOTHING)
    schema = schema_of(op)
    if schema is None:
        package = str(getattr(op, "__module__", "")).partition(".")[0]
        return TABLE.get(f"{package}.{operation_name(op)}", NOTHING)
    known = TABLE.get(operation_name(op), NOTHING)
    return NOTHING if schema.is_mutable or schema.overload_name in known.unlike else known


def of_kind(kind: Kind) -> frozenset[str]:
    """Return the names of all operations of a kind.

    >>> sorted(of_kind("recurrent"))
    ['aten.gru', 'aten.lstm', 'aten.rnn_relu', 'aten.rnn_tanh']
    """
    return frozenset(name for name, known in TABLE.items() if known.kind == kind)


RECURRENT = of_kind("recurrent")
"""The operations that are a whole recurrent network."""

SHAPED_LIKE = of_kind("blank")
"""The operations that take no more than shape and type from the tensor that they read."""

SHAPED_AS = frozenset(name for name, known in TABLE.items() if known.reads_shape_of_other)
"""The operations that take no more than shape or type from the ``other`` of what they read."""

TURNING = frozenset(name for name, known in TABLE.items() if known.turns)
"""The operations that exchange axes."""

COMMUTATIVE = frozenset(name for name, known in TABLE.items() if known.commutes)
"""The operations whose arguments can be exchanged."""

ONE_BY_ONE = of_kind("elementwise") | {
    "aten.addcdiv",
    "aten.addcmul",
    "aten.lerp",
    "aten.where",
}
"""The operations in which tensors of one shape, or ones that are repeated to it, meet."""

SUMS = frozenset(name for name in of_kind("elementwise") if TABLE[name].terms)
"""The operations one by one that add."""

SIDE_BY_SIDE = frozenset({"aten.cat", "aten.stack"})
"""The operations that put tensors beside one another, none of which changes the others."""


def is_nonlinear(op: Any) -> bool:
    """Tell whether an operation of one value is an activation, or anything that is not known as
    linear, an arrangement or a dropout.

    >>> import operator, torch
    >>> is_nonlinear(torch.ops.aten.gelu.default), is_nonlinear(torch.ops.aten.view.default)
    (True, False)
    >>> is_nonlinear(operator.getitem)
    False
    """
    known = facts(op)
    if known.linear or known.terms:
        return known.kind == "norm"
    return (
        schema_of(op) is not None
        and known.kind in ("", "elementwise", "norm")
        and not known.reads_shape_of_other
    )
