"""The table of IR operators, grouped in files by family."""

from dynprune_rt.ir.operators import (  # noqa: F401  (each module registers its rows)
    convolution,
    elementwise,
    indexing,
    normalization,
    pooling,
    quantized,
    reductions,
    shape,
)
from dynprune_rt.ir.operators.attributes import REQUIRED, Attribute
from dynprune_rt.ir.operators.registry import OPERATORS, Channels, Operator, operator, register

__all__ = ["OPERATORS", "REQUIRED", "Attribute", "Channels", "Operator", "operator", "register"]
