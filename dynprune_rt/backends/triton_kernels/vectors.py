"""What gates compute on vectors, in Triton: fp32 in a fixed order (compare csrc/cuda/vectors.cuh)."""

from __future__ import annotations

import triton
import triton.language as tl

from dynprune_rt.backends.triton_kernels.epilogue import clamp
from dynprune_rt.backends.triton_kernels.maps import added, larger, multiplied, smaller


@triton.jit
def linear_kernel(x, weights, bias, y, low, high, features, outputs, HAS_BIAS: tl.constexpr, BN: tl.constexpr,
                  BF: tl.constexpr):  # fmt: skip
    """Grid: (rows, blocks of outputs)."""
    row = tl.program_id(0).to(tl.int64)
    output = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BN, BF), tl.float32)
    for start in range(0, features, BF):
        feature = start + tl.arange(0, BF)
        v = tl.load(x + row * features + feature, mask=feature < features, other=0.0)
        wanted = (output < outputs)[:, None] & (feature < features)[None, :]
        w = tl.load(weights + output.to(tl.int64)[:, None] * features + feature[None, :], mask=wanted, other=0.0)
        total += v[None, :] * w
    result = tl.reduce(total, 1, added)
    if HAS_BIAS:
        result += tl.load(bias + output, mask=output < outputs, other=0.0)
    tl.store(y + row * outputs + output, clamp(result, low, high), mask=output < outputs)


@triton.jit
def reduce_kernel(x, y, lines, length, KIND: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr):
    """Lines [lines, length] to [lines]; KIND numbers maps.REDUCE_KINDS: sum mean max min prod l1 l2."""
    line = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros((BN, BL), tl.float32)
    if KIND == 2:
        total += float("-inf")
    elif KIND == 3:
        total += float("inf")
    elif KIND == 4:
        total += 1.0
    for start in range(0, length, BL):
        i = start + tl.arange(0, BL)
        wanted = (line < lines)[:, None] & (i < length)[None, :]
        v = tl.load(x + line.to(tl.int64)[:, None] * length + i[None, :], mask=wanted, other=0.0)
        if KIND == 5:
            v = tl.abs(v)
        if KIND == 6:
            v = v * v
        if KIND == 2:
            total = tl.where(wanted, larger(v, total), total)
        elif KIND == 3:
            total = tl.where(wanted, smaller(v, total), total)
        elif KIND == 4:
            total = tl.where(wanted, total * v, total)
        else:
            total += v
    if KIND == 2:
        result = tl.reduce(total, 1, larger)
    elif KIND == 3:
        result = tl.reduce(total, 1, smaller)
    elif KIND == 4:
        result = tl.reduce(total, 1, multiplied)
    else:
        result = tl.reduce(total, 1, added)
    if KIND == 1:
        result = result / length.to(tl.float32)
    if KIND == 6:
        result = tl.sqrt(result)
    tl.store(y + line, result, mask=line < lines)


@triton.jit
def sort_kernel(x, values, index, inner, length, keep, DESCENDING: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """[outer, length, inner]; grid: (lines, blocks of BI elements). An element's place is the number before it."""
    outer = tl.program_id(0) // inner
    of_line = tl.program_id(0) - outer * inner
    line = x + outer.to(tl.int64) * length * inner + of_line
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    mine = tl.load(line + i * inner, mask=i < length, other=0.0)
    my_nan = mine != mine
    place = i * 0
    for start in range(0, length, BJ):
        j = start + tl.arange(0, BJ)
        other = tl.load(line + j * inner, mask=j < length, other=0.0)
        other_nan = (other != other)[None, :]
        if DESCENDING:
            before = other[None, :] > mine[:, None]
            nan_before = other_nan & (my_nan == 0)[:, None]
        else:
            before = other[None, :] < mine[:, None]
            nan_before = (other_nan == 0) & my_nan[:, None]
        equal = (other[None, :] == mine[:, None]) | (other_nan & my_nan[:, None])
        before = before | nan_before | (equal & (j[None, :] < i[:, None]))
        before = before & (j < length)[None, :]
        place += tl.sum(before.to(tl.int32), 1)
    kept = (i < length) & (place < keep)
    to = (outer.to(tl.int64) * keep + place) * inner + of_line
    tl.store(values + to, mine, mask=kept)
    tl.store(index + to, i.to(tl.int64), mask=kept)
