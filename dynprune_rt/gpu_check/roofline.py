"""The least time that a network can take on a GPU, dense and with the channels that are live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.profile import Profile


@dataclass(frozen=True)
class Roofline:
    """What a GPU was measured to reach: multiply-adds and bytes of its memory per second."""

    macs_per_second: float
    bytes_per_second: float


def network_limit(
    graph: Graph, profile: Profile, roof: Roofline, batch: int, element_bytes: int = 2
) -> dict[str, float]:
    """Milliseconds of all convolutions, each bound by its products or its traffic, no launch costing anything.

    ``profile``: of the skipping network, with live channels per layer. Weights are read once per batch, also where
    skipping needs only parts of them. "gain" is the speed-up that nothing can exceed.
    """
    live = {row["name"]: row for row in profile.rows if row.get("total_out")}
    dense = skipping = 0.0
    for node in graph.nodes:
        if node.op == "conv2d":
            dense += _seconds(node, {}, roof, batch, element_bytes)
            skipping += _seconds(node, live, roof, batch, element_bytes)
    return {"dense": dense * 1e3, "skipping": skipping * 1e3, "gain": dense / skipping}


def _seconds(
    node: Node, live: Mapping[str, Mapping[str, float]], roof: Roofline, batch: int, element_bytes: int
) -> float:
    x, weight, out = node.inputs[0], node.inputs[1], node.output
    assert x is not None and weight is not None
    row = live.get(node.name)
    inputs = row["live_in"] / row["total_in"] if row else 1.0
    outputs = row["live_out"] / row["total_out"] if row else 1.0
    macs = weight.type.elements * out.type.shape[2] * out.type.shape[3] * inputs * outputs * batch
    moved = _elements(x) * inputs + _elements(out) * outputs
    if len(node.inputs) > 5 and node.inputs[5] is not None:
        moved += _elements(out) * outputs
    total = (moved * batch + weight.type.elements) * element_bytes
    return max(macs / roof.macs_per_second, total / roof.bytes_per_second)


def _elements(value: Value) -> int:
    """Of one image."""
    shape = value.type.shape
    return shape[1] * shape[2] * shape[3]
