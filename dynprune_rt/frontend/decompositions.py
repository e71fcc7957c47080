"""The decomposition table of the frontend: torch's default, minus the composites that the IR knows as one operator.

Decomposed, hardswish looks like a gate (a feature times something that can be zero), a pooling becomes
``mean`` + ``as_strided``, and an indexed assignment becomes dozens of comparisons.
"""

from __future__ import annotations

from typing import Any

import torch

#: Overloads kept whole. Names that a torch version lacks are ignored.
KEPT = (
    "linear.default",
    "conv1d.default",
    "conv1d.padding",
    "conv2d.default",
    "conv2d.padding",
    "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default",
    "adaptive_max_pool1d.default",
    "adaptive_max_pool2d.default",
    "avg_pool1d.default",
    "avg_pool2d.default",
    "max_pool1d.default",
    "max_pool2d.default",
    "hardswish.default",
    "hardsigmoid.default",
    "silu.default",
    "mish.default",
    "softplus.default",
    "prelu.default",
    "relu6.default",
    "elu.default",
    "selu.default",
    "celu.default",
    "threshold.default",
    "layer_norm.default",
    "group_norm.default",
    "instance_norm.default",
    "select_scatter.default",
    "slice_scatter.default",
    "split.Tensor",
    "chunk.default",
    "stack.default",
    "masked_fill.Scalar",
    "masked_fill.Tensor",
    "softmax.int",
    "log_softmax.int",
    "matmul.default",
    "einsum.default",
    "pad.default",
    "one_hot.default",
    "scaled_dot_product_attention.default",
)


def trimmed_table() -> Any:
    """A fresh decomposition table for ``ExportedProgram.run_decompositions``."""
    table = torch.export.default_decompositions()
    for name in KEPT:
        packet_name, overload_name = name.split(".")
        packet = getattr(torch.ops.aten, packet_name, None)
        overload = getattr(packet, overload_name, None)
        if overload is not None:
            table.pop(overload, None)
    return table
