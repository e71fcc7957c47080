"""How every IR operator runs on flat tensors: its kernel, and the attributes in the kernel's order.

Flat tensors are contiguous float32 tensors of one image: the batch dimension is gone, bool and i64
are float32 values. A kernel gets the node's present operands in order. All shapes and strides are
worked out here, so that a kernel sees plain loops; csrc/cpu/flat_*.h says what each one expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dynprune_rt.backends.cpu.strides import Shape, broadcast_strides, dense_strides, image_shape, loop_nest
from dynprune_rt.errors import UnsupportedOperatorError
from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.operators.pooling import linear_source, nearest_source


@dataclass(frozen=True)
class FlatStep:
    """One call of a flat kernel. ``kernel`` names an entry of KernelTable::flat_ops."""

    kernel: str
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    #: Floats of scratch memory that the call needs.
    scratch_floats: int = 0


# ---- operands ---------------------------------------------------------------------------------


def _operand(node: Node, position: int) -> Value:
    value = node.inputs[position]
    assert value is not None
    return value


def _present(node: Node, position: int) -> int:
    return int(len(node.inputs) > position and node.inputs[position] is not None)


def _batched_rank(node: Node) -> int:
    """Rank of the result if it is batched, else 0."""
    return node.output.type.rank if node.output.type.batched else 0


def _in_shape(node: Node, position: int = 0) -> Shape:
    return image_shape(_operand(node, position).type, _batched_rank(node))


def _out_shape(node: Node, position: int = 0) -> Shape:
    return image_shape(node.outputs[position].type)


def _image_dim(node: Node, dim: int) -> int:
    """A dimension of the first operand, counted without the batch."""
    return dim - int(node.output.type.batched)


def _line(node: Node) -> tuple[int, int, int]:
    """(outer, n, inner) of the first operand around attribute ``dim``."""
    shape, dim = _in_shape(node), _image_dim(node, node.attrs["dim"])
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


# ---- elementwise ------------------------------------------------------------------------------

# In the order of enum Unary and of enum Binary in csrc/cpu/kernels.h.
_UNARY_NAMES: Final = (
    "relu clamp leaky_relu sigmoid tanh silu hardswish hardsigmoid mish softplus elu gelu gelu_tanh neg abs sqrt rsqrt "
    "exp log reciprocal round floor ceil trunc sign logical_not isnan erf square sin cos pow_scalar affine cast_i64 "
    "cast_bool"
)
_BINARY_NAMES: Final = (
    "add sub mul div maximum minimum pow remainder floor_divide eq ne lt le gt ge logical_and logical_or logical_xor"
)
_UNARY: Final = {name: number for number, name in enumerate(_UNARY_NAMES.split())}
_BINARY: Final = {name: number for number, name in enumerate(_BINARY_NAMES.split())}


def _unary_step(node: Node, kind: str, a: float = 0.0, b: float = 0.0) -> FlatStep:
    return FlatStep("unary", (_UNARY[kind], math.prod(_in_shape(node))), (a, b))


def _unary(node: Node) -> FlatStep:
    return _unary_step(node, node.op)


def _clamp(node: Node) -> FlatStep:
    return _unary_step(node, "clamp", node.attrs["lo"], node.attrs["hi"])


def _leaky_relu(node: Node) -> FlatStep:
    return _unary_step(node, "leaky_relu", node.attrs["slope"])


def _elu(node: Node) -> FlatStep:
    return _unary_step(node, "elu", node.attrs["alpha"])


def _gelu(node: Node) -> FlatStep:
    return _unary_step(node, "gelu_tanh" if node.attrs["approximate"] == "tanh" else "gelu")


def _pow_scalar(node: Node) -> FlatStep:
    return _unary_step(node, "pow_scalar", node.attrs["exponent"])


def _cast(node: Node) -> FlatStep:
    source, target = _operand(node, 0).type.dtype, node.attrs["dtype"]
    if target == "bool" and source != "bool":
        return _unary_step(node, "cast_bool")
    if target == "i64" and source == "f32":
        return _unary_step(node, "cast_i64")
    return _reshape(node)


def _binary(node: Node) -> FlatStep:
    out = _out_shape(node)
    strides = [broadcast_strides(_in_shape(node, i), out) for i in range(2)]
    return FlatStep("binary", (_BINARY[node.op], *loop_nest(out, *strides)))


def _where(node: Node) -> FlatStep:
    out = _out_shape(node)
    return FlatStep("where", loop_nest(out, *(broadcast_strides(_in_shape(node, i), out) for i in range(3))))


def _affine(node: Node) -> FlatStep:
    channels, *inner = _in_shape(node)
    return FlatStep("affine", (channels, math.prod(inner)))


# ---- shape ------------------------------------------------------------------------------------


def _copy(
    dims: Sequence[int],
    x_strides: Sequence[int],
    y_strides: Sequence[int],
    x_offset: int = 0,
    y_offset: int = 0,
    fill: tuple[int, float] = (0, 0.0),
) -> FlatStep:
    return FlatStep("copy", (fill[0], x_offset, y_offset, *loop_nest(dims, x_strides, y_strides)), (fill[1],))


def _reshape(node: Node) -> FlatStep:
    return _copy([math.prod(_in_shape(node))], [1], [1])


def _expand(node: Node) -> FlatStep:
    out = _out_shape(node)
    return _copy(out, broadcast_strides(_in_shape(node), out), dense_strides(out))


def _permute(node: Node) -> FlatStep:
    out, strides = _out_shape(node), dense_strides(_in_shape(node))
    dims = node.attrs["dims"][1:] if node.output.type.batched else node.attrs["dims"]
    order = [_image_dim(node, d) for d in dims]
    return _copy(out, [strides[d] for d in order], dense_strides(out))


def _slice(node: Node) -> FlatStep:
    out, strides = _out_shape(node), dense_strides(_in_shape(node))
    dim = _image_dim(node, node.attrs["dim"])
    offset = node.attrs["start"] * strides[dim]
    strides[dim] *= node.attrs["step"]
    return _copy(out, strides, dense_strides(out), x_offset=offset)


def _pad(node: Node) -> FlatStep:
    shape, out = _in_shape(node), _out_shape(node)
    low = node.attrs["low"][1:] if node.output.type.batched else node.attrs["low"]
    y_strides = dense_strides(out)
    offset = sum(n * stride for n, stride in zip(low, y_strides, strict=True))
    value = float(node.attrs["value"])
    dtype = node.output.type.dtype
    if dtype != "f32":
        value = float(int(value)) if dtype == "i64" else float(bool(value))
    return _copy(shape, dense_strides(shape), y_strides, y_offset=offset, fill=(math.prod(out), value))


def _repeat(node: Node) -> FlatStep:
    shape, strides, y_strides = (
        _in_shape(node),
        dense_strides(_in_shape(node)),
        dense_strides(_out_shape(node)),
    )
    repeats = node.attrs["repeats"][1:] if node.output.type.batched else node.attrs["repeats"]
    dims: list[int] = []
    x_steps: list[int] = []
    y_steps: list[int] = []
    for size, times, x_step, y_step in zip(shape, repeats, strides, y_strides, strict=True):
        dims += [times, size]
        x_steps += [0, x_step]
        y_steps += [y_step * size, y_step]
    return _copy(dims, x_steps, y_steps)


def _cat(node: Node) -> FlatStep:
    dim = _image_dim(node, node.attrs["dim"])
    shapes = [_in_shape(node, i) for i in range(len(node.inputs))]
    return FlatStep("cat", (math.prod(shapes[0][:dim]), *(math.prod(shape[dim:]) for shape in shapes)))


# ---- indexing ---------------------------------------------------------------------------------


def _without(strides: Sequence[int], dim: int) -> list[int]:
    return [0 if i == dim else stride for i, stride in enumerate(strides)]


def _gather(node: Node) -> FlatStep:
    x, index, dim = _in_shape(node), _in_shape(node, 1), _image_dim(node, node.attrs["dim"])
    strides = dense_strides(x)
    return FlatStep("gather", (x[dim], strides[dim], *loop_nest(index, _without(strides, dim), dense_strides(index))))


def _scatter(node: Node) -> FlatStep:
    x, index, dim = _in_shape(node), _in_shape(node, 1), _image_dim(node, node.attrs["dim"])
    strides = dense_strides(x)
    source = broadcast_strides(_in_shape(node, 2), index)
    nest = loop_nest(index, _without(strides, dim), dense_strides(index), source)
    return FlatStep("scatter", (math.prod(x), x[dim], strides[dim], *nest))


def _index_select(node: Node) -> FlatStep:
    return FlatStep("index_select", (*_line(node), _operand(node, 1).type.shape[0]))


def _one_hot(node: Node) -> FlatStep:
    return FlatStep("one_hot", (math.prod(_in_shape(node)), node.attrs["classes"]))


# ---- reductions, scans, order -----------------------------------------------------------------

# Numbers of enum FlatReduce in csrc/cpu/flat_reduce.h; kinds of `reduce` and of `spatial_reduce`.
_REDUCE: Final = {
    "sum": 0,
    "mean": 1,
    "max": 2,
    "min": 3,
    "prod": 4,
    "l1": 5,
    "l2": 6,
    "any": 7,
    "all": 8,
    "mean_abs": 9,
    "sum_squares": 10,
    "max_abs": 11,
    "sum_abs": 5,
}


def _reduction(kind: str, shape: Shape, dims: Sequence[int]) -> FlatStep:
    strides = dense_strides(shape)
    kept = [d for d in range(len(shape)) if d not in dims]
    nests = [loop_nest([shape[d] for d in group], [strides[d] for d in group]) for group in (kept, sorted(dims))]
    return FlatStep("reduce", (_REDUCE[kind], math.prod(shape[d] for d in dims), *nests[0], *nests[1]))


def _reduce(node: Node) -> FlatStep:
    return _reduction(node.attrs["kind"], _in_shape(node), [_image_dim(node, d) for d in node.attrs["dims"]])


def _spatial_reduce(node: Node) -> FlatStep:
    return _reduction(node.attrs["kind"], _in_shape(node), [1, 2])


def _arg_extreme(node: Node) -> FlatStep:
    return FlatStep("arg_extreme", (*_line(node), int(node.op == "argmax")))


def _scan(node: Node) -> FlatStep:
    outer, n, inner = _line(node)
    return FlatStep(node.op, (outer, n, inner), scratch_floats=2 * n)


def _order(node: Node, first: int, count: int, descending: bool) -> FlatStep:
    outer, n, inner = _line(node)
    return FlatStep("order", (outer, n, inner, first, count, int(descending)), scratch_floats=4 * n)


def _topk(node: Node) -> FlatStep:
    return _order(node, 0, node.attrs["k"], node.attrs["largest"])


def scatters_top(scatter: Node, topk: Node) -> bool:
    """Does ``scatter`` write one value at the indices of ``topk``, both along vectors, as gates make their masks?"""
    if scatter.op != "scatter" or scatter.inputs[1] is not topk.outputs[1] or not scatter.output.type.batched:
        return False
    vector = _in_shape(topk)
    one_value = math.prod(_in_shape(scatter, 2)) == 1
    return one_value and len(vector) == 1 and vector == _in_shape(scatter) == _out_shape(scatter)


def encode_scatter_top(topk: Node) -> FlatStep:
    """Both in one kernel, whose operands are what ``topk`` selects from, and what is scattered into and from."""
    (n,) = _in_shape(topk)
    return FlatStep("scatter_top", (n, topk.attrs["k"], int(topk.attrs["largest"])), scratch_floats=4 * n)


def _sort(node: Node) -> FlatStep:
    return _order(node, 0, _line(node)[1], node.attrs["descending"])


def _kthvalue(node: Node) -> FlatStep:
    return _order(node, node.attrs["k"] - 1, 1, False)


# ---- matrices, norms --------------------------------------------------------------------------


def _linear(node: Node) -> FlatStep:
    *rows, features = _in_shape(node)
    out_features = _operand(node, 1).type.shape[0]
    return FlatStep("linear", (math.prod(rows), features, out_features, _present(node, 2)), node.attrs["inner"])


def _matmul(node: Node) -> FlatStep:
    a, b = (_operand(node, i).type for i in range(2))
    # Only the dimensions before the matrix broadcast: a leading 1 of a matrix proper is no batch.
    rank = _batched_rank(node)
    a_shape, b_shape = (image_shape(t, rank if t.rank > 2 else 0) for t in (a, b))
    rows = a_shape[-2] if len(a_shape) > 1 else 1
    columns = b_shape[-1] if len(b_shape) > 1 else 1
    inner = a_shape[-1]
    leading = _out_shape(node)[: max(len(a_shape), len(b_shape), 2) - 2]
    strides = []
    for shape in (a_shape, b_shape):
        matrix = math.prod(shape[-2:])
        strides.append([stride * matrix for stride in broadcast_strides(shape[:-2], leading)])
    return FlatStep("matmul", (rows, inner, columns, *loop_nest(leading, *strides)))


def _group_norm(node: Node) -> FlatStep:
    channels, *inner = _in_shape(node)
    present = _present(node, 1), _present(node, 2)
    return FlatStep("group_norm", (node.attrs["groups"], channels, math.prod(inner), *present), (node.attrs["eps"],))


def _layer_norm(node: Node) -> FlatStep:
    shape = _in_shape(node)
    first = _image_dim(node, node.attrs["dims"][0])
    sizes = math.prod(shape[:first]), math.prod(shape[first:])
    return FlatStep("layer_norm", (*sizes, _present(node, 1), _present(node, 2)), (node.attrs["eps"],))


# ---- space ------------------------------------------------------------------------------------


def _pool2d(node: Node) -> FlatStep:
    (channels, *size), (_, *out) = _in_shape(node), _out_shape(node)
    attrs = node.attrs
    dilation = attrs.get("dilation", (1, 1))
    average = node.op == "avg_pool2d"
    ints = [channels, int(average), int(average and attrs["count_include_pad"]), attrs["divisor"] if average else 0]
    for axis in range(2):
        ints += [size[axis], out[axis], attrs["kernel"][axis], attrs["stride"][axis]]
        ints += [attrs["padding"][axis], attrs["padding"][axis + 2], dilation[axis]]
    return FlatStep("pool2d", tuple(ints))


def _adaptive_pool2d(node: Node) -> FlatStep:
    channels, height, width = _in_shape(node)
    average = int(node.op == "adaptive_avg_pool2d")
    return FlatStep("adaptive_pool2d", (channels, average, height, width, *node.attrs["output"]))


def _interpolate(node: Node) -> FlatStep:
    channels, *size = _in_shape(node)
    out, scale = node.attrs["size"], node.attrs["scale"] or (None, None)
    indices: list[int] = []
    weights: list[float] = []
    for axis in range(2):
        if node.attrs["mode"] == "nearest":
            low = high = nearest_source(size[axis], out[axis], scale[axis])
            weights += [0.0] * out[axis]
        else:
            low, high, weight = linear_source(size[axis], out[axis], node.attrs["align_corners"], scale[axis])
            weights += weight.tolist()
        indices += [*low.tolist(), *high.tolist()]
    return FlatStep("interpolate", (channels, *size, *out, *indices), tuple(weights))


# ---- the table --------------------------------------------------------------------------------

# Unary functions that have attributes or a kernel of another name.
_OTHER_UNARY: Final = {
    "clamp",
    "leaky_relu",
    "elu",
    "gelu",
    "gelu_tanh",
    "pow_scalar",
    "affine",
    "cast_i64",
    "cast_bool",
}

#: IR operator -> encoder of its nodes. conv2d is missing on purpose: convolutions are planar.
FLAT_OPS: dict[str, Callable[[Node], FlatStep]] = {
    **{name: _unary for name in _UNARY if name not in _OTHER_UNARY},
    **dict.fromkeys(_BINARY, _binary),
    "clamp": _clamp,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "pow_scalar": _pow_scalar,
    "cast": _cast,
    "where": _where,
    "affine": _affine,
    "reshape": _reshape,
    "expand": _expand,
    "permute": _permute,
    "slice": _slice,
    "pad": _pad,
    "repeat": _repeat,
    "cat": _cat,
    "gather": _gather,
    "scatter": _scatter,
    "index_select": _index_select,
    "one_hot": _one_hot,
    "reduce": _reduce,
    "spatial_reduce": _spatial_reduce,
    "argmax": _arg_extreme,
    "argmin": _arg_extreme,
    "softmax": _scan,
    "log_softmax": _scan,
    "cumsum": _scan,
    "topk": _topk,
    "sort": _sort,
    "kthvalue": _kthvalue,
    "linear": _linear,
    "matmul": _matmul,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "max_pool2d": _pool2d,
    "avg_pool2d": _pool2d,
    "adaptive_avg_pool2d": _adaptive_pool2d,
    "adaptive_max_pool2d": _adaptive_pool2d,
    "interpolate": _interpolate,
}


def encode(node: Node) -> FlatStep:
    """The kernel call for one node; raises UnsupportedOperatorError where there is no flat kernel."""
    encoder = FLAT_OPS.get(node.op)
    if encoder is None:
        raise UnsupportedOperatorError(
            f"operator {node.op} ({node.name}{', ' + node.origin if node.origin else ''}) has no CPU kernel on flat "
            "tensors; convert the model with a version of dynprune-rt that knows it"
        )
    return encoder(node)
