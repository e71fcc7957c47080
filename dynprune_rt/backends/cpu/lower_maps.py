"""Planar handlers: one per operator that works on planes. A handler returns False to decline."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dynprune_rt import _C
from dynprune_rt.backends.cpu.geometry import convolution_taps
from dynprune_rt.backends.cpu.group_maps import lower_group_cat
from dynprune_rt.backends.cpu.lower_bf16 import (
    lower_bf16_conv2d,
    lower_bf16_max_pool,
    lower_bf16_reduce,
    lower_pack,
    lower_unpack,
)
from dynprune_rt.backends.cpu.lower_quantized import (
    lower_dequantize,
    lower_quantize,
    lower_quantized_conv2d,
    lower_quantized_max_pool,
    lower_quantized_reduce,
)
from dynprune_rt.backends.cpu.lowering import LayerFacts, Recorder, lower_linear
from dynprune_rt.backends.cpu.pass_through import passes_unchanged
from dynprune_rt.backends.cpu.storage import FlatView, MapView
from dynprune_rt.backends.cpu.winograd_sites import is_winograd_shape
from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.types import CHANNELS_PER_WORD, QUANTIZED

_UNBOUNDED = (-math.inf, math.inf)
#: Fewer outputs than this would leave most lanes of a strided convolution empty.
_FEWEST_LANES = 9
#: Of so few inputs a tile with channels in the lanes multiplies less than it transposes: phase planes and the direct
#: kernel are faster. The kernel for 7x7 layers reads no more: kMaxStemInputs of csrc/cpu/kernels.h.
_FEW_INPUTS = 4
#: The result of an expansion beyond this (half of a second-level cache) is convolved on a few channels at a time: as
#: many planes as fit into `_SHARED_BYTES`, within limits. kMostSharedPlanes of csrc/core/conv_step.h is not exceeded.
_RESIDENT_MAP_BYTES = 512 << 10
_SHARED_BYTES = 256 << 10
_FEWEST_SHARED = 8
_MOST_SHARED = 32

Handler = Callable[[Recorder, Node], bool]


def lower_on_planes(recorder: Recorder, node: Node) -> bool:
    """Record ``node`` as steps on planes; False if it has to run on flat tensors."""
    handler = _HANDLERS.get(node.op)
    return handler is not None and handler(recorder, node)


def _is_plane_map(value: Value | None) -> bool:
    """True for feature maps worth planes: a 1x1 map is a vector."""
    return (
        value is not None
        and value.type.is_map
        and value.type.dtype in ("f32", "bool")
        and math.prod(value.type.shape[2:]) > 1
    )


def _size(value: Value) -> tuple[int, int]:
    return value.type.shape[2], value.type.shape[3]


def _facts(node: Node) -> LayerFacts:
    return LayerFacts(node.name, node.op)


# -- convolution ----------------------------------------------------------------------------------


def _operand(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _conv2d(recorder: Recorder, node: Node) -> bool:
    x, weight, bias, gate, shift, residual = (_operand(node, i) for i in range(6))
    assert x is not None and weight is not None
    if x.type.dtype == "bf16":
        return lower_bf16_conv2d(recorder, node)
    y = node.output
    weights = np.ascontiguousarray(recorder.graph.constant(weight))
    kernel = (weights.shape[2], weights.shape[3])
    stride, dilation = tuple(node.attrs["stride"]), tuple(node.attrs["dilation"])
    padding, groups = tuple(node.attrs["padding"]), int(node.attrs["groups"])
    inner = tuple(node.attrs.get("inner", _UNBOUNDED))
    outer = tuple(node.attrs.get("outer", _UNBOUNDED))
    pools = list(node.attrs.get("pools", ()))
    plain = gate is None and shift is None and residual is None and not pools and outer == _UNBOUNDED
    if kernel == (1, 1) and groups == 1 and _size(x) == (1, 1) == _size(y) and plain:
        lower_linear(recorder, node, x, y)
        return True

    out_channels = y.type.channels
    lanes = recorder.builder.has_channel_lanes and groups == 1 and stride[1] <= 2
    few = x.type.channels <= _FEW_INPUTS
    stem = lanes and few and recorder.builder.has_stem and out_channels >= _FEWEST_LANES
    stem = stem and kernel == (7, 7) and stride == (2, 2) and padding == (3, 3, 3, 3) and dilation == (1, 1)
    whole = stride != (1, 1) and (
        stem
        or (lanes and not few and out_channels >= _FEWEST_LANES)
        or (groups == x.type.channels > 1 and stride[1] == 2)
    )
    shared_planes = _shared_planes(recorder, node)
    taps = convolution_taps(_size(x), _size(y), kernel, stride, padding, dilation, split=not whole)
    residual_view = None if residual is None else recorder.as_map(residual)
    if (
        residual is not None
        and residual_view is not None
        and recorder.overwritable(residual, residual_view)
        and not residual_view.storages & recorder.as_map(x).storages
    ):
        out = recorder.bind_map(y, residual_view)
    elif shared_planes:
        out = recorder.bind_map(y, recorder.new_shared_planes(y, shared_planes))
    else:
        out = recorder.new_map(y)
    if residual_view is not None:
        residual_view.pitch_class.unite(out.pitch_class)
    if stride == (1, 1):
        source = recorder.as_map(x)
        source.pitch_class.unite(out.pitch_class)
    elif whole:
        source = recorder.as_map(x)
    else:
        source = recorder.phase_split(x, (stride[0], stride[1]))
        source.pitch_class.unite(out.pitch_class)
    source.pitch_class.require(taps.reach)

    computed = node.computed if node.computed is not None else y.live
    in_list = recorder.live_list(x)
    out_list = recorder.list_of(computed, None, out_channels)
    stored_list = recorder.list_of(y.live, None, out_channels) if pools else None
    pass_list = None
    free_pass = out is residual_view and residual is not None and passes_unchanged(residual, shift, outer)
    if node.computed is not None and node.computed is not y.live and not free_pass:
        pass_list = recorder.list_of(y.live, node.computed, out_channels)
    partly_kept = residual if free_pass and node.computed is not None else None
    if partly_kept is not None:
        recorder.updates[y] = partly_kept, out_list

    site = None
    if recorder.winograd.fits(*_size(y)) and is_winograd_shape(kernel, stride, dilation, padding, groups):
        site = recorder.winograd.add(x, out_channels, out)
    bias_flat = None if bias is None else recorder.constant_vector(bias, out_channels)
    if shift is None or shift.type.batched:
        shift_flat = None if shift is None else recorder.as_flat(shift)
    else:
        shift_flat = recorder.constant_vector(shift, out_channels)
    gate_flat = None if gate is None else recorder.as_flat(gate)
    gate_is_mask = gate is not None and recorder.is_own_mask(gate, computed)
    residual_live = None if residual is None else recorder.mask_flat(residual.live)
    pool_flats = [recorder.new_flat(v) for v in node.outputs[1:]]
    pooled_before = [_pooled(partly_kept, kind) for kind in pools]  # planes that stay keep their pooled values
    before_flats = [None if v is None else recorder.as_flat(v) for v in pooled_before]
    macs_per_pair = math.prod(_size(y)) * math.prod(kernel)
    reads = [source, residual_view, gate_flat, shift_flat, residual_live, *before_flats, *recorder.deferred.pop(x, ())]
    if shared_planes:
        recorder.deferred[y] = reads
    builder = recorder.builder
    recorder.step(
        lambda: builder.add_conv(
            node.name,
            in_map=recorder.map_id(source),
            out_map=recorder.map_id(out),
            weights=weights,
            groups=groups,
            stride=stride if whole else (1, 1),
            channel_lanes=lanes and (whole or (stride == (1, 1) and site is None)) and not shared_planes,
            tap_offset=taps.flat(source.pitch_class.pitch, source.pitch_class.plane_stride),
            bias=recorder.flat_id(bias_flat),
            gate=recorder.flat_id(gate_flat),
            gate_is_mask=gate_is_mask,
            shift=recorder.flat_id(shift_flat),
            residual_map=-1 if residual_view is None else recorder.map_id(residual_view),
            residual_live=recorder.flat_id(residual_live),
            inner=inner,
            outer=outer,
            in_list=in_list.index,
            out_list=out_list.index,
            pass_list=-1 if pass_list is None else pass_list.index,
            stored_list=-1 if stored_list is None else stored_list.index,
            pools=[
                (getattr(_C.Reduce, kind), recorder.flat_id(flat), recorder.flat_id(before))
                for kind, flat, before in zip(pools, pool_flats, before_flats, strict=True)
            ],
            stem=stem,
            winograd_m=0 if site is None else site.m,
            winograd_form=_C.WinogradWeights.transformed if site is None else site.form,
            winograd_scratch=-1 if site is None else recorder.winograd.scratch(site),
            kept_input=(-1, 0, -1) if site is None else site.kept_input,
            shared_planes=shared_planes,
            macs_per_pair=macs_per_pair,
        ),
        LayerFacts(node.name, "conv2d", x.type.channels, out_channels, macs_per_pair * math.prod(weights.shape[:2])),
        reads=reads,
        writes=[out, *pool_flats],
    )
    return True


def _shared_planes(recorder: Recorder, node: Node) -> int:
    """How many planes an expansion shares with the depthwise convolution that is executed with it; 0 = an own map."""
    y, users = node.output, recorder.users.get(node.output, [])
    # Up to its reader the expansion is put off: maps made in between might take the place of what it reads.
    following = recorder.graph.nodes[recorder.position + 1 :]
    reader = next((later for later in following if later in users or len(later.output.type.shape) == 4), None)
    if reader is None or users != [reader] or y in recorder.graph.outputs:
        return 0
    weight = node.inputs[1]
    assert weight is not None
    channels = y.type.channels
    expansion = weight.type.shape[2:] == (1, 1) == tuple(node.attrs["stride"]) and node.attrs["groups"] == 1
    depthwise = reader.op == "conv2d" and reader.inputs[0] is y and reader.attrs["groups"] == channels > 1
    if not expansion or not depthwise or reader.output.type.channels != channels:
        return 0
    alone = all(
        _operand(layer, 5) is None
        and not layer.attrs.get("pools")
        and (layer.computed is None or layer.computed is layer.output.live)
        for layer in (node, reader)
    )
    steps = tuple(reader.attrs["stride"])
    plane_bytes = 4 * math.prod(_size(y))
    if not alone or (steps != (1, 1) and steps[1] != 2) or channels * plane_bytes < _RESIDENT_MAP_BYTES:
        return 0
    return min(max(_SHARED_BYTES // plane_bytes, _FEWEST_SHARED), _MOST_SHARED, channels)


def _pooled(value: Value | None, kind: str) -> Value | None:
    """What the convolution that made ``value`` reduced its planes to."""
    node = None if value is None else value.producer
    if node is None or node.op != "conv2d" or kind not in node.attrs.get("pools", ()):
        return None
    return node.outputs[1 + list(node.attrs["pools"]).index(kind)]


# -- elementwise ----------------------------------------------------------------------------------


def _unary_parameters(node: Node) -> tuple[str, float, float]:
    """Kernel kind and its two parameters."""
    attrs = node.attrs
    if node.op == "clamp":
        return "clamp", float(attrs["lo"]), float(attrs["hi"])
    if node.op == "leaky_relu":
        return "leaky_relu", float(attrs["slope"]), 0.0
    if node.op == "elu":
        return "elu", float(attrs["alpha"]), 0.0
    if node.op == "pow_scalar":
        return "pow_scalar", float(attrs["exponent"]), 0.0
    if node.op == "gelu":
        return ("gelu_tanh" if attrs["approximate"] == "tanh" else "gelu"), 0.0, 0.0
    return node.op, 0.0, 0.0


def _output_view(recorder: Recorder, node: Node, x: Value, source: MapView) -> MapView:
    """Planes for an elementwise result: in place where the operand dies here."""
    if recorder.overwritable(x, source):
        return recorder.bind_map(node.output, source)
    out = recorder.new_map(node.output)
    source.pitch_class.unite(out.pitch_class)
    return out


def _unary(recorder: Recorder, node: Node) -> bool:
    x = node.inputs[0]
    if x is None or not _is_plane_map(x):
        return False
    kind, a, b = _unary_parameters(node)
    return _record_unary(recorder, node, x, kind, a, b)


def _record_unary(
    recorder: Recorder,
    node: Node,
    x: Value,
    kind: str,
    a: float = 0.0,
    b: float = 0.0,
    a_flat: FlatView | None = None,
    b_flat: FlatView | None = None,
) -> bool:
    source = recorder.as_map(x)
    out = _output_view(recorder, node, x, source)
    live = recorder.live_list(node.output)
    in_live = None if x.live is node.output.live else recorder.mask_flat(x.live)
    recorder.step(
        lambda: recorder.builder.add_plane_unary(
            node.name,
            kind=getattr(_C.Unary, kind),
            in_map=recorder.map_id(source),
            out_map=recorder.map_id(out),
            list=live.index,
            a=a,
            b=b,
            a_flat=recorder.flat_id(a_flat),
            b_flat=recorder.flat_id(b_flat),
            in_live=recorder.flat_id(in_live),
        ),
        _facts(node),
        reads=[source, in_live, a_flat, b_flat],
        writes=[out],
    )
    return True


def _affine(recorder: Recorder, node: Node) -> bool:
    x, scale, shift = node.inputs[:3]
    if x is None or scale is None or shift is None or not _is_plane_map(x):
        return False
    channels = x.type.channels
    a, b = recorder.constant_vector(scale, channels), recorder.constant_vector(shift, channels)
    return _record_unary(recorder, node, x, "affine", a_flat=a, b_flat=b)


def _cast(recorder: Recorder, node: Node) -> bool:
    x = node.inputs[0]
    if node.output.type.dtype == "bf16":
        return lower_pack(recorder, node)
    if x is not None and x.type.dtype == "bf16":
        return lower_unpack(recorder, node)
    if x is None or not _is_plane_map(x) or node.output.type.dtype not in ("f32", "bool"):
        return False
    if node.output.type.dtype == "bool" and x.type.dtype == "f32":
        return _record_unary(recorder, node, x, "cast_bool")
    recorder.bind_map(node.output, recorder.as_map(x))
    return True


def _classify(value: Value, out: Value) -> str | None:
    """How an operand meets the output map: map, plane, vector, number; None = none of these."""
    shape = value.type.shape[1:] if value.type.batched else value.type.shape
    if not value.type.batched and len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) > 3:
        return None
    full = (1,) * (3 - len(shape)) + tuple(shape)
    channels, height, width = out.type.shape[1:]
    if full == (channels, height, width):
        return "map" if value.type.is_map else None
    if full == (1, height, width):
        return "plane" if value.type.is_map else None
    if full == (channels, 1, 1):
        return "vector"
    return "number" if full == (1, 1, 1) else None


def _binary(recorder: Recorder, node: Node) -> bool:
    out_value = node.output
    operands = [v for v in node.inputs[:2] if v is not None]
    if len(operands) != 2 or not _is_plane_map(out_value):
        return False
    return _record_binary(recorder, node, node.op, operands)


def _record_binary(recorder: Recorder, node: Node, op: str, operands: list[Value]) -> bool:
    out_value = node.output
    roles = [_classify(v, out_value) for v in operands]
    if None in roles or "map" not in roles:
        return False
    sources: list[MapView | FlatView] = []
    for value, role in zip(operands, roles, strict=True):
        sources.append(recorder.as_map(value) if role in ("map", "plane") else recorder.as_flat(value))
    first = roles.index("map")
    carrier, carrier_view = operands[first], sources[first]
    assert isinstance(carrier_view, MapView)
    other = sources[1 - first]
    # Written over its carrier, the result must not be read through another view of the same planes.
    apart = other is carrier_view or not (isinstance(other, MapView) and other.storages & carrier_view.storages)
    out = _output_view(recorder, node, carrier, carrier_view) if apart else recorder.new_map(out_value)
    for view in sources:
        if isinstance(view, MapView):
            view.pitch_class.unite(out.pitch_class)
    live = recorder.live_list(out_value)
    masks = [
        recorder.mask_flat(v.live) if r in ("map", "plane") and v.live is not out_value.live else None
        for v, r in zip(operands, roles, strict=True)
    ]

    def operand(index: int) -> _C.Operand:
        view, role = sources[index], roles[index]
        if isinstance(view, MapView):
            return _C.Operand(
                map=recorder.map_id(view), one_plane=role == "plane", live_mask=recorder.flat_id(masks[index])
            )
        return _C.Operand(flat=recorder.flat_id(view), one_number=role == "number")

    recorder.step(
        lambda: recorder.builder.add_plane_binary(
            node.name,
            kind=getattr(_C.Binary, op),
            x0=operand(0),
            x1=operand(1),
            out_map=recorder.map_id(out),
            list=live.index,
            clamp=_UNBOUNDED,
        ),
        _facts(node),
        reads=[*sources, *masks],
        writes=[out],
    )
    return True


# -- pooling --------------------------------------------------------------------------------------


def _pool(kind: str) -> Handler:
    def handler(recorder: Recorder, node: Node) -> bool:
        x = node.inputs[0]
        if x is not None and x.type.dtype in QUANTIZED:
            return lower_quantized_max_pool(recorder, node, x)
        if x is not None and x.type.dtype == "bf16":
            return lower_bf16_max_pool(recorder, node, x)
        if x is None or not _is_plane_map(x):
            return False
        source, out = recorder.as_map(x), recorder.new_map(node.output)
        live = recorder.live_list(node.output)
        in_live = None if x.live is node.output.live else recorder.mask_flat(x.live)
        attrs = node.attrs
        windows: dict[str, object] = {}
        if not kind.startswith("adaptive"):
            windows = {
                "kernel": tuple(attrs["kernel"]),
                "stride": tuple(attrs["stride"]),
                "padding": list(attrs["padding"]),
                "dilation": tuple(attrs.get("dilation", (1, 1))),
                "count_include_pad": bool(attrs.get("count_include_pad", True)),
                "divisor": int(attrs.get("divisor", 0)),
            }
        recorder.step(
            lambda: recorder.builder.add_pool(
                node.name,
                kind=getattr(_C.Pool, kind),
                in_map=recorder.map_id(source),
                in_live=recorder.flat_id(in_live),
                out_map=recorder.map_id(out),
                list=live.index,
                **windows,
            ),
            _facts(node),
            reads=[source, in_live],
            writes=[out],
        )
        return True

    return handler


def _spatial_reduce(recorder: Recorder, node: Node) -> bool:
    x = node.inputs[0]
    if x is not None and x.type.dtype == "bf16":
        return lower_bf16_reduce(recorder, node, x)
    if x is None or not _is_plane_map(x):
        return False
    source, live = recorder.as_map(x), recorder.live_list(x)
    y = recorder.new_flat(node.output)
    recorder.step(
        lambda: recorder.builder.add_spatial_reduce(
            node.name,
            kind=getattr(_C.Reduce, node.attrs["kind"]),
            in_map=recorder.map_id(source),
            out_flat=recorder.flat_id(y),
            list=live.index,
        ),
        _facts(node),
        reads=[source],
        writes=[y],
    )
    return True


# -- channel bookkeeping: tables of planes, nothing moves -------------------------------------------


def _cat(recorder: Recorder, node: Node) -> bool:
    if node.attrs["dim"] == 1 and node.output.type.is_map and node.output.type.dtype in CHANNELS_PER_WORD:
        return lower_group_cat(recorder, node)
    if node.attrs["dim"] != 1 or not _is_plane_map(node.output) or node.output.type.dtype != "f32":
        return False
    views = [recorder.as_map(v) for v in node.inputs if v is not None]
    for view in views[1:]:
        views[0].pitch_class.unite(view.pitch_class)
    planes = [plane for view in views for plane in view.planes]
    recorder.bind_map(node.output, MapView(planes, views[0].height, views[0].width, views[0].pitch_class))
    return True


def _select_channels(recorder: Recorder, node: Node, x: Value, channels: list[int]) -> bool:
    source = recorder.as_map(x)
    planes = [source.planes[c] for c in channels]
    recorder.bind_map(node.output, MapView(planes, source.height, source.width, source.pitch_class))
    return True


def _index_select(recorder: Recorder, node: Node) -> bool:
    x, index = node.inputs[:2]
    if x is None or index is None or node.attrs["dim"] != 1 or not _is_plane_map(x):
        return False
    return _select_channels(recorder, node, x, recorder.graph.constant(index).tolist())


def _slice(recorder: Recorder, node: Node) -> bool:
    x = node.inputs[0]
    if x is None or not _is_plane_map(x) or not _is_plane_map(node.output):
        return False
    if node.attrs["dim"] == 1:
        channels = list(range(x.type.channels))[node.attrs["start"] : node.attrs["stop"] : node.attrs["step"]]
        return _select_channels(recorder, node, x, channels)
    return _slice_pixels(recorder, node, x)


def _slice_pixels(recorder: Recorder, node: Node, x: Value) -> bool:
    """x[:, :, ::s, ::t] is phase 0 of the phase split; rows and columns arrive as two slices."""

    def step_from_zero(part: Node, dim: int) -> int:
        attrs = part.attrs
        full = attrs["start"] == 0 and attrs["stop"] >= part.inputs[0].type.shape[dim]  # type: ignore[union-attr]
        return int(attrs["step"]) if part.op == "slice" and attrs["dim"] == dim and full else 0

    if x in recorder.strided_rows:
        recorder.bind_map(node.output, recorder.strided_rows[x])
        return True
    rows = step_from_zero(node, 2)
    users = recorder.users.get(node.output, [])
    columns = {step_from_zero(user, 3) for user in users}
    if rows > 1 and len(columns) == 1 and 0 not in columns:
        recorder.strided_rows[node.output] = recorder.phase_split(x, (rows, columns.pop()), first_only=True)
        return True
    return False


def _pad(recorder: Recorder, node: Node) -> bool:
    x = node.inputs[0]
    if x is None or not _is_plane_map(x):
        return False
    low, high = node.attrs["low"], node.attrs["high"]
    spatial = [*low[2:], *high[2:], low[0], high[0]]
    if any(spatial) or node.attrs["value"] != 0 or low[1] < 0 or high[1] < 0:
        return False
    source = recorder.as_map(x)
    planes = [*[None] * low[1], *source.planes, *[None] * high[1]]
    recorder.bind_map(node.output, MapView(planes, source.height, source.width, source.pitch_class))
    return True


def _expand(recorder: Recorder, node: Node) -> bool:
    x = node.inputs[0]
    if x is None or not _is_plane_map(x) or x.type.shape[2:] != node.output.type.shape[2:]:
        return False
    repeats = node.output.type.channels // x.type.channels
    return _select_channels(recorder, node, x, [0] * repeats if x.type.channels == 1 else list(range(x.type.channels)))


#: Operators that are one plane kernel of the same name; special cases below take precedence.
_ELEMENTWISE: dict[str, Handler] = {
    **dict.fromkeys(_C.Unary.__members__, _unary),
    **dict.fromkeys(_C.Binary.__members__, _binary),
}

_HANDLERS: dict[str, Handler] = {
    **_ELEMENTWISE,
    "conv2d": _conv2d,
    "quantized_conv2d": lower_quantized_conv2d,
    "quantize": lower_quantize,
    "dequantize": lower_dequantize,
    "quantized_spatial_reduce": lower_quantized_reduce,
    "affine": _affine,
    "cast": _cast,
    "max_pool2d": _pool("max"),
    "avg_pool2d": _pool("average"),
    "adaptive_avg_pool2d": _pool("adaptive_average"),
    "adaptive_max_pool2d": _pool("adaptive_max"),
    "spatial_reduce": _spatial_reduce,
    "cat": _cat,
    "index_select": _index_select,
    "slice": _slice,
    "pad": _pad,
    "expand": _expand,
}
