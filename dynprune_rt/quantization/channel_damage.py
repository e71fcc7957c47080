"""What narrow weights cost, per output channel and width: the two criteria that bits are allotted by.

*Sensitivity* runs the program with the weights of one channel narrowed at a time and takes the squared change of its
first output. It needs no labels, and a run per channel, width and image.

*Information* is the discriminant information of channels (see `methods.discriminant` for the maths and its source): the
derivative of the class information in a layer's maps to the scale of a channel, times the relative squared error of the
channel's weights. It needs labels, and one run per image. That intra-layer precision follows DI is from the abstract of
arXiv 2005.13796; the product is a reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dynprune_rt.errors import QuantizationError
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.packed_weights import WIDTHS
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.program import Program
from dynprune_rt.quantization.graph_copy import GraphCopy
from dynprune_rt.quantization.scales import quantize_weights
from dynprune_rt.quantization.selection import operand
from dynprune_rt.session import Session

CRITERIA = ("sensitivity", "information")

#: Ridge parameter of the authors' code.
_RIDGE = 0.1
#: Images whose features are one batch of the information criterion.
_INFORMATION_BATCH = 128
#: Bytes of feature maps that are kept at a time.
_FEATURE_BYTES = 1 << 28
_UNBOUNDED = (-math.inf, math.inf)
#: Images times channels of one run of the sensitivity criterion.
_RUN = 64


def damage(
    graph: Graph, layers: Sequence[Node], criterion: str, images: np.ndarray, labels: np.ndarray | None
) -> dict[str, np.ndarray]:
    """f64[K, len(WIDTHS)] per layer name. ``images`` f32[B, ...], ``labels`` i64[B] for "information"."""
    if criterion == "sensitivity":
        return {node.name: _sensitivity(graph, node, images) for node in layers}
    assert labels is not None
    scores = channel_information(graph, layers, images, labels)
    return {node.name: scores[node.name][:, None] * _relative_errors(graph, node) for node in layers}


# -- sensitivity ------------------------------------------------------------------------------------


def _sensitivity(graph: Graph, node: Node, images: np.ndarray) -> np.ndarray:
    weight = operand(node, 1)
    assert weight is not None
    array = graph.constant(weight)
    channels = len(array)
    table = np.zeros((channels, len(WIDTHS)))
    exact = _first(Session(Program(graph)).run(images)).reshape(len(images), 1, -1).astype(np.float64)
    for column, width in enumerate(WIDTHS[:-1]):
        integers, scales = quantize_weights(array, node.name, np.full(channels, width, np.uint8))
        rounded = (integers * scales.reshape(-1, *[1] * (array.ndim - 1))).astype(np.float32)
        session = Session(Program(_with_chosen_errors(graph, node, rounded - array)))
        step = max(1, _RUN // len(images))
        for start in range(0, channels, step):
            chosen = np.arange(start, min(start + step, channels))
            # Every image once per channel, with that channel's weights narrowed.
            picks = np.tile(np.eye(channels, dtype=np.float32)[chosen], (len(images), 1))
            result = _first(session.run((np.repeat(images, len(chosen), axis=0), picks)))
            change = result.reshape(len(images), len(chosen), -1) - exact
            table[chosen, column] = np.square(change).sum(axis=(0, 2))
    # Eight bits change outputs by less than they can be told from rounding: scaled from the next width.
    errors = _relative_errors(graph, node)
    table[:, -1] = table[:, -2] * errors[:, -1] / np.maximum(errors[:, -2], np.finfo(np.float64).tiny)
    return table


def _with_chosen_errors(graph: Graph, node: Node, errors: np.ndarray) -> Graph:
    """``graph`` with one more input, f32[N, K], and ``errors`` added to the weights of the channels where it is 1."""
    copy = GraphCopy(graph)
    picks = copy.graph.add_input("picked_channels", TensorType("f32", (BATCH, errors.shape[0])))
    for other in graph.nodes:
        if other is node:
            _add_unfused(copy, node, errors, picks)
        else:
            copy.add(other)
    copy.graph.outputs = [copy.value(graph.outputs[0])]
    remove_dead_code(copy.graph)
    return copy.graph


def _add_unfused(copy: GraphCopy, node: Node, errors: np.ndarray, picks: Value) -> None:
    """The convolution as single operators, with the errors of picked channels added before its epilogue."""
    op = copy.builder.op
    x, weight, bias, gate, shift, residual = (copy.optional(operand(node, i)) for i in range(6))
    geometry = {name: node.attrs[name] for name in ("stride", "padding", "dilation", "groups")}
    result = op("conv2d", x, weight, bias, **geometry)
    added = op("conv2d", x, copy.graph.add_constant("errors", errors), None, picks, **geometry)
    added.live = op("ne", picks, copy.builder.constant("none", 0.0))
    result = op("add", result, added)
    planes = (errors.shape[0], 1, 1)
    if node.attrs["inner"] != _UNBOUNDED:
        result = op("clamp", result, lo=node.attrs["inner"][0], hi=node.attrs["inner"][1])
    if gate is not None:
        result = op("mul", result, op("reshape", gate, shape=(BATCH, *planes)))
    if shift is not None:
        result = op("add", result, op("reshape", shift, shape=(BATCH, *planes) if shift.type.batched else planes))
    if residual is not None:
        result = op("add", result, residual)
    if node.attrs["outer"] != _UNBOUNDED:
        result = op("clamp", result, lo=node.attrs["outer"][0], hi=node.attrs["outer"][1])
    copy.copies[node.output] = result
    for kind, old in zip(node.attrs["pools"], node.outputs[1:], strict=True):
        copy.copies[old] = op("spatial_reduce", result, kind=kind)


# -- information ------------------------------------------------------------------------------------


def channel_information(
    graph: Graph, layers: Sequence[Node], images: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """|dJ/dm| per output channel, f64[K] by layer, of what each convolution adds to the network; all batches' sum."""
    if len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise QuantizationError(
            f"there are {len(images)} images and {len(labels)} labels; expected a class number each"
        )
    if labels.min() < 0 or labels.min() == labels.max():
        raise QuantizationError("bits by information need labels of two classes or more, numbered from 0")
    targets = np.eye(int(labels.max()) + 1)[labels]
    totals: dict[str, np.ndarray] = {}
    pending = list(layers)
    while pending:
        part = [pending.pop(0)]
        while pending and sum(_map_bytes(n) for n in (*part, pending[0])) * _INFORMATION_BATCH <= _FEATURE_BYTES:
            part.append(pending.pop(0))
            if len(part) == 32:
                break
        session = Session(Program(_branches(graph, part)))
        for start in range(0, len(images), _INFORMATION_BATCH):
            stop = start + _INFORMATION_BATCH
            result = session.run(images[start:stop])
            for node, features in zip(part, result if isinstance(result, tuple) else (result,), strict=True):
                scores = discriminant_scores(features, targets[start:stop])
                totals[node.name] = totals.get(node.name, 0) + scores
    return totals


def discriminant_scores(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """|dJ/dm_c|, f64[C], of features [B, C, ...] for one-hot targets [B, classes]."""
    flat = features.reshape(*features.shape[:2], -1).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    rows = flat.reshape(len(flat), -1)
    gram = rows @ rows.T + _RIDGE * np.eye(len(rows))
    solution = np.linalg.solve(gram, targets - targets.mean(axis=0))
    scores: np.ndarray = 2 * np.square(solution.T @ rows).reshape(targets.shape[1], *flat.shape[1:]).sum(axis=(0, 2))
    return scores


def _map_bytes(node: Node) -> int:
    return 4 * node.output.type.elements


def _branches(graph: Graph, layers: Sequence[Node]) -> Graph:
    """The graph up to ``layers``, whose outputs are what each computes before a residual is added."""
    copy = GraphCopy(graph)
    for node in graph.nodes:
        copy.add(node)
        if node in layers:
            attrs = {**node.attrs, "pools": ()}
            if operand(node, 5) is not None:
                attrs["outer"] = _UNBOUNDED
            copy.graph.outputs.append(copy.builder.op("conv2d", *map(copy.optional, node.inputs[:5]), attrs=attrs))
    remove_dead_code(copy.graph)
    return copy.graph


# -- both -------------------------------------------------------------------------------------------


def _relative_errors(graph: Graph, node: Node) -> np.ndarray:
    """Squared error of each channel's weights at each width over their squares, f64[K, len(WIDTHS)]."""
    weight = operand(node, 1)
    assert weight is not None
    rows = graph.constant(weight).reshape(weight.type.shape[0], -1).astype(np.float64)
    energy = np.maximum(np.square(rows).sum(axis=1), np.finfo(np.float64).tiny)
    columns = []
    for width in WIDTHS:
        integers, scales = quantize_weights(rows, node.name, np.full(len(rows), width, np.uint8))
        columns.append(np.square(integers * scales[:, None] - rows).sum(axis=1) / energy)
    return np.stack(columns, axis=1)


def _first(result: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    return result[0] if isinstance(result, tuple) else result
