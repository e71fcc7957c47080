"""Every operator but conv2d on plain torch tensors, for those without a kernel of their own.

Operands have the shapes of the IR (batch first), maps included: fp32 [N, C, H, W]. Nothing here waits for the
device or moves data from the host, except tables that `interpolate` makes on its first call: all of it can be captured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F

from dynprune_rt.ir.graph import Node
from dynprune_rt.ir.operators.pooling import linear_source, nearest_source, pool_output_size

Tensor = Any
Attrs = Mapping[str, Any]
Function = Callable[[Sequence[Tensor], Attrs], Any]

DTYPES: Final = {"f32": torch.float32, "i64": torch.int64, "bool": torch.bool}


def evaluate(node: Node, operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The outputs of one node. Of duplicate indices of a scatter, any one wins."""
    result = TORCH_OPS[node.op](operands, node.attrs)
    return result if isinstance(result, tuple) else (result,)


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda operands, attrs: function(operands[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda operands, attrs: function(operands[0], operands[1])


# ---- elementwise ------------------------------------------------------------------------------


def _clamp(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, low, high = operands[0], attrs["lo"], attrs["hi"]
    if x.dtype == torch.int64:
        low = None if math.isinf(low) else math.ceil(low)
        high = None if math.isinf(high) else math.floor(high)
        return x if low is None and high is None else x.clamp(low, high)
    return x.clamp(low, high)


def _affine(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, scale, shift = operands
    shape = (-1, *[1] * (x.dim() - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


def _gelu(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    return F.gelu(operands[0], approximate=attrs["approximate"])


# ---- shape ------------------------------------------------------------------------------------


def _slice(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    where = [slice(None)] * operands[0].dim()
    where[attrs["dim"]] = slice(attrs["start"], attrs["stop"], attrs["step"])
    return operands[0][tuple(where)]


def _pad(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, low, high = operands[0], attrs["low"], attrs["high"]
    shape = [size + a + b for size, a, b in zip(x.shape, low, high, strict=True)]
    out = torch.full(shape, attrs["value"], dtype=x.dtype, device=x.device)
    out[tuple(slice(a, a + size) for size, a in zip(x.shape, low, strict=True))] = x
    return out


def _one_hot(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x = operands[0]
    return (x[..., None] == torch.arange(attrs["classes"], device=x.device)).to(torch.int64)


def _shared(x: Tensor, index: Tensor) -> Tensor:
    """An operand x[1, ...] serves every image of the index."""
    if x.shape[0] == 1 and index.shape[0] != 1:
        return x.expand(index.shape[0], *x.shape[1:])
    return x


def _gather(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, index = operands
    # An index of size 1 along dimension 0 means the same dimension there, unless that is the one gathered.
    return torch.gather(_shared(x, index) if attrs["dim"] else x, attrs["dim"], index)


def _scatter(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, index, source = operands
    x = _shared(x, index) if attrs["dim"] else x
    return torch.scatter(x, attrs["dim"], index, source.expand(index.shape))


# ---- reductions -------------------------------------------------------------------------------


def _reduce(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, dims, keep = operands[0], list(attrs["dims"]), attrs["keepdim"]
    kind = attrs["kind"]
    if kind == "prod":
        for dim in sorted(dims, reverse=True):
            x = x.prod(dim, keepdim=keep)
        return x
    functions: dict[str, Callable[..., Tensor]] = {
        "sum": torch.sum,
        "mean": torch.mean,
        "max": torch.amax,
        "min": torch.amin,
        "any": torch.any,
        "all": torch.all,
        "l1": lambda x, dim, keepdim: x.abs().sum(dim, keepdim=keepdim),
        "l2": lambda x, dim, keepdim: x.square().sum(dim, keepdim=keepdim).sqrt(),
    }
    return functions[kind](x, dim=dims, keepdim=keep)


def _order(operands: Sequence[Tensor], dim: int, descending: bool) -> tuple[Tensor, Tensor]:
    values, index = torch.sort(operands[0], dim=dim, descending=descending, stable=True)
    return values, index


def _topk(operands: Sequence[Tensor], attrs: Attrs) -> tuple[Tensor, Tensor]:
    values, index = _order(operands, attrs["dim"], attrs["largest"])
    return values.narrow(attrs["dim"], 0, attrs["k"]), index.narrow(attrs["dim"], 0, attrs["k"])


def _kthvalue(operands: Sequence[Tensor], attrs: Attrs) -> tuple[Tensor, Tensor]:
    dim = attrs["dim"]
    values, index = (t.narrow(dim, attrs["k"] - 1, 1) for t in _order(operands, dim, False))
    return (values, index) if attrs["keepdim"] else (values.squeeze(dim), index.squeeze(dim))


# ---- space ------------------------------------------------------------------------------------


def _windows(x: Tensor, attrs: Attrs, fill: float) -> Tensor:
    """All windows of a pooling: [N, C, H, W] -> [N, C, H', W', R, S], the padding filled."""
    dilation = attrs.get("dilation", (1, 1))
    pads, sizes, extents = [], [], []
    for axis in range(2):
        low, high = attrs["padding"][axis], attrs["padding"][axis + 2]
        size, kernel, stride = x.shape[2 + axis], attrs["kernel"][axis], attrs["stride"][axis]
        out = pool_output_size(size, kernel, stride, low, high, dilation[axis], attrs["ceil_mode"])
        extents.append(dilation[axis] * (kernel - 1) + 1)
        sizes.append(out)
        pads.append((low, max(0, (out - 1) * stride + extents[axis] - size - low)))
    padded = F.pad(x, (*pads[1], *pads[0]), value=fill)
    for axis in range(2):
        padded = padded.unfold(2 + axis, extents[axis], attrs["stride"][axis])
    return padded[:, :, : sizes[0], : sizes[1], :: dilation[0], :: dilation[1]]


def _max_pool2d(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    return _windows(operands[0], attrs, -math.inf).amax(dim=(4, 5))


def _avg_pool2d(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x = operands[0]
    sums = _windows(x, attrs, 0.0).sum(dim=(4, 5))
    if attrs["divisor"]:
        return sums / attrs["divisor"]
    counts = []
    for axis in range(2):
        size, low, high = x.shape[2 + axis], attrs["padding"][axis], attrs["padding"][axis + 2]
        begin, end = (-low, size + high) if attrs["count_include_pad"] else (0, size)
        first = torch.arange(sums.shape[2 + axis], device=x.device) * attrs["stride"][axis] - low
        counts.append((first + attrs["kernel"][axis]).clamp(max=end) - first.clamp(min=begin))
    return sums / (counts[0][:, None] * counts[1])


def _spatial_reduce(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, kind = operands[0].flatten(2), attrs["kind"]
    if kind.endswith("_abs"):
        x, kind = x.abs(), kind.removesuffix("_abs")
    if kind in ("sum_squares", "l2"):
        total = x.square().sum(2)
        return total.sqrt() if kind == "l2" else total
    functions: dict[str, Callable[..., Tensor]] = {
        "mean": torch.mean,
        "sum": torch.sum,
        "max": torch.amax,
        "min": torch.amin,
    }
    return functions[kind](x, dim=2)


@functools.lru_cache(maxsize=64)
def _sources(size: int, out: int, mode: str, align: bool, scale: float | None, device: torch.device) -> list[Tensor]:
    """Where every output position reads: one index, or two indices and the weight of the second."""
    arrays = (nearest_source(size, out, scale),) if mode == "nearest" else linear_source(size, out, align, scale)
    return [torch.from_numpy(array).to(device) for array in arrays]


def _interpolate(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    y = operands[0]
    scale = attrs["scale"] or (None, None)
    for axis in range(2):
        dim = 2 + axis
        tables = _sources(
            y.shape[dim], attrs["size"][axis], attrs["mode"], attrs["align_corners"], scale[axis], y.device
        )
        if len(tables) == 1:
            y = y.index_select(dim, tables[0])
            continue
        low, high, weight = tables
        weight = weight[:, None] if axis == 0 else weight
        y = y.index_select(dim, low) * (1.0 - weight) + y.index_select(dim, high) * weight
    return y


# ---- matrices and norms -----------------------------------------------------------------------


def _optional(operands: Sequence[Tensor], position: int) -> Tensor | None:
    return operands[position] if len(operands) > position else None


def _linear(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    return F.linear(operands[0], operands[1], _optional(operands, 2)).clamp(*attrs["inner"])


def _group_norm(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    weight, bias = _optional(operands, 1), _optional(operands, 2)
    return F.group_norm(operands[0], attrs["groups"], weight, bias, attrs["eps"])


def _layer_norm(operands: Sequence[Tensor], attrs: Attrs) -> Tensor:
    x, weight, bias = operands[0], _optional(operands, 1), _optional(operands, 2)
    return F.layer_norm(x, [x.shape[dim] for dim in attrs["dims"]], weight, bias, attrs["eps"])


_TORCH_UNARY = (
    "relu neg abs sqrt rsqrt exp log reciprocal sigmoid tanh round floor ceil trunc sign logical_not isnan erf square "
    "sin cos"
)
_FUNCTIONAL_UNARY = "silu hardswish hardsigmoid mish softplus"
_TORCH_BINARY = (
    "add sub mul div maximum minimum pow remainder floor_divide eq ne lt le gt ge logical_and logical_or logical_xor "
    "matmul"
)

TORCH_OPS: Final[dict[str, Function]] = {
    **{name: _unary(getattr(torch, name)) for name in _TORCH_UNARY.split()},
    **{name: _unary(getattr(F, name)) for name in _FUNCTIONAL_UNARY.split()},
    **{name: _binary(getattr(torch, name)) for name in _TORCH_BINARY.split()},
    "clamp": _clamp,
    "affine": _affine,
    "gelu": _gelu,
    "leaky_relu": lambda operands, attrs: F.leaky_relu(operands[0], attrs["slope"]),
    "elu": lambda operands, attrs: F.elu(operands[0], attrs["alpha"]),
    "pow_scalar": lambda operands, attrs: torch.pow(operands[0], attrs["exponent"]),
    "cast": lambda operands, attrs: operands[0].to(DTYPES[attrs["dtype"]]),
    "where": lambda operands, attrs: torch.where(operands[0], operands[1], operands[2]),
    "reshape": lambda operands, attrs: operands[0].reshape(attrs["shape"]),
    "expand": lambda operands, attrs: operands[0].expand(attrs["shape"]),
    "repeat": lambda operands, attrs: operands[0].repeat(attrs["repeats"]),
    "permute": lambda operands, attrs: operands[0].permute(attrs["dims"]),
    "slice": _slice,
    "pad": _pad,
    "cat": lambda operands, attrs: torch.cat(list(operands), attrs["dim"]),
    "index_select": lambda operands, attrs: operands[0].index_select(attrs["dim"], operands[1]),
    "one_hot": _one_hot,
    "gather": _gather,
    "scatter": _scatter,
    "reduce": _reduce,
    "argmax": lambda operands, attrs: operands[0].argmax(attrs["dim"], keepdim=attrs["keepdim"]),
    "argmin": lambda operands, attrs: operands[0].argmin(attrs["dim"], keepdim=attrs["keepdim"]),
    "softmax": lambda operands, attrs: operands[0].softmax(attrs["dim"]),
    "log_softmax": lambda operands, attrs: operands[0].log_softmax(attrs["dim"]),
    "cumsum": lambda operands, attrs: operands[0].cumsum(attrs["dim"]),
    "sort": lambda operands, attrs: _order(operands, attrs["dim"], attrs["descending"]),
    "topk": _topk,
    "kthvalue": _kthvalue,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": lambda operands, attrs: F.adaptive_avg_pool2d(operands[0], attrs["output"]),
    "adaptive_max_pool2d": lambda operands, attrs: F.adaptive_max_pool2d(operands[0], attrs["output"]),
    "spatial_reduce": _spatial_reduce,
    "interpolate": _interpolate,
    "linear": _linear,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
}
