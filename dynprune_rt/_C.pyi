"""Types of the C++ extension; see csrc/bindings/module.cc."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np

Clamp = tuple[float, float]

class Unary:
    __members__: dict[str, Unary]

class Binary:
    __members__: dict[str, Binary]

class Reduce:
    __members__: dict[str, Reduce]

class Pool:
    __members__: dict[str, Pool]

class WinogradWeights(Enum):
    transformed = 0
    on_the_fly = 1
    channel_lanes = 2

class QuantizedType(Enum):
    u8 = 0
    s8 = 1

class QuantizedReduce(Enum):
    sum = 0
    sum_abs = 1
    sum_squares = 2
    max = 3

class Plan: ...

class Operand:
    def __init__(
        self,
        *,
        map: int = -1,
        flat: int = -1,
        one_plane: bool = False,
        one_number: bool = False,
        live_mask: int = -1,
    ) -> None: ...

class PlanBuilder:
    def __init__(self, isa: str = "") -> None: ...
    @property
    def has_channel_lanes(self) -> bool: ...
    @property
    def has_stem(self) -> bool: ...
    @property
    def has_winograd(self) -> bool: ...
    def add_shape(self, height: int, width: int, pitch: int, zero_plane: int) -> int: ...
    def add_map(self, shape: int, planes: Sequence[int]) -> int: ...
    def add_flat(self, offset: int, shape: Sequence[int]) -> int: ...
    def add_constant(self, array: np.ndarray, shape: Sequence[int]) -> int: ...
    def add_constant_list(self, channels: Sequence[int]) -> int: ...
    def add_live_list(self, capacity: int, include: int, exclude: int, live_first: bool = False) -> int: ...
    def add_input(self, floats_per_image: int) -> None: ...
    def add_output(self, floats_per_image: int) -> None: ...
    def winograd_input_scratch(
        self, in_channels: int, out_channels: int, m: int, shape: int, form: WinogradWeights
    ) -> int: ...
    def bf16_winograd_pays(self, in_channels: int, out_channels: int, height: int, width: int) -> bool: ...
    def add_conv(
        self,
        name: str,
        *,
        in_map: int,
        out_map: int,
        weights: np.ndarray,
        groups: int,
        stride: tuple[int, int],
        channel_lanes: bool,
        stem: bool,
        tap_offset: Sequence[int],
        bias: int,
        gate: int,
        gate_is_mask: bool,
        shift: int,
        residual_map: int,
        residual_live: int,
        inner: Clamp,
        outer: Clamp,
        in_list: int,
        out_list: int,
        pass_list: int,
        stored_list: int,
        pools: Sequence[tuple[Reduce, int, int]],
        winograd_m: int,
        winograd_form: WinogradWeights,
        winograd_scratch: int,
        kept_input: tuple[int, int, int],
        shared_planes: int,
        macs_per_pair: int,
    ) -> None: ...
    def add_linear(
        self, name: str, *, in_flat: int, out_flat: int, weights: np.ndarray, bias: int, clamp: Clamp
    ) -> None: ...
    def add_plane_unary(
        self,
        name: str,
        *,
        kind: Unary,
        in_map: int,
        out_map: int,
        list: int,
        a: float = 0.0,
        b: float = 0.0,
        a_flat: int = -1,
        b_flat: int = -1,
        in_live: int = -1,
    ) -> None: ...
    def add_plane_binary(
        self, name: str, *, kind: Binary, x0: Operand, x1: Operand, out_map: int, list: int, clamp: Clamp
    ) -> None: ...
    def add_pool(
        self, name: str, *, kind: Pool, in_map: int, in_live: int, out_map: int, list: int, **windows: Any
    ) -> None: ...
    def add_spatial_reduce(self, name: str, *, kind: Reduce, in_map: int, out_flat: int, list: int) -> None: ...
    def add_phase_split(
        self, name: str, *, stride_h: int, stride_w: int, phase_stride: int, in_map: int, out_map: int, list: int
    ) -> None: ...
    def add_load_planes(self, name: str, *, flat: int, input: int, out_map: int) -> None: ...
    def add_load_phases(
        self,
        name: str,
        *,
        input: int,
        height: int,
        width: int,
        stride_h: int,
        stride_w: int,
        phase_stride: int,
        out_map: int,
    ) -> None: ...
    def add_store_planes(self, name: str, *, in_map: int, list: int, flat: int, output: int) -> None: ...
    def add_copy(self, name: str, *, flat: int, input: int, output: int) -> None: ...
    def add_flat_op(
        self,
        name: str,
        *,
        op: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        ints: Sequence[int],
        floats: Sequence[float],
        scratch_offset: int,
    ) -> None: ...
    def add_quantized_conv(
        self,
        name: str,
        *,
        in_map: int,
        out_map: int,
        in_channels: int,
        weights: np.ndarray,
        model_inputs: int,
        depthwise: bool,
        groups: int,
        tap_offset: Sequence[int],
        tap_column: Sequence[int],
        scale: np.ndarray,
        bias: np.ndarray,
        gate: int,
        shift: int,
        in_type: QuantizedType,
        out_type: QuantizedType,
        residual_type: QuantizedType,
        residual_scale: float,
        inner_low: float,
        inner_high: float,
        in_list: int,
        out_list: int,
        pass_list: int,
        macs_per_pair: int,
    ) -> None: ...
    def add_image_windows(
        self,
        name: str,
        *,
        input: int,
        channels: int,
        size: tuple[int, int],
        pad_left: int,
        stride: tuple[int, int],
        phase_stride: int,
        out_map: int,
        inverse_scale: float,
        type: QuantizedType | None,
    ) -> None: ...
    def add_quantize(
        self,
        name: str,
        *,
        in_map: int,
        input: int,
        out_map: int,
        list: int,
        inverse_scale: float,
        type: QuantizedType,
        in_live: int = -1,
    ) -> None: ...
    def add_dequantize(
        self, name: str, *, in_map: int, out_map: int, list: int, scale: float, type: QuantizedType
    ) -> None: ...
    def add_quantized_reduce(
        self,
        name: str,
        *,
        kind: QuantizedReduce,
        root: bool,
        in_map: int,
        out_flat: int,
        list: int,
        scale: float,
        type: QuantizedType,
    ) -> None: ...
    def add_quantized_max_pool(
        self, name: str, *, type: QuantizedType, in_map: int, out_map: int, list: int, **windows: Any
    ) -> None: ...
    def add_bf16_conv(
        self,
        name: str,
        *,
        in_map: int,
        out_map: int,
        in_channels: int,
        weights: np.ndarray,
        model_inputs: int,
        depthwise: bool,
        groups: int,
        adds: bool,
        tap_offset: Sequence[int],
        tap_column: Sequence[int],
        bias: int,
        gate: int,
        gate_is_mask: bool,
        shift: int,
        inner: Clamp,
        outer: Clamp,
        in_list: int,
        out_list: int,
        pass_list: int,
        winograd_scratch: int,
        kept_input: tuple[int, int, int],
        macs_per_pair: int,
    ) -> None: ...
    def add_bf16_pack(
        self, name: str, *, in_map: int, input: int, out_map: int, list: int, in_live: int = -1
    ) -> None: ...
    def add_bf16_unpack(self, name: str, *, in_map: int, out_map: int, list: int) -> None: ...
    def add_bf16_reduce(
        self, name: str, *, kind: Reduce, in_map: int, out_flat: int, list: int, before: int = -1
    ) -> None: ...
    def add_bf16_linear(
        self, name: str, *, in_flat: int, out_flat: int, weights: np.ndarray, bias: int, clamp: Clamp
    ) -> None: ...
    def add_bf16_max_pool(self, name: str, *, in_map: int, out_map: int, list: int, **windows: Any) -> None: ...
    def add_group_phase_split(
        self,
        name: str,
        *,
        per_word: int,
        stride_h: int,
        stride_w: int,
        phase_stride: int,
        in_map: int,
        out_map: int,
        list: int,
    ) -> None: ...
    def add_group_copy(self, name: str, *, in_map: int, out_map: int) -> None: ...
    #: inputs: (map, list of its stored channels, channels of the model)
    def add_group_cat(
        self, name: str, *, per_word: int, inputs: Sequence[tuple[int, int, int]], out_map: int, list: int
    ) -> None: ...
    def finish(self, arena_size: int) -> Plan: ...

#: Per step: nanoseconds, MACs, live inputs, live outputs, kernel.
Record = tuple[int, int, int, int, str]

class Executor:
    def __init__(self, plan: Plan, threads: int) -> None: ...
    def run(
        self,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        batch: int,
        skip: bool = True,
        poison: bool = False,
        profile: bool = False,
    ) -> list[list[Record]]:
        """Per image and step what was done; empty unless ``profile``."""

    @property
    def steps(self) -> list[tuple[str, str]]: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...

def available_isas() -> list[str]: ...
def default_isa(isa: str = "") -> str: ...
def int8_kernels(isa: str = "") -> str:
    """ "vnni", or "portable" for code without instructions for int8."""

def bf16_kernels(isa: str = "") -> str:
    """ "bf16", or "portable" for code without instructions for bf16."""

def flat_ops(isa: str = "") -> list[str]: ...
def run_flat_op(
    op: str,
    inputs: Sequence[np.ndarray],
    out_shapes: Sequence[Sequence[int]],
    ints: Sequence[int],
    floats: Sequence[float],
    scratch: int,
    isa: str = "",
) -> list[np.ndarray]: ...
