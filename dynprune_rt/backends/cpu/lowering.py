"""From the IR graph to a C++ plan for this machine: placement, geometry, memory, kernels.

Two phases. *Recording* walks the graph once: it decides for every value whether it lives in planes
or flat, turns channel bookkeeping (cat, slice, index_select) into views, and records one closure per
step together with the memory it reads and writes. *Emission* then solves the pitches, packs the arena
by lifetimes, and runs the closures against the C++ `PlanBuilder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynprune_rt import _C
from dynprune_rt.backends.cpu.flat_ops import FLAT_OPS, encode, encode_scatter_top, scatters_top
from dynprune_rt.backends.cpu.geometry import PitchClass
from dynprune_rt.backends.cpu.live_lists import LiveListRef
from dynprune_rt.backends.cpu.storage import Arena, FlatStorage, FlatView, MapView, PlaneStorage, Storage
from dynprune_rt.backends.cpu.winograd_sites import WinogradSites
from dynprune_rt.errors import DeviceError
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.types import CHANNELS_PER_WORD
from dynprune_rt.ir.value_ranges import ValueFacts


@dataclass(frozen=True)
class LayerFacts:
    """What profiling needs to know about a step beyond what the kernels count."""

    name: str
    op: str
    total_in: int = 0
    total_out: int = 0
    dense_macs: int = 0


@dataclass
class CpuPlan:
    """A finished plan, its output types and one `LayerFacts` per step."""

    plan: Any
    layers: list[LayerFacts]
    input_shapes: list[tuple[int, ...]]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[str]


@dataclass
class _Step:
    emit: Callable[[], None]
    facts: LayerFacts | None  # None for a step that does not exist in C++ (constant lists)
    storages: list[Storage] = field(default_factory=list)


class Recorder:
    """State of one lowering. The handlers in `lower_maps` and `lower_flat` record through it."""

    def __init__(self, graph: Graph, isa: str) -> None:
        self.graph = graph
        self.builder = _C.PlanBuilder(isa)
        self.position = 0
        self.users = graph.users()
        self.facts = ValueFacts(graph)
        self._last_use = self._last_uses()
        self._steps: list[_Step] = []
        self._maps: dict[Value, MapView] = {}
        self._flats: dict[Value, FlatView] = {}
        self._viewers: dict[PlaneStorage, set[Value]] = {}
        self._plane_storages: list[PlaneStorage] = []
        self._flat_storages: list[FlatStorage] = []
        self._phases: dict[tuple[Value, tuple[int, int], bool], MapView] = {}
        # What an expansion reads that is executed along with the reader of its output.
        self.deferred: dict[Value, list[MapView | FlatView | None]] = {}
        # What a topk selects from that is executed along with the scatter of its indices.
        self.selections: dict[Value, tuple[Node, FlatView]] = {}
        # Values x[:, :, ::s] whose readers all take ::t of the columns: the phase planes of both.
        self.strided_rows: dict[Value, MapView] = {}
        self._lists: dict[tuple[Value | None, Value | None, int, bool], LiveListRef] = {}
        # Maps that lie in the planes of another value and differ from it in the listed channels only.
        self.updates: dict[Value, tuple[Value, LiveListRef]] = {}
        self.winograd = WinogradSites(self.builder, self.updates)
        # What bf16 maps were reduced to, by value and kind.
        self.reduced: dict[tuple[Value, str], FlatView] = {}
        self.flat_scratch_floats = 0
        # Emission caches.
        self._arena = Arena()
        self._shape_ids: dict[tuple[int, int, int], int] = {}
        self._map_ids: dict[MapView, int] = {}
        self._flat_ids: dict[FlatView, int] = {}
        self.flat_scratch = -1

    # -- values -----------------------------------------------------------------------------------

    def _last_uses(self) -> dict[Value, int]:
        last: dict[Value, int] = {}
        for position, node in enumerate(self.graph.nodes):
            for value in node.operands():
                last[value] = position
        for value in self.graph.outputs:
            last[value] = len(self.graph.nodes)
        return last

    def has_map(self, value: Value) -> bool:
        return value in self._maps

    def new_map(self, value: Value, pitch_class: PitchClass | None = None) -> MapView:
        """Own planes for a map value: one per channel, or per word of channels (csrc/cpu/group_planes.h)."""
        _, channels, height, width = value.type.shape
        per_word = CHANNELS_PER_WORD.get(value.type.dtype, 1)
        view = self.new_planes(-(-channels // per_word), height, width, pitch_class, tight=per_word > 1)
        return self.bind_map(value, view)

    def new_planes(
        self,
        channels: int,
        height: int,
        width: int,
        pitch_class: PitchClass | None = None,
        phases: int = 1,
        tight: bool = False,
    ) -> MapView:
        """Fresh planes; with ``phases`` the view lists phase 0 of each channel."""
        own = PitchClass(width, height, tight)
        if pitch_class is not None:
            pitch_class.unite(own)
        storage = PlaneStorage(planes=channels * phases, height=height, width=width, pitch_class=own)
        self._plane_storages.append(storage)
        return MapView([(storage, c * phases) for c in range(channels)], height, width, own)

    def new_shared_planes(self, value: Value, planes: int) -> MapView:
        """Planes that the channels of ``value`` take turns in."""
        _, channels, height, width = value.type.shape
        view = self.new_planes(planes, height, width)
        return replace(view, planes=[view.planes[c % planes] for c in range(channels)])

    def bind_map(self, value: Value, view: MapView) -> MapView:
        self._maps[value] = view
        for storage in view.storages:
            self._viewers.setdefault(storage, set()).add(value)
        return view

    def overwritable(self, value: Value, view: MapView) -> bool:
        """True when the running node is the last reader of everything in ``view``."""
        if value in self.graph.inputs or not view.owns_whole_storage():
            return False
        (storage,) = view.storages
        return all(self._last_use.get(v, -1) <= self.position for v in self._viewers[storage])

    def as_map(self, value: Value) -> MapView:
        """The planes of a map value, loaded from its flat form if it has no other."""
        if value not in self._maps:
            if value.type.dtype in CHANNELS_PER_WORD:
                raise DeviceError(f"no kernel makes the value {value.name} ({value.type})")
            view = self.new_map(value)
            name = value.name
            if value in self.graph.inputs:
                index = self.graph.inputs.index(value)
                self.step(
                    lambda: self.builder.add_load_planes(name, flat=-1, input=index, out_map=self.map_id(view)),
                    LayerFacts(name, "load"),
                    writes=[view],
                )
            else:
                flat = self.as_flat(value)
                self.step(
                    lambda: self.builder.add_load_planes(
                        name, flat=self.flat_id(flat), input=-1, out_map=self.map_id(view)
                    ),
                    LayerFacts(name, "load"),
                    reads=[flat],
                    writes=[view],
                )
        return self._maps[value]

    def new_flat(self, value: Value) -> FlatView:
        shape = per_image_shape(value)
        storage = FlatStorage(size=int(np.prod(shape, dtype=np.int64)))
        self._flat_storages.append(storage)
        self._flats[value] = FlatView(shape, storage)
        return self._flats[value]

    def alias_flat(self, value: Value, source: FlatView) -> None:
        """``value`` has the elements of ``source`` in another shape."""
        self._flats[value] = FlatView(per_image_shape(value), source.storage, source.constant)

    def as_flat(self, value: Value) -> FlatView:
        if value.type.dtype in CHANNELS_PER_WORD:
            raise DeviceError(f"the value {value.name} ({value.type}) has to become f32 here")
        if value in self._flats:
            return self._flats[value]
        if self.graph.is_constant(value):
            array = np.ascontiguousarray(self.graph.constant(value), dtype=np.float32)
            self._flats[value] = FlatView(tuple(array.shape), constant=array)
            return self._flats[value]
        if value in self._maps:
            view, live = self._maps[value], self.live_list(value)
            flat = self.new_flat(value)
            self.step(
                lambda: self.builder.add_store_planes(
                    value.name, in_map=self.map_id(view), list=live.index, flat=self.flat_id(flat), output=-1
                ),
                LayerFacts(value.name, "store"),
                reads=[view],
                writes=[flat],
            )
            return flat
        index = self.graph.inputs.index(value)
        flat = self.new_flat(value)
        self.step(
            lambda: self.builder.add_copy(value.name, flat=self.flat_id(flat), input=index, output=-1),
            LayerFacts(value.name, "load"),
            writes=[flat],
        )
        return flat

    def constant_vector(self, value: Value, size: int) -> FlatView:
        """A constant as a flat [size] tensor (its own shape ignored)."""
        array = np.ascontiguousarray(self.graph.constant(value), dtype=np.float32).reshape(size)
        return FlatView((size,), constant=array)

    # -- live lists -------------------------------------------------------------------------------

    def mask_flat(self, mask: Value | None) -> FlatView | None:
        """A flat tensor that is non-zero where the mask is true."""
        if mask is None:
            return None
        source = self.nonzero_source(mask)
        return self.as_flat(mask if source is None else source)

    def nonzero_source(self, mask: Value) -> Value | None:
        """g where ``mask`` is ``ne(g, 0)`` and serves as a mask only: then g itself will do."""
        node = mask.producer
        if node is None or node.op != "ne" or self.users.get(mask) or mask in self.graph.outputs:
            return None
        gate, zero = node.inputs
        assert gate is not None
        return gate if self._is_zero(zero) and per_image_shape(gate) == per_image_shape(mask) else None

    def _is_zero(self, value: Value | None) -> bool:
        return value is not None and self.graph.is_constant(value) and not self.graph.constant(value).any()

    def is_own_mask(self, gate: Value, computed: Value | None) -> bool:
        """Are the channels of the list ``computed`` those where ``gate`` is not 0, and is it 1 there?"""
        node = None if computed is None else computed.producer
        if node is None or node.op != "ne" or node.inputs[0] is not gate:
            return False
        return self._is_zero(node.inputs[1]) and self.facts.range(gate).binary

    def live_list(self, value: Value) -> LiveListRef:
        """The stored channels of a value.

        Those of a packed bf16 map start with the live ones in every mode: which channels share a word decides the
        order of additions (csrc/cpu/bf16_kernels.h).
        """
        return self.list_of(value.live, None, value.type.channels, live_first=value.type.dtype == "bf16")

    def list_of(
        self, include: Value | None, exclude: Value | None, channels: int, live_first: bool = False
    ) -> LiveListRef:
        """Channels in ``include`` (None = all) and not in ``exclude`` (None = none).

        ``live_first``: with skipping off, the live channels come first, then the others.
        """
        live_first = live_first and include is not None
        key = (include, exclude, channels, live_first)
        if key in self._lists:
            return self._lists[key]
        ref = self._lists[key] = LiveListRef()
        masks = [m for m in (include, exclude) if m is not None]
        if all(self.graph.is_constant(m) for m in masks):
            keep = np.ones(channels, bool)
            if include is not None:
                keep &= self.graph.constant(include).reshape(-1)
            if exclude is not None:
                keep &= ~self.graph.constant(exclude).reshape(-1)
            entries = np.flatnonzero(keep).tolist()

            def emit_constant() -> None:
                ref.index = self.builder.add_constant_list(entries)

            self._steps.append(_Step(emit_constant, None))
            return ref
        inside, outside = self.mask_flat(include), self.mask_flat(exclude)

        def emit() -> None:
            ref.index = self.builder.add_live_list(channels, self.flat_id(inside), self.flat_id(outside), live_first)

        self.step(emit, LayerFacts("", "live_list"), reads=[inside, outside])
        return ref

    # -- steps ------------------------------------------------------------------------------------

    def step(
        self,
        emit: Callable[[], None],
        facts: LayerFacts,
        reads: Iterable[MapView | FlatView | None] = (),
        writes: Iterable[MapView | FlatView] = (),
    ) -> None:
        storages: list[Storage] = []
        for view in (*reads, *writes):
            if isinstance(view, MapView):
                storages.extend(view.storages)
            elif view is not None and view.storage is not None:
                storages.append(view.storage)
        index = len(self._steps)
        for storage in storages:
            storage.touch(index)
        self._steps.append(_Step(emit, facts, storages))

    def phase_split(self, value: Value, stride: tuple[int, int], first_only: bool = False) -> MapView:
        """The phase planes of a map for a strided convolution, or phase 0 for a slice; shared by all readers."""
        key = (value, stride, first_only)
        if key in self._phases:
            return self._phases[key]
        if not first_only and value in self.graph.inputs and value not in self._maps and value.type.dtype == "f32":
            self._phases[key] = self._load_phases(value, stride)
        else:
            source, live = self.as_map(value), self.live_list(value)
            height, width = -(-source.height // stride[0]), -(-source.width // stride[1])
            per_word = CHANNELS_PER_WORD.get(value.type.dtype, 1)
            phases = 1 if first_only else stride[0] * stride[1]
            view = self.new_planes(source.channels, height, width, phases=phases, tight=per_word > 1)
            self._phases[key] = view
            add_split = self.builder.add_phase_split if per_word == 1 else self.builder.add_group_phase_split
            group = {} if per_word == 1 else {"per_word": per_word}
            self.step(
                lambda: add_split(
                    value.name,
                    **group,
                    stride_h=stride[0],
                    stride_w=stride[1],
                    phase_stride=0 if first_only else view.pitch_class.plane_stride,
                    in_map=self.map_id(source),
                    out_map=self.map_id(view),
                    list=live.index,
                ),
                LayerFacts(value.name, "phase_split"),
                reads=[source],
                writes=[view],
            )
        return self._phases[key]

    def _load_phases(self, value: Value, stride: tuple[int, int]) -> MapView:
        """The phase planes of a graph input, straight from the caller's floats."""
        _, channels, height, width = value.type.shape
        view = self.new_planes(channels, -(-height // stride[0]), -(-width // stride[1]), phases=stride[0] * stride[1])
        self.step(
            lambda: self.builder.add_load_phases(
                value.name,
                input=self.graph.inputs.index(value),
                height=height,
                width=width,
                stride_h=stride[0],
                stride_w=stride[1],
                phase_stride=view.pitch_class.plane_stride,
                out_map=self.map_id(view),
            ),
            LayerFacts(value.name, "load"),
            writes=[view],
        )
        return view

    # -- emission ---------------------------------------------------------------------------------

    def shape_id(self, view: MapView) -> int:
        key = (view.height, view.width, view.pitch_class.pitch)
        if key not in self._shape_ids:
            zero = self._arena.zero_plane(*key)
            self._shape_ids[key] = self.builder.add_shape(*key, zero)
        return self._shape_ids[key]

    def map_id(self, view: MapView) -> int:
        if view not in self._map_ids:
            shape = self.shape_id(view)
            zero = self._arena.zero_plane(view.height, view.width, view.pitch_class.pitch)
            planes = [zero if plane is None else plane[0].plane_offset(plane[1]) for plane in view.planes]
            self._map_ids[view] = self.builder.add_map(shape, planes)
        return self._map_ids[view]

    def flat_id(self, view: FlatView | None) -> int:
        """Number of a flat tensor; -1 for None."""
        if view is None:
            return -1
        if view not in self._flat_ids:
            if view.constant is not None:
                self._flat_ids[view] = self.builder.add_constant(view.constant, view.shape)
            else:
                assert view.storage is not None
                self._flat_ids[view] = self.builder.add_flat(view.storage.offset, view.shape)
        return self._flat_ids[view]

    def emit(self) -> tuple[Any, list[LayerFacts]]:
        self._arena.place_planes([s for s in self._plane_storages if s.first >= 0])
        self._arena.place_flats([s for s in self._flat_storages if s.first >= 0])
        self.winograd.place(self._arena, self.shape_id)
        self.flat_scratch = self._arena.reserve(self.flat_scratch_floats)
        for value in self.graph.inputs:
            self.builder.add_input(int(np.prod(per_image_shape(value), dtype=np.int64)))
        for value in self.graph.outputs:
            self.builder.add_output(int(np.prod(per_image_shape(value), dtype=np.int64)))
        layers = []
        for step in self._steps:
            step.emit()
            if step.facts is not None:
                layers.append(step.facts)
        return self.builder.finish(self._arena.size), layers


def per_image_shape(value: Value) -> tuple[int, ...]:
    """The shape of one image's slice of a batched value; a constant keeps its shape."""
    shape = value.type.shape
    return shape[1:] if value.type.batched else shape


def lower(graph: Graph, isa: str = "") -> CpuPlan:
    """Build the plan of a verified graph for one ISA ("" = the best that this CPU has).

    Raises DeviceError for an operator that the CPU back end cannot execute.
    """
    from dynprune_rt.backends.cpu.lower_maps import lower_on_planes

    recorder = Recorder(graph, isa)
    for position, node in enumerate(graph.nodes):
        recorder.position = position
        if not lower_on_planes(recorder, node):
            lower_flat(recorder, node)
    recorder.position = len(graph.nodes)
    for index, value in enumerate(graph.outputs):
        _record_output(recorder, index, value)
    plan, layers = recorder.emit()
    return CpuPlan(
        plan,
        layers,
        [per_image_shape(v) for v in graph.inputs],
        [per_image_shape(v) for v in graph.outputs],
        [v.type.dtype for v in graph.outputs],
    )


def _record_output(recorder: Recorder, index: int, value: Value) -> None:
    builder = recorder.builder
    name = value.name
    if recorder.has_map(value) and value.type.dtype not in CHANNELS_PER_WORD:
        view, live = recorder.as_map(value), recorder.live_list(value)
        recorder.step(
            lambda: builder.add_store_planes(
                name, in_map=recorder.map_id(view), list=live.index, flat=-1, output=index
            ),
            LayerFacts(name, "store"),
            reads=[view],
        )
    else:
        flat = recorder.as_flat(value)
        recorder.step(
            lambda: builder.add_copy(name, flat=recorder.flat_id(flat), input=-1, output=index),
            LayerFacts(name, "store"),
            reads=[flat],
        )


#: Casts that change nothing, because bool and i64 are stored as f32 values.
_FREE_CASTS = {("bool", "f32"), ("bool", "i64"), ("i64", "f32"), ("f32", "f32"), ("i64", "i64"), ("bool", "bool")}


def lower_flat(recorder: Recorder, node: Node) -> None:
    """Record a node on flat tensors: views where nothing moves, else one flat kernel."""
    builder = recorder.builder
    value = node.output
    source = node.inputs[0]
    if recorder.nonzero_source(value) is not None:
        return
    if node.op == "reshape" or (node.op == "cast" and source and (source.type.dtype, value.type.dtype) in _FREE_CASTS):
        assert source is not None
        recorder.alias_flat(value, recorder.as_flat(source))
        return
    if node.op == "linear" and source is not None and len(per_image_shape(source)) == 1:
        lower_linear(recorder, node, source, value)
        return
    if node.op not in FLAT_OPS:
        where = f" ({node.origin})" if node.origin else ""
        raise DeviceError(f"the CPU back end has no kernel for operator {node.op} of layer {node.name}{where}")
    operands = [v for v in node.inputs if v is not None]
    if node.op == "topk" and _only_scattered(recorder, node):
        recorder.selections[node.outputs[1]] = node, _operand_view(recorder, node, operands[0])
        return
    selection = recorder.selections.get(operands[1]) if node.op == "scatter" else None
    if selection is None:
        encoded, inputs = encode(node), [_operand_view(recorder, node, v) for v in operands]
    else:
        topk, selected_from = selection
        base, _, source = operands
        encoded = encode_scatter_top(topk)
        inputs = [selected_from, *(_operand_view(recorder, node, v) for v in (base, source))]
    outputs = [recorder.new_flat(v) for v in node.outputs]
    recorder.flat_scratch_floats = max(recorder.flat_scratch_floats, encoded.scratch_floats)
    recorder.step(
        lambda: builder.add_flat_op(
            node.name,
            op=encoded.kernel,
            inputs=[recorder.flat_id(v) for v in inputs],
            outputs=[recorder.flat_id(v) for v in outputs],
            ints=encoded.ints,
            floats=encoded.floats,
            scratch_offset=recorder.flat_scratch if encoded.scratch_floats else -1,
        ),
        LayerFacts(node.name, node.op),
        reads=inputs,
        writes=outputs,
    )


def _only_scattered(recorder: Recorder, topk: Node) -> bool:
    values, indices = topk.outputs
    users, outputs = recorder.users, recorder.graph.outputs
    readers = users.get(indices, [])
    unused = values not in users and values not in outputs and indices not in outputs
    return unused and len(readers) == 1 and scatters_top(readers[0], topk)


def _operand_view(recorder: Recorder, node: Node, value: Value) -> FlatView:
    """The flat form of an operand; the leading 1 that stands for the batch in a constant is dropped."""
    view = recorder.as_flat(value)
    rank = max(v.type.rank for v in (*node.outputs, *node.inputs) if v is not None and v.type.batched)
    if value.type.batched or value.type.rank != rank or value.type.shape[0] != 1:
        return view
    return FlatView(view.shape[1:], view.storage, view.constant)


def lower_linear(recorder: Recorder, node: Node, source: Value, target: Value) -> None:
    """A linear layer on one vector (also a 1x1 convolution of a 1x1 map)."""
    builder = recorder.builder
    weight_value, bias_value = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    assert weight_value is not None
    weights = np.ascontiguousarray(recorder.graph.constant(weight_value))
    out_features = weights.shape[0]
    weights = weights.reshape(out_features, -1)
    bias = None if bias_value is None else recorder.constant_vector(bias_value, out_features)
    x = recorder.as_flat(source)
    y = recorder.new_flat(target)
    clamp = tuple(node.attrs.get("inner", (-np.inf, np.inf)))
    add_linear = builder.add_linear if weights.dtype == np.float32 else builder.add_bf16_linear
    recorder.step(
        lambda: add_linear(
            node.name,
            in_flat=recorder.flat_id(x),
            out_flat=recorder.flat_id(y),
            weights=weights,
            bias=recorder.flat_id(bias),
            clamp=clamp,
        ),
        LayerFacts(node.name, "linear", weights.shape[1], out_features, weights.size),
        reads=[x],
        writes=[y],
    )
