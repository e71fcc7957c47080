"""Handlers of operators on quantised maps (csrc/cpu/quantized_kernels.h)."""

from __future__ import annotations

import math

import numpy as np

from dynprune_rt import _C
from dynprune_rt.backends.cpu.geometry import convolution_taps
from dynprune_rt.backends.cpu.group_maps import (
    check_stored,
    map_size,
    operands,
    refuse,
    residual_planes,
    strided_source,
)
from dynprune_rt.backends.cpu.image_windows import record_windows, window_reader
from dynprune_rt.backends.cpu.lowering import LayerFacts, Recorder
from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.operators.quantized import INTEGER_REDUCTIONS, reduction_factor

_TYPES = {"u8": _C.QuantizedType.u8, "s8": _C.QuantizedType.s8}


def _type(value: Value) -> _C.QuantizedType:
    return _TYPES[value.type.dtype]


def lower_quantized_conv2d(recorder: Recorder, node: Node) -> bool:
    x, weight, scale, bias, gate, shift, residual = operands(node, 7)
    assert x is not None and weight is not None and scale is not None and bias is not None
    y = node.output
    groups = node.attrs["groups"]
    depthwise = groups > 1 and groups == x.type.channels == y.type.channels
    if depthwise and residual is not None:
        raise refuse(node, "a depthwise convolution with a residual")
    residual_scale = node.attrs["residual_scale"]
    check_stored(node, residual)

    weights = np.ascontiguousarray(recorder.graph.constant(weight))
    stride, kernel = tuple(node.attrs["stride"]), (weights.shape[2], weights.shape[3])
    taps = convolution_taps(map_size(x), map_size(y), kernel, stride, node.attrs["padding"], node.attrs["dilation"])
    macs_per_pair = math.prod(map_size(y)) * math.prod(kernel)
    in_channels, out_channels = x.type.channels, y.type.channels
    facts = LayerFacts(node.name, "conv2d", in_channels, out_channels, macs_per_pair * math.prod(weights.shape[:2]))
    model_inputs = 0
    if x.producer is not None and not recorder.has_map(x) and window_reader(recorder, x) is node:
        windows = record_windows(recorder, node, x, weights)
        source_map = source = windows.source
        weights, taps, in_list = windows.weights, windows.taps, windows.channels
        model_inputs, in_channels = in_channels, weights.shape[1]
    else:
        source_map = recorder.as_map(x)
        source = strided_source(recorder, node)
        in_list = recorder.live_list(x)
    out = recorder.new_map(y) if residual is None else residual_planes(recorder, node, residual, source_map)
    source.pitch_class.unite(out.pitch_class)
    source.pitch_class.require(taps.reach)

    out_list = recorder.list_of(node.computed if node.computed is not None else y.live, None, out_channels)
    added_as_integers = residual is not None and residual_scale == 1 and residual.type.dtype == y.type.dtype
    pass_list = None
    if node.computed is not None and residual is not None and (shift is not None or not added_as_integers):
        pass_list = recorder.list_of(None, node.computed, out_channels)
    gate_flat = None if gate is None else recorder.as_flat(gate)
    shift_flat = None if shift is None else recorder.as_flat(shift)
    scales, biases = recorder.graph.constant(scale), recorder.graph.constant(bias)
    recorder.step(
        lambda: recorder.builder.add_quantized_conv(
            node.name,
            in_map=recorder.map_id(source),
            out_map=recorder.map_id(out),
            in_channels=in_channels,
            weights=weights,
            model_inputs=model_inputs,
            depthwise=depthwise,
            groups=1 if depthwise else groups,
            tap_offset=taps.flat(source.pitch_class.pitch, source.pitch_class.plane_stride),
            tap_column=[column for _, _, column in taps.offsets],
            scale=scales,
            bias=biases,
            gate=recorder.flat_id(gate_flat),
            shift=recorder.flat_id(shift_flat),
            in_type=_type(x),
            out_type=_type(y),
            residual_type=_type(y if residual is None else residual),
            residual_scale=residual_scale,
            inner_low=node.attrs["inner_low"],
            inner_high=node.attrs["inner_high"],
            in_list=in_list.index,
            out_list=out_list.index,
            pass_list=-1 if pass_list is None else pass_list.index,
            macs_per_pair=macs_per_pair,
        ),
        facts,
        reads=[source, gate_flat, shift_flat],
        writes=[out],
    )
    return True


def lower_quantize(recorder: Recorder, node: Node) -> bool:
    x, y = node.inputs[0], node.output
    assert x is not None
    if window_reader(recorder, y) is not None and not recorder.has_map(x):
        return True  # its reader makes what it needs
    in_live = None if y.live is x.live else recorder.mask_flat(x.live)
    direct = x in recorder.graph.inputs and not recorder.has_map(x)
    source = None if direct else recorder.as_map(x)
    port = recorder.graph.inputs.index(x) if direct else -1
    out, live = recorder.new_map(y), recorder.live_list(y)
    inverse_scale = float(np.float32(1) / np.float32(node.attrs["scale"]))
    recorder.step(
        lambda: recorder.builder.add_quantize(
            node.name,
            in_map=-1 if source is None else recorder.map_id(source),
            input=port,
            out_map=recorder.map_id(out),
            list=live.index,
            inverse_scale=inverse_scale,
            type=_type(y),
            in_live=recorder.flat_id(in_live),
        ),
        LayerFacts(node.name, node.op),
        reads=[source, in_live],
        writes=[out],
    )
    return True


def lower_dequantize(recorder: Recorder, node: Node) -> bool:
    x, y = node.inputs[0], node.output
    assert x is not None
    if y.live is not x.live:
        raise refuse(node, "its masks differ")
    source, out = recorder.as_map(x), recorder.new_map(y)
    live = recorder.live_list(x)
    recorder.step(
        lambda: recorder.builder.add_dequantize(
            node.name,
            in_map=recorder.map_id(source),
            out_map=recorder.map_id(out),
            list=live.index,
            scale=node.attrs["scale"],
            type=_type(x),
        ),
        LayerFacts(node.name, node.op),
        reads=[source],
        writes=[out],
    )
    return True


def lower_quantized_reduce(recorder: Recorder, node: Node) -> bool:
    x = node.inputs[0]
    assert x is not None
    source, live = recorder.as_map(x), recorder.live_list(x)
    y = recorder.new_flat(node.output)
    kind = node.attrs["kind"]
    factor = reduction_factor(kind, node.attrs["scale"], math.prod(map_size(x)))
    recorder.step(
        lambda: recorder.builder.add_quantized_reduce(
            node.name,
            kind=getattr(_C.QuantizedReduce, INTEGER_REDUCTIONS[kind]),
            root=kind == "l2",
            in_map=recorder.map_id(source),
            out_flat=recorder.flat_id(y),
            list=live.index,
            scale=factor,
            type=_type(x),
        ),
        LayerFacts(node.name, "spatial_reduce"),
        reads=[source],
        writes=[y],
    )
    return True


def lower_quantized_max_pool(recorder: Recorder, node: Node, x: Value) -> bool:
    if node.output.live is not x.live:
        raise refuse(node, "its masks differ")
    source, out = recorder.as_map(x), recorder.new_map(node.output)
    live = recorder.live_list(x)
    attrs = node.attrs
    recorder.step(
        lambda: recorder.builder.add_quantized_max_pool(
            node.name,
            type=_type(x),
            in_map=recorder.map_id(source),
            out_map=recorder.map_id(out),
            list=live.index,
            kernel=tuple(attrs["kernel"]),
            stride=tuple(attrs["stride"]),
            padding=list(attrs["padding"]),
            dilation=tuple(attrs["dilation"]),
        ),
        LayerFacts(node.name, node.op),
        reads=[source],
        writes=[out],
    )
    return True
