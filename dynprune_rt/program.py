"""A converted model: what `convert` returns, `save` writes and `load` runs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynprune_rt import artifact
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.packed_weights import WIDTHS, channel_bits, packed_size
from dynprune_rt.ir.types import TensorType


@dataclass(eq=False)
class Program:
    """A graph and the report of its conversion; independent of the machine that will run it.

    ``report`` is JSON-like: facts about the conversion, such as outputs that were dropped.
    ``print(program)`` shows what every layer can skip and why it cannot skip more.
    """

    graph: Graph
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.dpr`` file, atomically. Raises ArtifactError if that fails."""
        artifact.save(path, self.graph, self.report)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read a ``.dpr`` file; the weights stay on disk until used. Raises ArtifactError."""
        return cls(*artifact.load(path))

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Name and type of every input, in order."""
        return {value.name: value.type for value in self.graph.inputs}

    @property
    def outputs(self) -> dict[str, TensorType]:
        """Name and type of every output, in order."""
        return {value.name: value.type for value in self.graph.outputs}

    @property
    def parameters(self) -> int:
        """Number of constants in use: weights, biases, folded normalizations, scales."""
        used = {v.name: v for node in self.graph.nodes for v in node.operands() if self.graph.is_constant(v)}
        return sum(v.type.elements for v in used.values() if v.type.dtype in ("f32", "s8"))

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of one image when nothing is skipped (conv2d, linear, matmul)."""
        return sum(dense_macs(node) for node in self.graph.nodes)

    def __str__(self) -> str:
        lines = [
            f"{what:<8}{name}: {type}"
            for what, table in (("input", self.inputs), ("output", self.outputs))
            for name, type in table.items()
        ]
        lines.append(f"{_count(self.parameters)} parameters, {_count(self.dense_macs)} dense MACs per image")
        for key, value in self.report.items():
            if key != "layers":  # the table below says the same
                lines += _fact(key.replace("_", " "), value)
        lines += ["", *_layer_table(self.graph)]
        return "\n".join(lines)


def dense_macs(node: Node) -> int:
    """Multiply-accumulates of one node for one image, without skipping; 0 for cheap operators."""
    if node.op in ("conv2d", "quantized_conv2d"):
        weight = _operand(node, 1).type.shape
        return math.prod(weight) * math.prod(node.output.type.shape[2:])
    if node.op in ("linear", "matmul"):
        return node.output.type.elements * _operand(node, 0).type.shape[-1]
    return 0


def gate_names(mask: Value | None) -> list[str]:
    """Names of the nodes whose results decide a mask, nearest first; empty where there is no mask.

    Walks up the mask algebra (internals, section 2) to the vectors that are compared with zero.
    """
    names: dict[str, None] = {}
    pending = [mask] if mask is not None else []
    seen = set()
    while pending:
        value = pending.pop(0)
        node = value.producer
        if node is None or value.name in seen:
            continue
        seen.add(value.name)
        operands = [v for v in node.inputs if v is not None and v.producer is not None]
        if node.op == "ne":
            names.update((v.producer.name, None) for v in operands if v.producer is not None)
        elif node.op in _MASK_ALGEBRA:
            pending += operands
        else:
            names[node.name] = None
    return list(names)


#: Operators that are a layer's work: what inspect lists and a profile counts multiply-accumulates of.
LAYERS = ("conv2d", "quantized_conv2d", "linear")

_MASK_ALGEBRA = frozenset(
    ("logical_and", "logical_or", "logical_not", "cat", "index_select", "expand", "reshape", "repeat")
)


def _operand(node: Node, position: int) -> Value:
    value = node.inputs[position]
    assert value is not None
    return value


def _layer_table(graph: Graph) -> Iterator[str]:
    """One row per conv2d and linear: shape, MACs, what it skips by which gate; below it why it does not skip more."""
    rows = [("layer", "shape", "MACs", "skips inputs by", "skips outputs by")]
    notes = [""]
    for node in graph.nodes:
        if node.op not in LAYERS:
            continue
        rows.append(
            (
                node.name,
                _layer_shape(graph, node),
                _count(dense_macs(node)),
                _deciders(_operand(node, 0).live),
                _deciders(node.computed or node.output.live),
            )
        )
        notes.append(node.note if "-" in rows[-1] and node.op != "linear" else "")
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row, note in zip(rows, notes, strict=True):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for line in note.splitlines():
            yield f"    {line}"
    if any(node.op == "linear" for node in graph.nodes):
        yield "linear layers are not masked: all of their inputs are read and all of their outputs computed"


def weight_widths(graph: Graph, node: Node) -> dict[int, int]:
    """Output channels of an int8 convolution by the bits that their weights take in a file."""
    bits = channel_bits(graph.constant(_operand(node, 1)))
    return {width: int((bits == width).sum()) for width in reversed(WIDTHS)}


def weight_bytes(graph: Graph, node: Node) -> int:
    """Bytes that the weights of a convolution or a linear layer take in a file."""
    array = graph.constant(_operand(node, 1))
    if array.dtype != np.int8:
        return array.nbytes
    return min(array.nbytes, packed_size(channel_bits(array), math.prod(array.shape[1:])))


def _width_text(widths: dict[int, int]) -> str:
    """As in `` (40x8, 20x4, 4x2 bits)``; nothing where every channel has 8."""
    narrow = any(count for width, count in widths.items() if width < 8)
    counts = ", ".join(f"{count}x{width}" for width, count in widths.items() if count)
    return f" ({counts} bits)" if narrow else ""


def _layer_shape(graph: Graph, node: Node) -> str:
    """As in ``64->128 3x3 /2 g4 @14x14`` (stride, groups and output size) or ``512->10``."""
    weight = _operand(node, 1).type.shape
    if node.op == "linear":
        return f"{weight[1]}->{weight[0]}"
    groups, stride, size = node.attrs["groups"], node.attrs["stride"], node.output.type.shape[2:]
    text = f"{weight[1] * groups}->{weight[0]} {weight[2]}x{weight[3]}"
    if stride != (1, 1):
        text += f" /{stride[0]}" if stride[0] == stride[1] else f" /{stride[0]}x{stride[1]}"
    if groups > 1:
        text += f" g{groups}"
    if node.op == "quantized_conv2d":
        text += f" int8{_width_text(weight_widths(graph, node))}"
    elif node.output.type.dtype == "bf16":
        text += " bf16"
    return f"{text} @{size[0]}x{size[1]}"


def _count(number: int) -> str:
    """A count with three digits and a unit, as in 12.3 M."""
    for limit, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)


def _deciders(mask: Value | None, most: int = 4) -> str:
    """The first few gates behind a mask; "-" where there is no mask."""
    names = gate_names(mask)
    more = len(names) - most
    if names:
        return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
    return "-" if mask is None else "constant mask"


def _fact(key: str, value: Any) -> list[str]:
    """An entry of the report: on one line, or with a line per record."""
    if isinstance(value, dict):
        return [f"{key}: {_record(value)}"]
    if isinstance(value, list):
        if any(isinstance(item, dict) for item in value):
            return [f"{key}:", *(f"    {_record(item) if isinstance(item, dict) else item}" for item in value)]
        return [f"{key}: {', '.join(str(item) for item in value)}"] if any(value) else []
    return [f"{key}: {value}"]


def _record(value: dict[str, Any]) -> str:
    """One line; lists of records, a row per layer, are left to the JSON form."""
    parts = []
    for key, item in value.items():
        if isinstance(item, dict):
            parts.append(f"{key} ({_record(item)})")
        elif not isinstance(item, list) or not any(isinstance(part, dict) for part in item):
            parts.append(f"{key} {item}")
    return ", ".join(parts)
