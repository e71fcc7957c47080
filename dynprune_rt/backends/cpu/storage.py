"""Activation memory: storages, views on them, lifetimes, and their place in the arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dynprune_rt.backends.cpu.geometry import BLOCK, PitchClass, round_up


@dataclass(eq=False)
class Storage:
    """Memory with a lifetime, in steps (first write to last read)."""

    first: int = -1
    last: int = -1

    def touch(self, step: int) -> None:
        if self.first < 0:
            self.first = step
        self.last = max(self.last, step)


@dataclass(eq=False)
class PlaneStorage(Storage):
    """Planes of one height, width and pitch."""

    planes: int = 0
    height: int = 0
    width: int = 0
    pitch_class: PitchClass = field(default_factory=lambda: PitchClass(1, 1))
    offset: int = -1  # of plane 0's pixel (0,0); set by `Arena`

    def plane_offset(self, plane: int) -> int:
        return self.offset + plane * self.pitch_class.plane_stride


@dataclass(eq=False)
class MapView:
    """A map as a table of planes. ``None`` = a channel that is always zero."""

    planes: list[tuple[PlaneStorage, int] | None]
    height: int
    width: int
    pitch_class: PitchClass

    @property
    def channels(self) -> int:
        return len(self.planes)

    @property
    def storages(self) -> set[PlaneStorage]:
        return {plane[0] for plane in self.planes if plane is not None}

    def owns_whole_storage(self) -> bool:
        """True when this view is exactly one storage, plane by plane: only then may it be overwritten."""
        storages = self.storages
        if len(storages) != 1:
            return False
        (storage,) = storages
        return storage.planes == len(self.planes) and all(
            plane is not None and plane[1] == c for c, plane in enumerate(self.planes)
        )


@dataclass(eq=False)
class FlatStorage(Storage):
    size: int = 0
    offset: int = -1


@dataclass(eq=False)
class FlatView:
    """A flat tensor: contiguous per-image shape on a storage, or a constant array."""

    shape: tuple[int, ...]
    storage: FlatStorage | None = None
    constant: np.ndarray | None = None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class Arena:
    """Assigns offsets so that storages alive at the same time do not overlap.

    Planes of different geometry never share memory, because the zeros between planes must survive.
    """

    def __init__(self) -> None:
        self.size = 0
        self._zero_planes: dict[tuple[int, int, int], int] = {}

    def place_planes(self, storages: Sequence[PlaneStorage]) -> None:
        by_geometry: dict[tuple[int, int, int, int], list[PlaneStorage]] = {}
        for storage in storages:
            pitch_class = storage.pitch_class.find()
            key = (storage.height, storage.width, pitch_class.pitch, pitch_class.plane_stride)
            by_geometry.setdefault(key, []).append(storage)
        for (height, width, pitch, stride), group in by_geometry.items():
            pitch_class = group[0].pitch_class.find()
            planes = _pack([(s, s.planes) for s in group])
            start = round_up(self.size, BLOCK) + pitch_class.guard_before
            # One more plane that nobody writes: it stands for channels that are exactly zero.
            for storage in group:
                storage.offset = start + (planes[storage] + 1) * stride
            used = max(planes[s] + s.planes for s in group)
            self._zero_planes.setdefault((height, width, pitch), start)
            self.size = start + (used + 1) * stride + pitch_class.guard_after

    def place_flats(self, storages: Sequence[FlatStorage]) -> None:
        start = round_up(self.size, BLOCK)
        units = _pack([(s, round_up(max(s.size, 1), BLOCK) // BLOCK) for s in storages])
        for storage in storages:
            storage.offset = start + units[storage] * BLOCK
            self.size = max(self.size, storage.offset + round_up(max(storage.size, 1), BLOCK))
        self.size += 4 * BLOCK  # vector loads of the last tensor may run over its end

    def reserve(self, floats: int) -> int:
        """Scratch that every step may use; returns its offset, aligned to a cache line."""
        start = round_up(self.size, BLOCK)
        self.size = start + round_up(floats, BLOCK)
        return start

    def zero_plane(self, height: int, width: int, pitch: int) -> int:
        return self._zero_planes[height, width, pitch]


def _pack(items: Sequence[tuple[Storage, int]]) -> dict[Storage, int]:
    """First-fit packing of (storage, size) by size, largest first; returns start units."""
    placed: list[tuple[Storage, int, int]] = []
    starts: dict[Storage, int] = {}
    for storage, size in sorted(items, key=lambda item: (-item[1], item[0].first)):
        busy = sorted(
            (start, start + length)
            for other, start, length in placed
            if other.first <= storage.last and storage.first <= other.last
        )
        start = 0
        for low, high in busy:
            if start + size <= low:
                break
            start = max(start, high)
        placed.append((storage, start, size))
        starts[storage] = start
    return starts
