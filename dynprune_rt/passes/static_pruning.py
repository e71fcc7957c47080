"""Physical removal of channels that are zero or unneeded for every image.

Static masks, pruned batch norms, zero filters and buffers with exact zeros all end up as channels
that the activity analysis finds gone whatever the image. They are cut out of the weights of their
producers and consumers. Where several values have to agree on their channels (the operands of a
residual sum), only what is gone from all of them goes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import Channels, operator
from dynprune_rt.ir.types import TensorType
from dynprune_rt.passes.channel_activity import Activity, analyse
from dynprune_rt.passes.channel_sets import TRUE

#: Rounds of analysis and removal; a second one rarely finds more.
MAX_ROUNDS = 4


def prune_static_channels(graph: Graph) -> dict[str, int]:
    """Remove channels in place, on a graph in execution order without masks.

    Returns how many output channels of convolutions ("channels") and linear layers ("features") went.
    """
    removed = {"channels": 0, "features": 0}
    for _ in range(MAX_ROUNDS):
        activity = analyse(graph)
        changed = _drop_zero_summands(activity)
        changed |= _push_constants(activity)
        if changed:
            activity = analyse(graph)
        keep = _Kept(activity)
        if keep.is_everything():
            return removed
        for kind, count in _Removal(graph, keep).run().items():
            removed[kind] += count
    return removed


def _drop_zero_summands(activity: Activity) -> bool:
    """x + 0 is x."""
    changed = False
    for node in activity.graph.nodes:
        if node.op != "add":
            continue
        for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            if value is None or other is None or not value.type.batched or other.type != node.output.type:
                continue
            if (activity.states.of(value).zero == TRUE).all():
                activity.graph.replace(node.output, other)
                changed = True
                break
    return changed


def _push_constants(activity: Activity) -> bool:
    """Planes that are the same constant for every image, read by an unpadded convolution, join its bias."""
    graph, changed = activity.graph, False
    builder = Builder(graph)
    for node in graph.nodes:
        x = node.inputs[0]
        if node.op != "conv2d" or any(node.attrs["padding"]) or node.attrs["groups"] != 1:
            continue
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None and weight is not None
        state = activity.states.of(x)
        known = (state.known == TRUE) & (state.level != 0)
        if known.shape[1:] != (1, 1) or not known.any():
            continue
        fixed = np.broadcast_to(known[:, 0, 0], (x.type.channels,))
        level = np.where(fixed, np.broadcast_to(state.level[:, 0, 0], fixed.shape), 0.0).astype(np.float64)
        array = graph.constant(weight)
        if not array[:, fixed].any():
            continue
        total = array.astype(np.float64).sum(axis=(2, 3)) @ level
        if bias is not None:
            total = total + graph.constant(bias)
        new_bias = builder.constant(f"{node.name}.bias", total.astype(np.float32))
        rest = array.copy()
        rest[:, fixed] = 0.0
        node.inputs[1] = builder.constant(weight.name, rest)
        node.inputs[2:3] = [new_bias]
        changed = True
    return changed


def _has_channels(value: Value) -> bool:
    return value.type.batched and value.type.rank >= 2


class _Kept:
    """Which channels of each value stay: bool [C] per batched value of rank 2 and more.

    Starts from what the analysis lets go and grows until all operators agree.
    """

    def __init__(self, activity: Activity) -> None:
        self._graph = activity.graph
        self._keep: dict[Value, np.ndarray] = {}
        self._changed = False
        for value in activity.graph.inputs:
            self._pin(value)
        for node in activity.graph.nodes:
            for value in filter(_has_channels, node.outputs):
                self._keep[value] = ~self._is_gone(activity, value)
        for value in activity.graph.outputs:
            self._pin(value)
        for value, keep in self._keep.items():
            if not keep.any():
                self._keep[value] = np.arange(len(keep)) == 0
        self._changed = True
        while self._changed:
            self._changed = False
            for node in (*reversed(activity.graph.nodes), *activity.graph.nodes):
                if node.output.type.batched:
                    self._agree(node)

    @staticmethod
    def _is_gone(activity: Activity, value: Value) -> np.ndarray:
        gone = (activity.demand.gone[value] == TRUE) | (activity.states.of(value).zero == TRUE)
        per_channel: np.ndarray = np.broadcast_to(
            gone.reshape(len(gone), -1).all(axis=1), (value.type.channels,)
        ).copy()
        return per_channel

    def of(self, value: Value) -> np.ndarray:
        return self._keep[value]

    def cuts(self, value: Value | None) -> bool:
        """True if some channel of the value goes."""
        return value is not None and value in self._keep and not self._keep[value].all()

    def is_everything(self) -> bool:
        return all(keep.all() for keep in self._keep.values())

    # -- agreement between operands and results -------------------------------------------------------

    def _pin(self, value: Value) -> None:
        if _has_channels(value):
            self._need(value, np.ones(value.type.channels, bool))

    def _need(self, value: Value, channels: np.ndarray) -> None:
        keep = self._keep.get(value)
        if keep is None:
            self._keep[value] = channels.copy()
            self._changed = True
        elif (channels & ~keep).any():
            self._keep[value] = keep | channels
            self._changed = True

    def _same(self, values: list[Value]) -> None:
        joined = np.logical_or.reduce([self._keep[v] for v in values])
        for value in values:
            self._need(value, joined)

    def _agree(self, node: Node) -> None:
        out = node.output
        operands = [v for v in node.inputs if v is not None and _has_channels(v)]
        if node.op == "conv2d":
            self._agree_conv2d(node)
        elif node.op == "linear" and out.type.rank == 2:
            pass  # rows and columns are free
        elif node.op == "cat" and node.attrs["dim"] == 1:
            start = 0
            for value in operands:
                stop = start + value.type.channels
                part = np.zeros(out.type.channels, bool)
                part[start:stop] = self._keep[value]
                self._need(out, part)
                self._need(value, self._keep[out][start:stop])
                start = stop
        elif self._picks(node) is not None:
            index = self._picks(node)
            needed = np.zeros(operands[0].type.channels, bool)
            assert index is not None
            needed[index[self._keep[out]]] = True
            self._need(operands[0], needed)
        elif keeps_channels(node):
            aligned = [v for v in operands if v.type.channels == out.type.channels]
            full = [v for v in aligned if not is_vector_operand(node, v)]
            self._same([out, *full])
            for value in aligned:
                self._need(value, self._keep[out])
        else:
            for value in (*operands, *filter(_has_channels, node.outputs)):
                self._pin(value)

    def _agree_conv2d(self, node: Node) -> None:
        x, weight, *_ = node.inputs
        assert x is not None and weight is not None
        gate, shift, residual = ([*node.inputs, *[None] * 6][i] for i in (3, 4, 5))
        if node.attrs["groups"] > 1:
            if weight.type.shape[:2] == (x.type.channels, 1):
                self._same([x, node.output])
            else:
                self._pin(x)
                self._pin(node.output)
        self._same([*node.outputs, *([residual] if residual is not None else [])])
        for vector in (gate, shift):
            if vector is not None and vector.type.batched:
                self._need(vector, self._keep[node.output])

    def _picks(self, node: Node) -> np.ndarray | None:
        """For operators that choose channels: the operand's channel of each channel of the result."""
        if node.op == "index_select" and node.attrs["dim"] == 1 and node.inputs[1] is not None:
            return self._graph.constant(node.inputs[1])
        if node.op == "slice" and node.attrs["dim"] == 1:
            return np.arange(node.attrs["start"], node.attrs["stop"], node.attrs["step"])
        return None


def is_vector_operand(node: Node, value: Value) -> bool:
    """A gate or scale of one pixel per channel: cheap to select from, so it need not be cut itself."""
    elementwise = operator(node.op).channels is Channels.POINTWISE and len(node.inputs) > 1
    space = value.type.shape[2:]
    return elementwise and bool(space) and all(d == 1 for d in space) and value.type != node.output.type


def keeps_channels(node: Node) -> bool:
    """Channel c of the result holds channel c of the operands and nothing else."""
    match node.op:
        case "slice" | "cat" | "index_select":
            return bool(node.attrs["dim"] != 1)
        case "expand":
            return True
        case "reshape":
            x = node.inputs[0]
            assert x is not None
            return x.type.rank >= 2 and node.output.type.rank >= 2 and x.type.shape[1] == node.output.type.shape[1]
        case "reduce":
            return 1 not in node.attrs["dims"]
        case "permute":
            return bool(node.attrs["dims"][1] == 1)
        case "pad":
            return not (node.attrs["low"][1] or node.attrs["high"][1])
    channels = operator(node.op).channels
    return node.output.type.rank >= 2 and channels in (Channels.POINTWISE, Channels.SPATIAL)


class _Removal:
    """Cuts values, weights and attributes down to the channels that stay."""

    def __init__(self, graph: Graph, keep: _Kept) -> None:
        self._graph = graph
        self._keep = keep
        self._builder = Builder(graph, fold=False)
        self._selected: dict[tuple[Value, bytes], Value] = {}

    def run(self) -> dict[str, int]:
        removed = {"channels": 0, "features": 0}
        old_nodes, self._graph.nodes = self._graph.nodes, []
        for node in old_nodes:
            if node.output.type.batched:
                if self._keep.cuts(node.output) and node.op in ("conv2d", "linear"):
                    kind = "channels" if node.op == "conv2d" else "features"
                    removed[kind] += int((~self._keep.of(node.output)).sum())
                self._rewrite(node)
            self._graph.nodes.append(node)
        for node in old_nodes:
            for value in node.outputs:
                if self._keep.cuts(value):
                    shape = (value.type.shape[0], int(self._keep.of(value).sum()), *value.type.shape[2:])
                    value.type = TensorType(value.type.dtype, shape)
        return removed

    def _rewrite(self, node: Node) -> None:
        x, out = node.inputs[0], node.output
        touched = any(self._keep.cuts(v) for v in (*node.inputs, *node.outputs))
        if not touched:
            return
        match node.op:
            case "conv2d":
                self._cut_conv2d(node)
            case "linear":
                self._cut_layer(node, x)
            case "index_select" | "slice" if node.attrs["dim"] == 1:
                self._cut_selection(node)
            case "affine":
                node.inputs[1:] = [self._rows(v, out) for v in node.inputs[1:]]
            case "reshape" | "expand":
                shape = list(node.attrs["shape"])
                shape[1] = int(self._keep.of(out).sum())
                node.attrs = {**node.attrs, "shape": tuple(shape)}
            case "cat" if node.attrs["dim"] == 1:
                pass
            case _:
                node.inputs = [self._aligned(v, out, v is not None and is_vector_operand(node, v)) for v in node.inputs]

    def _kept(self, value: Value) -> np.ndarray:
        return np.nonzero(self._keep.of(value))[0]

    def _cut_constant(self, value: Value, cut: Callable[[np.ndarray], np.ndarray]) -> Value:
        array = np.ascontiguousarray(cut(self._graph.constant(value)))
        return value if array.shape == value.type.shape else self._builder.constant(value.name, array)

    def _rows(self, value: Value | None, out: Value) -> Value | None:
        """A constant [K, ...] for the kept channels of ``out``."""
        return None if value is None else self._cut_constant(value, lambda a: a[self._kept(out)])

    def _cut_layer(self, node: Node, x: Value | None) -> None:
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None and weight is not None
        if node.output.type.rank == 2 or node.op == "conv2d":
            columns = self._kept(x)
            rows = self._rows(weight, node.output)
            assert rows is not None
            node.inputs[1] = self._cut_constant(rows, lambda a: a[:, columns])
            if bias is not None:
                node.inputs[2] = self._rows(bias, node.output)

    def _cut_conv2d(self, node: Node) -> None:
        x, weight, out = node.inputs[0], node.inputs[1], node.output
        assert x is not None and weight is not None
        if node.attrs["groups"] == 1:
            self._cut_layer(node, x)
        else:  # depthwise; other groupings keep all their channels
            node.inputs[1:3] = [self._rows(v, out) for v in node.inputs[1:3]]
            if weight.type.shape[1] == 1 and self._keep.cuts(out):
                node.attrs = {**node.attrs, "groups": len(self._kept(out))}
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            node.inputs[3] = self._aligned(node.inputs[3], out, select=True)
        shift = node.inputs[4] if len(node.inputs) > 4 else None
        if shift is not None:
            varies = shift.type.batched
            node.inputs[4] = self._aligned(shift, out, select=True) if varies else self._rows(shift, out)

    def _cut_selection(self, node: Node) -> None:
        x, out = node.inputs[0], node.output
        assert x is not None
        if node.op == "slice":
            index = np.arange(node.attrs["start"], node.attrs["stop"], node.attrs["step"])
        else:
            assert node.inputs[1] is not None
            index = self._graph.constant(node.inputs[1])
        place = np.cumsum(self._keep.of(x)) - 1
        chosen = self._builder.constant(f"{node.name}.channels", place[index[self._kept(out)]].astype(np.int64))
        node.op, node.attrs, node.inputs = "index_select", {"dim": 1}, [x, chosen]

    def _aligned(self, value: Value | None, out: Value, select: bool) -> Value | None:
        """An operand of a node that keeps channels, with exactly the channels that ``out`` keeps."""
        if value is None or not (self._keep.cuts(out) or self._keep.cuts(value)):
            return value
        rank, channels = out.type.rank, len(self._keep.of(out))
        if not value.type.batched:
            axis = 1 - (rank - value.type.rank)
            if axis < 0 or value.type.shape[axis] != channels:
                return value
            return self._cut_constant(value, lambda a: np.take(a, self._kept(out), axis=axis))
        if value.type.channels != channels or not select:
            return value
        wanted = self._keep.of(out)[self._keep.of(value)]
        if wanted.all():
            return value
        key = (value, wanted.tobytes())
        if key not in self._selected:
            name = value.producer.name if value.producer is not None else value.name
            index = self._builder.constant(f"{name}.channels", np.nonzero(wanted)[0])
            self._selected[key] = self._select(value, index, name)
        return self._selected[key]

    def _select(self, value: Value, index: Value, name: str) -> Value:
        """index_select on dim 1; typed by hand, because the operand's own type is cut at the end."""
        shape = (value.type.shape[0], index.type.shape[0], *value.type.shape[2:])
        result = self._graph.new_value(name, TensorType(value.type.dtype, shape))
        node = Node("index_select", name, [value, index], [result], {"dim": 1})
        result.producer = node
        self._graph.nodes.append(node)
        return result
