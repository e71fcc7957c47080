"""Every flat operator against the reference interpreter, on every instruction set of this machine."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from dynprune_rt import _C
from dynprune_rt.backends.cpu import flat_ops
from dynprune_rt.backends.cpu.flat_ops import FLAT_OPS, encode
from dynprune_rt.backends.cpu.strides import image_shape
from dynprune_rt.errors import UnsupportedOperatorError
from dynprune_rt.ir import interpreter
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.operators.pooling import SPATIAL_REDUCTIONS
from dynprune_rt.ir.operators.rules import ANY
from dynprune_rt.ir.types import BATCH, DTYPES, TensorType

BATCH_SIZE = 2
INF = math.inf
SPECIAL = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 3.0, -3.0, 6.0, 1e-3, -20.0, 20.5, 50.0, -87.0, INF, -INF, math.nan]

PLAIN_UNARY = (
    "relu neg abs sqrt rsqrt exp log reciprocal sigmoid tanh silu hardswish hardsigmoid mish softplus round floor "
    "ceil trunc sign isnan erf square sin cos"
)
ARITHMETIC = "add sub mul div maximum minimum pow remainder floor_divide"
#: Operators that are compared within a few units in the last place; the results of the others are exact.
ROUNDED = (
    "rsqrt exp log reciprocal sigmoid tanh silu hardswish hardsigmoid mish softplus erf sin cos elu gelu pow "
    "pow_scalar div remainder leaky_relu affine reduce spatial_reduce softmax log_softmax cumsum linear matmul "
    "group_norm layer_norm avg_pool2d adaptive_avg_pool2d interpolate"
)


@dataclass(frozen=True)
class Operand:
    """An operand: its element type, its shape without the batch, and how its values are drawn."""

    dtype: str
    shape: tuple[int, ...]
    batched: bool = True
    values: str = "normal"  # normal, positive, special; ties (small integers), divisor (no zero), index:<size>

    def type(self) -> TensorType:
        return TensorType(self.dtype, (BATCH, *self.shape) if self.batched else self.shape)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        shape = (BATCH_SIZE, *self.shape) if self.batched else self.shape
        if self.dtype == "bool":
            array: np.ndarray = rng.random(shape) < 0.5
        elif self.values.startswith("index:"):
            array = rng.integers(0, int(self.values[6:]), shape)
        elif self.values == "divisor":
            array = rng.choice([-3, -2, -1, 1, 2, 3], shape)
        elif self.dtype == "i64" or self.values == "ties":
            array = rng.integers(-3, 4, shape)
        elif self.values == "special":
            array = rng.choice(SPECIAL, shape)
        else:
            array = rng.normal(0.0, 2.0, shape)
            array = np.abs(array) + 0.1 if self.values == "positive" else array
        return np.asarray(array).astype(DTYPES[self.dtype])


@dataclass(frozen=True)
class Case:
    op: str
    operands: tuple[Operand | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = "-".join("none" if o is None else f"{o.dtype}{list(o.shape)}{o.values[0]}" for o in self.operands)
        return f"{self.op}-{shapes}-{','.join(f'{k}={v}' for k, v in self.attrs.items())}"


def f32(*shape: int, values: str = "normal") -> Operand:
    return Operand("f32", shape, values=values)


def i64(*shape: int, values: str = "ties") -> Operand:
    return Operand("i64", shape, values=values)


def bools(*shape: int) -> Operand:
    return Operand("bool", shape)


def const(*shape: int, dtype: str = "f32", values: str = "normal") -> Operand:
    return Operand(dtype, shape, batched=False, values=values)


def _unary_cases() -> list[Case]:
    domain = {"sqrt": "positive", "rsqrt": "positive", "log": "positive"}
    cases = []
    for name in PLAIN_UNARY.split():
        cases.append(Case(name, (f32(19, values=domain.get(name, "normal")),)))
        cases.append(Case(name, (f32(5, 3, 7, values="special"),)))
    with_attrs: list[tuple[str, dict[str, Any]]] = [
        ("clamp", {"lo": -0.5, "hi": INF}),
        ("clamp", {"lo": 0.25, "hi": 1.5}),
        ("leaky_relu", {"slope": 0.2}),
        ("elu", {"alpha": 1.3}),
        ("gelu", {"approximate": "none"}),
        ("gelu", {"approximate": "tanh"}),
        ("pow_scalar", {"exponent": 2.0}),
        ("pow_scalar", {"exponent": 3.0}),
        ("pow_scalar", {"exponent": -1.0}),
    ]
    for name, attrs in with_attrs:
        cases += [Case(name, (f32(33),), attrs), Case(name, (f32(40, values="special"),), attrs)]
    cases.append(Case("pow_scalar", (f32(20, values="positive"),), {"exponent": 0.7}))
    cases += [Case(name, (i64(9),)) for name in ("relu", "neg", "abs", "sign", "square")]
    cases += [Case("clamp", (i64(9),), {"lo": -1.0, "hi": 2.0}), Case("logical_not", (bools(21),))]
    for source in (f32(4, 5), f32(7, values="ties"), i64(6), bools(17)):
        cases += [Case("cast", (source,), {"dtype": dtype}) for dtype in ANY]
    return cases


def _binary_cases() -> list[Case]:
    shapes = [
        (f32(16), f32(16)),
        (f32(5, 3, 3), f32(5, 1, 1)),
        (f32(5, 1, 1), f32(5, 3, 3)),
        (f32(5, 4), const(4)),
        (const(), f32(35)),
        (f32(7), const(1, 7)),
        (f32(1, 6), f32(5, 1)),
        (const(3, 1), f32(3, 4)),
        (f32(5, 4), const(1, 5, 1)),
        (f32(2, 1, 3, 1), f32(1, 4, 1, 20)),
        (f32(1), f32(1)),
    ]

    def typed(operand: Operand, dtype: str, values: str) -> Operand:
        return Operand(dtype, operand.shape, operand.batched, values)

    cases = []
    arithmetic = ARITHMETIC.split()
    for name in [*arithmetic, "eq", "ne", "lt", "le", "gt", "ge"]:
        values = "positive" if name == "pow" else "normal" if name in arithmetic else "ties"
        cases += [Case(name, (typed(a, "f32", values), typed(b, "f32", values))) for a, b in shapes]
        cases.append(Case(name, (f32(37, values="ties"), f32(37, values="ties"))))
        if name not in ("div", "pow"):
            values = "divisor" if name in ("remainder", "floor_divide") else "ties"
            cases.append(Case(name, (i64(18), i64(18, values=values))))
            cases.append(Case(name, (i64(3, 5), const(5, dtype="i64", values=values))))
        if name != "pow":
            cases.append(Case(name, (f32(60, values="special"), f32(60, values="special"))))
    for name in ("logical_and", "logical_or", "logical_xor", "eq", "ne"):
        cases += [Case(name, (bools(23), bools(23))), Case(name, (bools(4, 5), const(5, dtype="bool")))]
    cases += [
        Case("where", (bools(16), f32(16), f32(16))),
        Case("where", (bools(5, 1, 1), f32(5, 3, 3), const())),
        Case("where", (bools(5), const(), f32(5, values="special"))),
        Case("where", (bools(4, 1), i64(4, 6), const(6, dtype="i64"))),
        Case("where", (const(1, 7, dtype="bool"), f32(7), f32(1))),
        Case("affine", (f32(35), const(35), const(35))),
        Case("affine", (f32(6, 5, 5), const(6), const(6))),
    ]
    return cases


def _shape_cases() -> list[Case]:
    n = BATCH
    return [
        Case("reshape", (f32(4, 6),), {"shape": (n, 3, 8)}),
        Case("reshape", (bools(5),), {"shape": (n, 5, 1, 1)}),
        Case("expand", (f32(5, 1, 1),), {"shape": (n, 5, 3, 4)}),
        Case("expand", (f32(1),), {"shape": (n, 17)}),
        Case("repeat", (f32(3, 4),), {"repeats": (1, 2, 3)}),
        Case("repeat", (f32(5),), {"repeats": (1, 1)}),
        Case("repeat", (i64(2, 3, 2),), {"repeats": (1, 3, 1, 2)}),
        Case("permute", (f32(2, 3, 4),), {"dims": (0, 3, 1, 2)}),
        Case("permute", (f32(2, 3, 4, 5),), {"dims": (0, 2, 1, 4, 3)}),
        Case("permute", (f32(3, 4),), {"dims": (0, 1, 2)}),
        Case("slice", (f32(20),), {"dim": 1, "start": 3, "stop": 19}),
        Case("slice", (f32(5, 9, 3),), {"dim": 2, "start": 1, "stop": 8, "step": 3}),
        Case("slice", (f32(5, 4),), {"dim": 1, "start": 4, "stop": 5}),
        Case("pad", (f32(3, 4),), {"low": (0, 1, 0), "high": (0, 0, 2), "value": -1.5}),
        Case("pad", (f32(2, 3, 5),), {"low": (0, 0, 1, 2), "high": (0, 1, 1, 0)}),
        Case("pad", (bools(4),), {"low": (0, 2), "high": (0, 1), "value": 1.0}),
        Case("cat", (f32(3), f32(20), f32(1)), {"dim": 1}),
        Case("cat", (f32(2, 3, 4), f32(2, 5, 4)), {"dim": 2}),
        Case("cat", (bools(4),), {"dim": 1}),
        Case("index_select", (f32(6), const(9, dtype="i64", values="index:6")), {"dim": 1}),
        Case("index_select", (f32(6, 3, 4), const(4, dtype="i64", values="index:6")), {"dim": 1}),
        Case("index_select", (f32(2, 5, 2), const(7, dtype="i64", values="index:5")), {"dim": 2}),
        Case("one_hot", (i64(7, values="index:4"),), {"classes": 4}),
        Case("one_hot", (i64(3, 2),), {"classes": 3}),  # classes out of range give zeros
    ]


def _indexing_cases() -> list[Case]:
    def index(*shape: int, size: int) -> Operand:
        return i64(*shape, values=f"index:{size}")

    return [
        Case("gather", (f32(10), index(4, size=10)), {"dim": 1}),
        Case("gather", (f32(3, 5, 4), index(3, 2, 4, size=5)), {"dim": 2}),
        Case("gather", (f32(3, 5, 4), index(2, 5, 6, size=4)), {"dim": 3}),
        Case("gather", (const(1, 10), index(4, size=10)), {"dim": 1}),
        Case("scatter", (f32(10), index(4, size=10), f32(4)), {"dim": 1}),
        Case("scatter", (f32(10), index(4, size=10), const()), {"dim": 1}),
        Case("scatter", (f32(3, 5, 4), index(3, 9, 2, size=5), f32(3, 9, 2)), {"dim": 2}),
        Case("scatter", (f32(3, 5), index(2, 5, size=3), const(5)), {"dim": 1}),
        Case("scatter", (const(1, 12), index(5, size=12), const(1)), {"dim": 1}),
    ]


def _reduction_cases() -> list[Case]:
    cases = []
    for kind in ("sum", "mean", "max", "min", "prod", "l1", "l2"):
        cases += [
            Case("reduce", (f32(35),), {"kind": kind, "dims": (1,)}),
            Case("reduce", (f32(3, 4, 5),), {"kind": kind, "dims": (1, 3), "keepdim": True}),
            Case("reduce", (f32(3, 4, 5),), {"kind": kind, "dims": (2,)}),
            Case("reduce", (f32(3, 4, 5),), {"kind": kind, "dims": (3, 2, 1)}),
            Case("reduce", (f32(6, 7, values="special"),), {"kind": kind, "dims": (2,)}),
        ]
    cases += [Case("reduce", (i64(3, 4),), {"kind": kind, "dims": (1,)}) for kind in ("sum", "max", "min", "prod")]
    for kind in ("any", "all"):
        cases += [Case("reduce", (bools(4, 3),), {"kind": kind, "dims": (2,)})]
    cases += [
        Case("spatial_reduce", (f32(5, 7, 6, values=values),), {"kind": kind})
        for kind in SPATIAL_REDUCTIONS
        for values in ("normal", "ties")
    ]
    for name in ("argmax", "argmin"):
        for operand in (f32(9, values="ties"), f32(9, values="special"), i64(9)):
            cases.append(Case(name, (operand,), {"dim": 1}))
        cases.append(Case(name, (f32(4, 5, 3, values="ties"),), {"dim": 2, "keepdim": True}))
    for name in ("softmax", "log_softmax", "cumsum"):
        cases += [Case(name, (f32(37),), {"dim": 1}), Case(name, (f32(3, 6, 5),), {"dim": 2})]
    cases += [Case("softmax", (f32(12, values="special"),), {"dim": 1}), Case("cumsum", (i64(8),), {"dim": 1})]
    for operand in (f32(10, values="ties"), f32(40, values="special"), f32(200), f32(200, values="ties"), i64(20)):
        size = operand.shape[0]
        for flag in (False, True):
            cases.append(Case("sort", (operand,), {"dim": 1, "descending": flag}))
            cases += [Case("topk", (operand,), {"k": k, "dim": 1, "largest": flag}) for k in (1, 4, size)]
        cases += [Case("kthvalue", (operand,), {"k": k, "dim": 1}) for k in (1, 3, size)]
    cases += [
        Case("sort", (f32(3, 6, 4, values="ties"),), {"dim": 2}),
        Case("topk", (f32(3, 70, 2, values="ties"),), {"k": 5, "dim": 2}),
        Case("kthvalue", (f32(3, 6, 4),), {"k": 2, "dim": 2, "keepdim": True}),
    ]
    return cases


def _matrix_cases() -> list[Case]:
    return [
        Case("linear", (f32(16), const(5, 16), const(5))),
        Case("linear", (f32(3, 33), const(18, 33), None), {"inner": (0.0, 6.0)}),
        Case("linear", (f32(1), const(1, 1))),
        Case("matmul", (f32(3, 5), f32(5, 20))),
        Case("matmul", (f32(4, 3, 5), f32(1, 5, 6))),
        Case("matmul", (f32(5), const(5, 7))),
        Case("matmul", (f32(1), const(1, 7))),
        Case("matmul", (f32(3, 5), const(5))),
        Case("matmul", (const(4, 5), f32(5, 6))),
        Case("matmul", (const(1, 4, 5), f32(5, 6))),
        Case("matmul", (f32(2, 3, 5), const(2, 5, 4))),
        Case("group_norm", (f32(6, 4, 4), const(6), const(6)), {"groups": 3}),
        Case("group_norm", (f32(6, 5), None, const(6)), {"groups": 1, "eps": 1e-3}),
        Case("group_norm", (f32(4, 3, 3), const(4)), {"groups": 4}),
        Case("layer_norm", (f32(20), const(20), const(20)), {"dims": (1,)}),
        Case("layer_norm", (f32(3, 4, 5), None, const(4, 5)), {"dims": (2, 3)}),
        Case("layer_norm", (f32(3, 9),), {"dims": (2,), "eps": 1e-3}),
    ]


def _space_cases() -> list[Case]:
    three: dict[str, Any] = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}
    uneven: dict[str, Any] = {"kernel": (2, 3), "stride": (3, 2), "padding": (0, 1, 1, 0)}
    cases = []
    for size in ((7, 7), (8, 11)):
        x = f32(3, *size)
        cases += [Case("max_pool2d", (x,), {**a, "ceil_mode": c}) for a in (three, uneven) for c in (False, True)]
        cases.append(Case("max_pool2d", (x,), {"kernel": (2, 2), "stride": (1, 2), "dilation": (3, 2)}))
        cases += [
            Case("avg_pool2d", (x,), {**a, "ceil_mode": ceil, "count_include_pad": count})
            for a in (three, uneven)
            for ceil in (False, True)
            for count in (False, True)
        ]
        cases.append(Case("avg_pool2d", (x,), {**three, "divisor": 5}))
        for out in ((1, 1), (2, 3), (7, 9)):
            cases += [Case(f"adaptive_{kind}_pool2d", (x,), {"output": out}) for kind in ("avg", "max")]
            cases.append(Case("interpolate", (x,), {"size": out, "mode": "nearest"}))
            cases += [
                Case("interpolate", (x,), {"size": out, "mode": "bilinear", "align_corners": a}) for a in (False, True)
            ]
    cases += [
        Case("interpolate", (f32(2, 5, 5),), {"size": (12, 12), "mode": mode, "scale": (2.5, 2.5)})
        for mode in ("nearest", "bilinear")
    ]
    return cases


def _unbatched_cases() -> list[Case]:
    """Values that are the same for every image: dimension 0 is an ordinary one."""
    return [
        Case("add", (const(3, 4), const(1, 4))),
        Case("mul", (const(1, 4), const(1, 4))),
        Case("where", (const(3, 1, dtype="bool"), const(1, 5), const())),
        Case("sigmoid", (const(9),)),
        Case("reduce", (const(3, 4),), {"kind": "sum", "dims": (0,), "keepdim": True}),
        Case("argmax", (const(1, 7),), {"dim": 1}),
        Case("topk", (const(9, 2),), {"k": 3, "dim": 0}),
        Case("softmax", (const(4, 3),), {"dim": 0}),
        Case("reshape", (const(3, 4),), {"shape": (4, 3)}),
        Case("expand", (const(1, 4),), {"shape": (3, 4)}),
        Case("permute", (const(3, 4),), {"dims": (1, 0)}),
        Case("slice", (const(7, 2),), {"dim": 0, "start": 1, "stop": 6, "step": 2}),
        Case("pad", (const(3, 4),), {"low": (1, 0), "high": (0, 2)}),
        Case("repeat", (const(3, 4),), {"repeats": (2, 1)}),
        Case("cat", (const(3, 4), const(2, 4)), {"dim": 0}),
        Case("gather", (const(6, 2), const(3, 2, dtype="i64", values="index:6")), {"dim": 0}),
        Case("scatter", (const(6, 2), const(3, 2, dtype="i64", values="index:6"), const()), {"dim": 0}),
        Case("index_select", (const(6, 2), const(3, dtype="i64", values="index:6")), {"dim": 0}),
        Case("one_hot", (const(4, dtype="i64", values="index:3"),), {"classes": 3}),
        Case("linear", (const(2, 5), const(3, 5))),
        Case("matmul", (const(1, 3, 5), const(2, 5, 4))),
        Case("layer_norm", (const(3, 5),), {"dims": (0, 1)}),
    ]


CASES = [
    *_unary_cases(),
    *_binary_cases(),
    *_shape_cases(),
    *_indexing_cases(),
    *_reduction_cases(),
    *_matrix_cases(),
    *_space_cases(),
    *_unbatched_cases(),
]


def _node(case: Case, arrays: list[np.ndarray | None]) -> Node:
    builder = Builder(fold=False)
    operands: list[Value | None] = []
    for operand, array in zip(case.operands, arrays, strict=True):
        if operand is None or array is None:
            operands.append(None)
        elif operand.batched:
            operands.append(builder.graph.add_input("x", operand.type()))
        else:
            operands.append(builder.graph.add_constant("c", array))
    builder.append(case.op, operands, case.attrs)
    return builder.graph.nodes[0]


def _run(node: Node, arrays: list[np.ndarray | None], isa: str) -> list[np.ndarray]:
    """The node image by image through its flat kernel: one array per output."""
    step = encode(node)
    images = []
    for image in range(BATCH_SIZE):
        inputs = [
            np.ascontiguousarray(array[image] if value.type.batched else array, np.float32)
            for value, array in zip(node.inputs, arrays, strict=True)
            if value is not None and array is not None
        ]
        shapes = [image_shape(v.type) for v in node.outputs]
        images.append(_C.run_flat_op(step.kernel, inputs, shapes, step.ints, step.floats, step.scratch_floats, isa))
    stacked = [np.stack(parts) for parts in zip(*images, strict=True)]
    return [array if v.type.batched else array[0] for v, array in zip(node.outputs, stacked, strict=True)]


def test_the_table_covers_every_operator() -> None:
    flat = {name for name in OPERATORS if name != "conv2d" and "quantize" not in name}
    assert set(FLAT_OPS) == flat
    assert {case.op for case in CASES} == flat


def test_enums_match_the_kernels() -> None:
    assert {name: member.value for name, member in _C.Unary.__members__.items()} == flat_ops._UNARY
    assert {name: member.value for name, member in _C.Binary.__members__.items()} == flat_ops._BINARY


@pytest.mark.parametrize("isa", _C.available_isas())
def test_the_encoder_names_kernels_that_exist(isa: str) -> None:
    kernels = set(_C.flat_ops(isa))
    for case in CASES:
        rng = np.random.default_rng(0)
        node = _node(case, [None if o is None else o.draw(rng) for o in case.operands])
        assert encode(node).kernel in kernels


def test_conv2d_is_refused() -> None:
    case = Case("conv2d", (f32(3, 5, 5), const(4, 3, 3, 3)))
    rng = np.random.default_rng(0)
    node = _node(case, [o.draw(rng) for o in case.operands if o is not None])
    with pytest.raises(UnsupportedOperatorError, match="conv2d"):
        encode(node)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_flat_operator_matches_the_reference(case: Case, isa: str) -> None:
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    arrays = [None if operand is None else operand.draw(rng) for operand in case.operands]
    node = _node(case, arrays)
    expected = interpreter.evaluate(node, arrays)
    results = _run(node, arrays, isa)
    for value, got, want in zip(node.outputs, results, expected, strict=True):
        assert got.shape == want.shape
        want = want.astype(np.float32)
        if case.op in ROUNDED.split() and value.type.dtype == "f32":
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, want)


def test_an_index_out_of_range_touches_no_memory() -> None:
    x, source = np.arange(6, dtype=np.float32), np.full(4, 9, np.float32)
    index = np.array([-1, 6, math.nan, 2], np.float32)
    gather = encode(_node(Case("gather", (f32(6), i64(4)), {"dim": 1}), [np.zeros((1, 6), np.float32)] * 2))
    (got,) = _C.run_flat_op(gather.kernel, [x, index], [(4,)], gather.ints, gather.floats, 0)
    np.testing.assert_array_equal(got, [math.nan, math.nan, math.nan, 2])
    case = Case("scatter", (f32(6), i64(4), f32(4)), {"dim": 1})
    scatter = encode(_node(case, [np.zeros((1, 6), np.float32)] * 3))
    (got,) = _C.run_flat_op(scatter.kernel, [x, index, source], [(6,)], scatter.ints, scatter.floats, 0)
    np.testing.assert_array_equal(got, [0, 1, 9, 3, 4, 5])
