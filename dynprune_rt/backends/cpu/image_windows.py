"""Images as windows of their rows: how a first convolution of few channels fills words (csrc/cpu/group_planes.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynprune_rt import _C
from dynprune_rt.backends.cpu.geometry import Taps, convolution_taps
from dynprune_rt.backends.cpu.group_maps import map_size
from dynprune_rt.backends.cpu.live_lists import LiveListRef
from dynprune_rt.backends.cpu.lowering import LayerFacts, Recorder
from dynprune_rt.backends.cpu.storage import MapView
from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.types import CHANNELS_PER_WORD

#: Windows of 16 positions are gathered from one vector up to this stride.
_MOST_STRIDE = {"u8": 4, "s8": 4, "bf16": 2}


def window_reader(recorder: Recorder, value: Value) -> Node | None:
    """The convolution that reads ``value``, a graph input narrowed to int8 or bf16, as windows; None if none does."""
    narrowing = value.producer
    assert narrowing is not None
    users = recorder.users.get(value, [])
    image = narrowing.inputs[0]
    if len(users) != 1 or users[0].op not in ("conv2d", "quantized_conv2d") or value in recorder.graph.outputs:
        return None
    if image not in recorder.graph.inputs or value.live is not None:
        return None
    (node,) = users
    if node.inputs[0] is not value:
        return None
    attrs = node.attrs
    weight = node.inputs[1]
    assert weight is not None
    channels, (_, taps) = value.type.channels, weight.type.shape[2:]
    per_word = CHANNELS_PER_WORD[value.type.dtype]
    if attrs["groups"] != 1 or attrs["dilation"][1] != 1 or attrs["stride"][1] > _MOST_STRIDE[value.type.dtype]:
        return None
    fewer = channels * -(-taps // per_word) <= taps * -(-channels // per_word)
    return node if fewer and taps > 1 else None


@dataclass(frozen=True)
class ImageWindows:
    """What replaces the operands of a convolution whose input is stored as windows."""

    source: MapView
    taps: Taps
    weights: np.ndarray  # [K, elements of a position's windows, R, 1]
    channels: LiveListRef


def record_windows(recorder: Recorder, node: Node, x: Value, weights: np.ndarray) -> ImageWindows:
    """Record the step that narrows the graph input before ``x`` into the windows that ``node`` reads."""
    narrowing = x.producer
    assert narrowing is not None and narrowing.inputs[0] is not None
    per_word = CHANNELS_PER_WORD[x.type.dtype]
    (height, width), (_, out_width) = map_size(x), map_size(node.output)
    out_channels, channels, rows, columns = weights.shape
    windows = -(-columns // per_word)
    stride = tuple(node.attrs["stride"])
    top, left, bottom, _ = node.attrs["padding"]
    taps = convolution_taps(
        (height, out_width),
        map_size(node.output),
        (rows, 1),
        (stride[0], 1),
        (top, 0, bottom, 0),
        (node.attrs["dilation"][0], 1),
    )
    view = recorder.new_planes(channels * windows, *taps.phase_size, phases=stride[0], tight=True)
    port = recorder.graph.inputs.index(narrowing.inputs[0])
    integers = x.type.dtype != "bf16"
    scale = narrowing.attrs["scale"] if integers else 1.0
    recorder.step(
        lambda: recorder.builder.add_image_windows(
            narrowing.name,
            input=port,
            channels=channels,
            size=(height, width),
            pad_left=left,
            stride=stride,
            phase_stride=view.pitch_class.plane_stride,
            out_map=recorder.map_id(view),
            inverse_scale=float(np.float32(1) / np.float32(scale)),
            type=getattr(_C.QuantizedType, x.type.dtype) if integers else None,
        ),
        LayerFacts(narrowing.name, narrowing.op),
        writes=[view],
    )
    padded = np.zeros((out_channels, channels, rows, windows * per_word), weights.dtype)
    padded[..., :columns] = weights
    elements = padded.transpose(0, 1, 3, 2).reshape(out_channels, -1, rows, 1)
    everything = recorder.list_of(None, None, channels * windows * per_word)
    return ImageWindows(view, taps, np.ascontiguousarray(elements), everything)
