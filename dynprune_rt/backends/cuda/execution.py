"""One pass of a batch through a plan: the values alive, in the form that each one is stored in."""

from __future__ import annotations

from typing import Any

import torch

from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import ChannelSet, DeviceMap
from dynprune_rt.ir.graph import Value

Tensor = Any


def stored_as_map(value: Value) -> bool:
    """True for feature maps of more than one pixel; everything else is a plain fp32, i64 or bool tensor.

    Vectors that decide about gates, [N, C, 1, 1] included, thus never pass through 16 bits.
    """
    return value.type.is_map and value.type.dtype == "f32" and value.type.shape[2] * value.type.shape[3] > 1


class Execution:
    """Values by name of the graph's `Value`, with conversions made when a reader needs another form.

    ``packed``: the maps that are stored packed.
    """

    def __init__(
        self, kernels: Kernels, constants: dict[Value, Tensor], batch: int, skip: bool, packed: frozenset[Value]
    ) -> None:
        self.kernels = kernels
        self.batch = batch
        self.skip = skip
        self._packed = packed
        self._constants = constants
        self._values: dict[Value, Tensor | DeviceMap] = {}
        self._sets: dict[Value, ChannelSet] = {}

    def map(self, value: Value) -> DeviceMap:
        """A batched [N, C, H, W] value as a map."""
        found = self._values[value]
        return found if isinstance(found, DeviceMap) else self.kernels.pack(found)

    def plain(self, value: Value) -> Tensor:
        """Any value as a plain tensor; channels of a map that are not stored read as 0."""
        found = self._constants[value] if value in self._constants else self._values[value]
        return self.kernels.unpack(found) if isinstance(found, DeviceMap) else found

    def set(self, mask: Value | None) -> ChannelSet | None:
        """The channel set of a mask; None for no mask and where nothing is skipped."""
        if mask is None or not self.skip:
            return None
        if mask not in self._sets:
            bits = self.plain(mask)
            self._sets[mask] = self.kernels.channel_set(bits.expand(self.batch, bits.shape[1]))
        return self._sets[mask]

    def stored(self, value: Value) -> ChannelSet | None:
        """The set that a map is packed by; None where it stores all channels."""
        return self.set(value.live) if value in self._packed else None

    def store(self, value: Value, result: Tensor | DeviceMap) -> None:
        """Keep a result, in the form that values of this type have."""
        if isinstance(result, DeviceMap):
            self._values[value] = result if stored_as_map(value) else self.kernels.unpack(result)
        elif stored_as_map(value):
            self._values[value] = self.kernels.pack(result, self.stored(value))
        else:
            self._values[value] = result

    def release(self, value: Value) -> None:
        self._values.pop(value, None)

    def output(self, value: Value) -> Tensor:
        """A graph output: contiguous [N, ...], zero in channels that are not live."""
        result = self.plain(value)
        live = self.set(value.live)
        if live is not None and value not in self._packed:
            keep = live.mask.reshape(*live.mask.shape, *[1] * (result.dim() - 2))
            result = torch.where(keep, result, torch.zeros((), dtype=result.dtype, device=result.device))
        if not value.type.batched:
            result = result.expand(self.batch, *result.shape)
        return result.contiguous()
