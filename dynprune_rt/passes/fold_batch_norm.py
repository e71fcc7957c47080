"""Folding of per-channel scales and shifts into the weights in front of them.

`affine` (an evaluated batch norm) and additions, subtractions, multiplications and divisions by a
constant per channel disappear into the convolution or linear layer that alone feeds them, also through
a gate between the two:

    affine(conv(x) * m) = conv'(x) * m + shift,  conv' = scale * conv

so that the gate can join the convolution's epilogue and a masked channel is exactly `shift`.
Folded weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators.convolution import UNBOUNDED


class _Affine(NamedTuple):
    """x * scale + shift, float64 [C] along one dimension of x."""

    x: Value
    scale: np.ndarray
    shift: np.ndarray


def fold_batch_norm(graph: Graph) -> int:
    """Fold in place wherever possible; returns the number of nodes that disappeared or became a shift."""
    total = 0
    while True:
        folded = _one_round(graph)
        total += folded
        if not folded:
            return total


def _one_round(graph: Graph) -> int:
    readers = graph.users()
    outputs = set(graph.outputs)
    old_nodes, graph.nodes = graph.nodes, []
    builder = Builder(graph, fold=False)
    folded = 0

    def feeds_one(value: Value | None) -> bool:
        return value is not None and len(readers.get(value, ())) == 1 and value not in outputs

    for node in old_nodes:
        source = _data_operand(graph, node)
        producer = source.producer if source is not None and feeds_one(source) else None
        done = False
        if producer is not None and _is_plain_layer(producer):
            done = _into_layer(builder, producer, node)
        elif producer is not None and producer.op == "mul":
            done = _through_gate(builder, producer, node, feeds_one)
        elif producer is not None and "affine" in (producer.op, node.op):
            done = _into_affine(builder, producer, node)
        if done:
            folded += 1
        else:
            graph.nodes.append(node)
    return folded


def _data_operand(graph: Graph, node: Node) -> Value | None:
    """The operand that an affine-like node maps, the others being constants."""
    if node.op not in ("affine", "add", "sub", "mul", "div") or node.output.type.dtype != "f32":
        return None
    varying = [v for v in node.inputs if v is not None and not graph.is_constant(v)]
    if len(varying) != 1 or varying[0].type != node.output.type or varying[0].live or node.output.live:
        return None
    return varying[0]


def _as_affine(graph: Graph, node: Node, axis: int) -> _Affine | None:
    """The node as x * scale + shift with one factor per index of dimension ``axis``."""
    x = _data_operand(graph, node)
    if x is None:
        return None
    size = x.type.shape[axis]
    if node.op == "affine":
        _, scale, shift = node.inputs
        assert scale is not None and shift is not None
        return _Affine(x, _wide(graph, scale), _wide(graph, shift)) if axis == 1 else None
    position = 1 - node.inputs.index(x)
    operand = node.inputs[position]
    assert operand is not None
    shape = (1,) * (x.type.rank - operand.type.rank) + operand.type.shape
    array = _wide(graph, operand)
    if any(d != 1 for i, d in enumerate(shape) if i != axis):
        return None
    vector = np.broadcast_to(array.reshape(-1), (size,))
    one, zero = np.ones(size), np.zeros(size)
    match node.op, position:
        case "add", _:
            return _Affine(x, one, vector)
        case "sub", 1:
            return _Affine(x, one, -vector)
        case "sub", 0:
            return _Affine(x, -one, vector)
        case "mul", _:
            return _Affine(x, vector, zero)
        case "div", 1 if vector.all():
            return _Affine(x, 1.0 / vector, zero)
    return None


def _wide(graph: Graph, value: Value) -> np.ndarray:
    return graph.constant(value).astype(np.float64)


def _is_plain_layer(node: Node) -> bool:
    """A convolution or linear layer without an epilogue beyond its bias."""
    if node.op == "linear":
        return bool(node.attrs["inner"] == UNBOUNDED)
    if node.op != "conv2d":
        return False
    plain = node.attrs["inner"] == UNBOUNDED and node.attrs["outer"] == UNBOUNDED and not node.attrs["pools"]
    return plain and not any(v is not None for v in node.inputs[3:])


def _layer_axis(layer: Node) -> int:
    """The dimension of a layer's output that counts its output channels."""
    return 1 if layer.op == "conv2d" else layer.output.type.rank - 1


def _rescale(builder: Builder, layer: Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    """layer := layer * scale + shift, unless that leaves the range of float32."""
    graph = builder.graph
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    assert weight is not None
    offset = np.zeros(len(scale)) if bias is None else _wide(graph, bias)
    with np.errstate(over="ignore", invalid="ignore"):
        new_weight = (_wide(graph, weight) * scale.reshape(-1, *[1] * (weight.type.rank - 1))).astype(np.float32)
        new_bias = (offset * scale + shift).astype(np.float32)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    layer.inputs[1] = weight if (scale == 1).all() else builder.constant(weight.name, new_weight)
    if bias is not None or new_bias.any():
        stem = bias.name if bias is not None else f"{layer.name}.bias"
        layer.inputs[2:3] = [builder.constant(stem, new_bias)]
    return True


def _adopt(producer: Node, node: Node) -> None:
    """Let ``producer`` write the output of ``node`` instead of its own."""
    producer.outputs[0] = node.output
    node.output.producer = producer


def _into_layer(builder: Builder, layer: Node, node: Node) -> bool:
    affine = _as_affine(builder.graph, node, _layer_axis(layer))
    if affine is None or not _rescale(builder, layer, affine.scale, affine.shift):
        return False
    _adopt(layer, node)
    return True


def _into_affine(builder: Builder, first: Node, node: Node) -> bool:
    """affine(affine(x)) as one; the later node is rewritten in place of both."""
    inner, outer = _as_affine(builder.graph, first, 1), _as_affine(builder.graph, node, 1)
    if inner is None or outer is None:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (inner.scale * outer.scale).astype(np.float32)
        shift = (inner.shift * outer.scale + outer.shift).astype(np.float32)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return False
    first.op, first.attrs = "affine", {}
    first.inputs = [
        inner.x,
        builder.constant(f"{node.name}.scale", scale),
        builder.constant(f"{node.name}.shift", shift),
    ]
    _adopt(first, node)
    return True


def _through_gate(builder: Builder, product: Node, node: Node, feeds_one: object) -> bool:
    """affine(layer * m): the scale goes into the layer, the shift stays behind the product."""
    assert callable(feeds_one)
    for position, value in enumerate(product.inputs):
        gate = product.inputs[1 - position]
        layer = None if value is None else value.producer
        if layer is None or gate is None or not _is_plain_layer(layer) or not feeds_one(value):
            continue
        axis = _layer_axis(layer)
        affine = _as_affine(builder.graph, node, axis)
        if layer.output.type != product.output.type or affine is None or (affine.scale == 1).all():
            continue
        if not _rescale(builder, layer, affine.scale, np.zeros_like(affine.scale)):
            continue
        shift = affine.shift.astype(np.float32)
        if shift.any():
            shape = [1] * (product.output.type.rank - 1)
            shape[axis - 1] = -1
            node.op, node.attrs = "add", {}
            node.inputs = [product.output, builder.constant(f"{node.name}.shift", shift.reshape(shape))]
            builder.graph.nodes.append(node)
        else:
            _adopt(product, node)
        return True
    return False
