"""Masks over pixels: recognised and counted, but executed densely.

A mask [N, 1, H, W] says which pixels of a map are needed, one [N, C, H, W] which pixels of which
channel. No kernel skips pixels; the report names the masks and the convolutions they would spare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.operators import Channels, operator

if TYPE_CHECKING:
    from dynprune_rt.passes.channel_activity import Activity


def spatial_masks(activity: Activity) -> list[dict[str, Any]]:
    """One entry per multiplication of a map by a mask that varies over its pixels.

    "gate": the node that makes the mask, "shape": of one image, "convolutions": names of those whose
    every use is multiplied by the mask, "macs": their multiplications per image when dense, which is
    what an open share s of pixels would reduce to about s times.
    """
    users = activity.graph.users()
    entries = []
    for node in activity.graph.nodes:
        if node.op != "mul" or not node.output.type.is_map:
            continue
        for mask, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            if mask is None or other is None or not _is_spatial_mask(activity, mask, node):
                continue
            convolutions = _spared(other, users)
            maker = mask.producer
            entries.append(
                {
                    "gate": maker.name if maker is not None else mask.name,
                    "shape": list(mask.type.shape[1:]),
                    "convolutions": [conv.name for conv in convolutions],
                    "macs": sum(_macs(conv) for conv in convolutions),
                }
            )
    return entries


def _is_spatial_mask(activity: Activity, mask: Value, node: Node) -> bool:
    """Binary by construction, and different from pixel to pixel."""
    if not mask.type.is_map or mask.type.shape[2] * mask.type.shape[3] == 1:
        return False
    zeros = activity.gates.of(mask)
    uniform = zeros is not None and zeros.shape[-2:] == (1, 1)
    return activity.facts.range(mask).binary and activity.facts.may_be_zero(mask) and not uniform


def _spared(value: Value, users: dict[Value, list[Node]]) -> list[Node]:
    """The convolution whose outputs reach only this multiplication, pixel by pixel."""
    while value.producer is not None and len(users.get(value, ())) == 1:
        node = value.producer
        if node.op == "conv2d":
            return [node]
        if operator(node.op).channels is not Channels.POINTWISE or node.inputs[0] is None:
            break
        value = node.inputs[0]
    return []


def _macs(conv: Node) -> int:
    weight = conv.inputs[1]
    assert weight is not None
    _, _, height, width = conv.output.type.shape
    return int(weight.type.elements * height * width)
