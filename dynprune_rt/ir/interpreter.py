"""The reference interpreter: executes a graph with the numpy references of its operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynprune_rt.errors import InputError
from dynprune_rt.ir.bfloat16 import to_bfloat16
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import operator
from dynprune_rt.ir.operators.convolution import UNBOUNDED, finish
from dynprune_rt.ir.operators.pooling import spatial_reduction
from dynprune_rt.ir.operators.quantized import passed_residual
from dynprune_rt.ir.types import DTYPES

Arrays = Sequence["np.ndarray | None"]


def run(graph: Graph, inputs: Mapping[str, np.ndarray], *, honour_live: bool = False) -> tuple[np.ndarray, ...]:
    """Execute the graph and return its outputs, in order.

    ``inputs``: one array per graph input, by name, with a common batch size.
    ``honour_live``: execute the skipping contract literally. What is not stored is poisoned with
    NaN, what is read outside a mask is zero, and a convolution computes only the channels it is told
    to; so a skip that is not legal gives a wrong result. The outputs' channels that are not live are zero.

    Raises InputError if an input is missing, unknown, or of the wrong shape or dtype.
    """
    values = trace(graph, inputs, honour_live=honour_live)
    outputs = (values[value.name] for value in graph.outputs)
    if not honour_live:
        return tuple(outputs)
    return tuple(_read(value, array, values) for value, array in zip(graph.outputs, outputs, strict=True))


def trace(graph: Graph, inputs: Mapping[str, np.ndarray], *, honour_live: bool = False) -> dict[str, np.ndarray]:
    """As `run`, but return every value of the graph by name (as stored: poison included)."""
    values = dict(graph.constants)
    values.update(_checked(graph, inputs))
    for node in graph.nodes:
        if honour_live:
            results = _evaluate_live(node, values)
        else:
            results = evaluate(node, [None if v is None else values[v.name] for v in node.inputs])
        for value, array in zip(node.outputs, results, strict=True):
            values[value.name] = array
    return values


def evaluate(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """The outputs of one node for these operand arrays; masks are ignored."""
    return operator(node.op).compute(arrays, node.attrs)


def _checked(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    expected = {v.name: v for v in graph.inputs}
    for name in inputs:
        if name not in expected:
            raise InputError(f"the graph has no input {name!r}; it has {sorted(expected)}")
    batches = set()
    arrays = {}
    for name, value in expected.items():
        if name not in inputs:
            raise InputError(f"input {name!r} ({value.type}) is missing")
        array = np.asarray(inputs[name])
        if array.dtype != DTYPES[value.type.dtype] or array.ndim != value.type.rank:
            raise InputError(f"input {name!r} is {array.dtype}{list(array.shape)}, expected {value.type}")
        if array.shape[1:] != value.type.shape[1:] or array.shape[0] < 1:
            raise InputError(f"input {name!r} has shape {list(array.shape)}, expected {value.type}")
        batches.add(array.shape[0])
        arrays[name] = array
    if len(batches) > 1:
        raise InputError(f"the inputs have different batch sizes: {sorted(batches)}")
    return arrays


# ---- the skipping contract, executed literally ------------------------------------------------


def _over_space(mask: np.ndarray, array: np.ndarray) -> np.ndarray:
    """A mask [N, C] in a shape that broadcasts against ``array`` [N, C, ...]."""
    return mask.reshape(*mask.shape, *[1] * (array.ndim - 2))


def _read(value: Value, array: np.ndarray, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a reader sees: zero in channels that are not stored."""
    if value.live is None:
        return array
    return np.where(_over_space(values[value.live.name], array), array, array.dtype.type(0))


def _store(value: Value, array: np.ndarray, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a writer leaves behind: poison in channels that are not stored."""
    if value.live is None:
        return array
    poison = np.nan if array.dtype.kind == "f" else True if array.dtype.kind == "b" else _extreme(array.dtype)
    return np.where(_over_space(values[value.live.name], array), array, array.dtype.type(poison))


def _extreme(dtype: np.dtype) -> int:
    """An integer that is seldom right by accident."""
    limits = np.iinfo(dtype)
    return int(limits.min if limits.min < 0 else limits.max)


def _evaluate_live(node: Node, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    arrays = [None if v is None else _read(v, values[v.name], values) for v in node.inputs]
    results = evaluate(node, arrays)
    if node.op == "conv2d":
        results = _skip_outputs(node, arrays, results[0], values)
    elif node.op == "quantized_conv2d" and node.computed is not None:
        computed = _over_space(values[node.computed.name], results[0])
        results = (np.where(computed, results[0], passed_residual(arrays, node.attrs)),)
    return tuple(_store(value, array, values) for value, array in zip(node.outputs, results, strict=True))


def _skip_outputs(
    node: Node, arrays: Arrays, out: np.ndarray, values: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, ...]:
    """conv2d with its masks: channels outside ``computed`` have no sum, those outside ``live`` count as zero."""
    computed = node.computed or node.output.live
    if computed is not None:
        padded: list[np.ndarray | None] = [*arrays, *[None] * (6 - len(arrays))]
        attrs = {**operator("conv2d").canonical_attrs(node.attrs), "inner": UNBOUNDED}
        zero = np.zeros(out.shape, np.float32)
        passed = finish(zero, [None, None, None, None, *padded[4:]], attrs)
        passed = to_bfloat16(passed) if out.dtype == DTYPES["bf16"] else passed
        out = np.where(_over_space(values[computed.name], out), out, passed)
    out = _read(node.output, out, values)
    return (out, *[spatial_reduction(kind, out) for kind in node.attrs.get("pools", ())])
