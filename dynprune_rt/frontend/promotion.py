"""Element types: torch's against the IR's, and how torch promotes operands."""

from __future__ import annotations

from typing import Any

import torch

from dynprune_rt.frontend.operands import Known
from dynprune_rt.frontend.registry import Unsupported
from dynprune_rt.ir.graph import Value

#: IR element type of each torch type that a traced tensor may have.
IR_DTYPES = {torch.float32: "f32", torch.int64: "i64", torch.int32: "i64", torch.bool: "bool"}
TORCH_DTYPES = {"f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
_RANKS = {"bool": 0, "i64": 1, "f32": 2}


def dtype_of(operand: Any) -> str:
    """IR element type of any operand; Unsupported for types that the IR lacks."""
    if isinstance(operand, Value):
        return operand.type.dtype
    if isinstance(operand, Known):
        if operand.tensor.dtype is torch.float64 and operand.tensor.ndim == 0:
            return "f32"  # a 0-d float64 never promotes an fp32 tensor
        if operand.tensor.dtype not in IR_DTYPES:
            raise Unsupported(f"reads a constant of type {operand.tensor.dtype}; keep to float32, int64 and bool")
        return IR_DTYPES[operand.tensor.dtype]
    if isinstance(operand, bool):
        return "bool"
    if isinstance(operand, int):
        return "i64"
    if isinstance(operand, float):
        return "f32"
    raise Unsupported(f"has an operand of type {type(operand).__name__}")


def promoted(*operands: Any) -> str:
    """The type in which torch combines these operands: the highest of bool, i64, f32."""
    return max((dtype_of(o) for o in operands), key=_RANKS.__getitem__)
