"""What handlers of int8 and of bf16 maps share: maps with several channels per word (csrc/cpu/group_planes.h).

Without a residual a convolution writes its live channels side by side, so a map and its readers have to
follow one live list; a residual stream is stored whole, in channel order.
"""

from __future__ import annotations

from dynprune_rt.backends.cpu.lowering import LayerFacts, Recorder
from dynprune_rt.backends.cpu.storage import MapView
from dynprune_rt.errors import DeviceError
from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.types import CHANNELS_PER_WORD


def refuse(node: Node, why: str) -> DeviceError:
    """An error for a node that quantization does not make, but a file may hold."""
    return DeviceError(
        f"the int8 and bf16 kernels cannot execute layer {node.name} ({node.op}): {why}; quantize the model again"
    )


def map_size(value: Value) -> tuple[int, int]:
    """Height and width of a map."""
    return value.type.shape[2], value.type.shape[3]


def operands(node: Node, count: int) -> list[Value | None]:
    """The node's operands, None for those that are missing at the end."""
    return [*node.inputs, *[None] * (count - len(node.inputs))]


def check_stored(node: Node, residual: Value | None) -> None:
    """Raise DeviceError where the masks ask for a storage that the kernels do not have."""
    y = node.output
    if residual is None and node.computed is not None and node.computed is not y.live:
        raise refuse(node, "it stores channels that it does not compute")
    if residual is not None and (residual.live is not None or y.live is not None):
        raise refuse(node, "a residual stream has to be stored whole")


def strided_source(recorder: Recorder, node: Node) -> MapView:
    """What a convolution reads of its input: the map, or its phases; the first alone if no reader needs another."""
    x = node.inputs[0]
    assert x is not None
    if tuple(node.attrs["stride"]) == (1, 1):
        return recorder.as_map(x)
    return recorder.phase_split(x, node.attrs["stride"], first_only=all(map(_reads_no_later_phase, recorder.users[x])))


def _reads_no_later_phase(user: Node) -> bool:
    """Whether this reader of a map is a 1x1 convolution, which reads the first phase alone, or reads no phases."""
    if user.op not in ("conv2d", "quantized_conv2d") or tuple(user.attrs["stride"]) == (1, 1):
        return True
    weight = user.inputs[1]
    assert weight is not None
    return weight.type.shape[2:] == (1, 1) and not any(user.attrs["padding"])


def residual_planes(recorder: Recorder, node: Node, residual: Value, source: MapView) -> MapView:
    """The planes that a convolution adds to: the residual's own where nobody else needs them, else a copy."""
    view = recorder.as_map(residual)
    if recorder.overwritable(residual, view) and not view.storages & source.storages:
        return recorder.bind_map(node.output, view)
    out = recorder.new_map(node.output)
    view.pitch_class.unite(out.pitch_class)
    recorder.step(
        lambda: recorder.builder.add_group_copy(node.name, in_map=recorder.map_id(view), out_map=recorder.map_id(out)),
        LayerFacts(node.name, "copy"),
        reads=[view],
        writes=[out],
    )
    return out


def lower_group_cat(recorder: Recorder, node: Node) -> bool:
    """Maps side by side, in any mixture of whole and packed ones."""
    y = node.output
    values = [v for v in node.inputs if v is not None]
    views = [recorder.as_map(v) for v in values]
    stored = [recorder.live_list(v) for v in values]
    out, live = recorder.new_map(y), recorder.live_list(y)
    for view in views:
        view.pitch_class.unite(out.pitch_class)
    recorder.step(
        lambda: recorder.builder.add_group_cat(
            node.name,
            per_word=CHANNELS_PER_WORD[y.type.dtype],
            inputs=[
                (recorder.map_id(view), part.index, value.type.channels)
                for view, part, value in zip(views, stored, values, strict=True)
            ],
            out_map=recorder.map_id(out),
            list=live.index,
        ),
        LayerFacts(node.name, node.op),
        reads=views,
        writes=[out],
    )
    return True
