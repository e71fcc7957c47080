"""Handlers of operators on bf16 maps (csrc/cpu/bf16_kernels.h)."""

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
from dynprune_rt.backends.cpu.pass_through import passes_unchanged
from dynprune_rt.backends.cpu.winograd_sites import is_winograd_shape
from dynprune_rt.ir.graph import Node, Value


def lower_bf16_conv2d(recorder: Recorder, node: Node) -> bool:
    x, weight, bias, gate, shift, residual = operands(node, 6)
    assert x is not None and weight is not None
    y = node.output
    groups = node.attrs["groups"]
    in_channels, out_channels = x.type.channels, y.type.channels
    depthwise = groups > 1 and groups == in_channels == out_channels
    if depthwise and residual is not None:
        raise refuse(node, "a depthwise convolution with a residual")
    check_stored(node, residual)

    weights = np.ascontiguousarray(recorder.graph.constant(weight))
    stride, padding, dilation = (tuple(node.attrs[name]) for name in ("stride", "padding", "dilation"))
    kernel = (weights.shape[2], weights.shape[3])
    taps = convolution_taps(map_size(x), map_size(y), kernel, stride, padding, dilation)
    macs_per_pair = math.prod(map_size(y)) * math.prod(kernel)
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

    out_list = recorder.live_list(y) if residual is None else recorder.list_of(node.computed, None, out_channels)
    outer = tuple(node.attrs["outer"])
    pass_list = None
    if node.computed is not None and residual is not None:
        if not passes_unchanged(residual, shift, outer):
            pass_list = recorder.list_of(None, node.computed, out_channels)
        elif out is recorder.as_map(residual):
            recorder.updates[y] = residual, out_list
    site = None
    if not model_inputs and is_winograd_shape(kernel, stride, dilation, padding, groups):
        site = recorder.winograd.add_bf16(x, out_channels, out)
    bias_flat = None if bias is None else recorder.constant_vector(bias, out_channels)
    gate_flat = None if gate is None else recorder.as_flat(gate)
    computed = y.live if node.computed is None else node.computed
    gate_is_mask = gate is not None and recorder.is_own_mask(gate, computed)
    shift_flat = None if shift is None else recorder.as_flat(shift)
    recorder.step(
        lambda: recorder.builder.add_bf16_conv(
            node.name,
            in_map=recorder.map_id(source),
            out_map=recorder.map_id(out),
            in_channels=in_channels,
            weights=weights,
            model_inputs=model_inputs,
            depthwise=depthwise,
            groups=1 if depthwise else groups,
            adds=residual is not None,
            tap_offset=taps.flat(source.pitch_class.pitch, source.pitch_class.plane_stride),
            tap_column=[column for _, _, column in taps.offsets],
            bias=recorder.flat_id(bias_flat),
            gate=recorder.flat_id(gate_flat),
            gate_is_mask=gate_is_mask,
            shift=recorder.flat_id(shift_flat),
            inner=tuple(node.attrs["inner"]),
            outer=outer,
            in_list=in_list.index,
            out_list=out_list.index,
            pass_list=-1 if pass_list is None else pass_list.index,
            winograd_scratch=-1 if site is None else recorder.winograd.scratch(site),
            kept_input=(-1, 0, -1) if site is None else site.kept_input,
            macs_per_pair=macs_per_pair,
        ),
        facts,
        reads=[source, gate_flat, shift_flat],
        writes=[out],
    )
    return True


def lower_pack(recorder: Recorder, node: Node) -> bool:
    """A cast of a float map, or of a graph input, to bf16."""
    x, y = node.inputs[0], node.output
    assert x is not None
    if window_reader(recorder, y) is not None and not recorder.has_map(x):
        return True  # its reader makes what it needs
    in_live = None if y.live is x.live else recorder.mask_flat(x.live)
    direct = x in recorder.graph.inputs and not recorder.has_map(x)
    source = None if direct else recorder.as_map(x)
    port = recorder.graph.inputs.index(x) if direct else -1
    out, live = recorder.new_map(y), recorder.live_list(y)
    recorder.step(
        lambda: recorder.builder.add_bf16_pack(
            node.name,
            in_map=-1 if source is None else recorder.map_id(source),
            input=port,
            out_map=recorder.map_id(out),
            list=live.index,
            in_live=recorder.flat_id(in_live),
        ),
        LayerFacts(node.name, node.op),
        reads=[source, in_live],
        writes=[out],
    )
    return True


def lower_unpack(recorder: Recorder, node: Node) -> bool:
    """A cast of a bf16 map to float."""
    x, y = node.inputs[0], node.output
    assert x is not None
    if y.live is not x.live:
        raise refuse(node, "its masks differ")
    source, out, live = recorder.as_map(x), recorder.new_map(y), recorder.live_list(x)
    recorder.step(
        lambda: recorder.builder.add_bf16_unpack(
            node.name, in_map=recorder.map_id(source), out_map=recorder.map_id(out), list=live.index
        ),
        LayerFacts(node.name, node.op),
        reads=[source],
        writes=[out],
    )
    return True


def lower_bf16_reduce(recorder: Recorder, node: Node, x: Value) -> bool:
    source, live, kind = recorder.as_map(x), recorder.live_list(x), node.attrs["kind"]
    before = None
    if x in recorder.updates:  # channels that stayed keep their results
        stream, changed = recorder.updates[x]
        before = recorder.reduced.get((stream, kind))
        live = live if before is None else changed
    y = recorder.reduced[x, kind] = recorder.new_flat(node.output)
    recorder.step(
        lambda: recorder.builder.add_bf16_reduce(
            node.name,
            kind=getattr(_C.Reduce, kind),
            in_map=recorder.map_id(source),
            out_flat=recorder.flat_id(y),
            list=live.index,
            before=recorder.flat_id(before),
        ),
        LayerFacts(node.name, node.op),
        reads=[source, before],
        writes=[y],
    )
    return True


def lower_bf16_max_pool(recorder: Recorder, node: Node, x: Value) -> bool:
    if node.output.live is not x.live:
        raise refuse(node, "its masks differ")
    source, out, live = recorder.as_map(x), recorder.new_map(node.output), recorder.live_list(x)
    attrs = node.attrs
    recorder.step(
        lambda: recorder.builder.add_bf16_max_pool(
            node.name,
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
