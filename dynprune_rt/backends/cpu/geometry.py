"""Plane geometry: which maps must share a row pitch, and how wide pitch and guards have to be.

A direct convolution addresses its input at ``output position + constant``, so both maps need one
pitch; so do maps that are added, concatenated or viewed as one another. Maps linked this way form a
`PitchClass`; every consumer states how far it reads beyond a map, and the class is solved once all
maps are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Floats that the kernels work on at once, on every ISA (kBlock in csrc/cpu/kernels.h).
BLOCK = 16
#: Rows that Winograd tiles may hang over the last row of a map, and the reach of vector loads.
_OVERHANG_ROWS = 5


@dataclass
class Reach:
    """How far a consumer reads beyond the pixels of a map, in rows and columns."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(eq=False)
class PitchClass:
    """Maps that share a pitch (union-find node; use `find`).

    ``tight``: rows follow one another without pad columns; the kernels mask taps that leave a row.
    """

    width: int
    height: int
    tight: bool = False
    reach: Reach = field(default_factory=Reach)
    parent: PitchClass | None = None

    def find(self) -> PitchClass:
        root = self
        while root.parent is not None:
            root = root.parent
        return root

    def unite(self, other: PitchClass) -> None:
        a, b = self.find(), other.find()
        if a is b:
            return
        assert a.tight == b.tight, "maps of float and of integer planes have no common pitch"
        b.parent = a
        a.width, a.height = max(a.width, b.width), max(a.height, b.height)
        a._widen(b.reach)

    def require(self, reach: Reach) -> None:
        self.find()._widen(reach)

    def _widen(self, reach: Reach) -> None:
        own = self.reach
        self.reach = Reach(
            max(own.top, reach.top),
            max(own.left, reach.left),
            max(own.bottom, reach.bottom),
            max(own.right, reach.right),
        )

    # -- solved properties, valid once no more maps are added ------------------------------------

    @property
    def pitch(self) -> int:
        """One shared pad column serves as right pad of a row and left pad of the next."""
        root = self.find()
        if root.tight:
            return root.width
        return root.width + max(root.reach.left, root.reach.right)

    @property
    def guard_before(self) -> int:
        root = self.find()
        return round_up(max(root.reach.top, 1) * root.pitch + root.reach.left + 2 * BLOCK, BLOCK)

    @property
    def guard_after(self) -> int:
        root = self.find()
        rows = max(root.reach.bottom, _OVERHANG_ROWS)
        return round_up(rows * root.pitch + root.reach.right + 4 * BLOCK, BLOCK)

    @property
    def plane_stride(self) -> int:
        """Floats between consecutive planes. Neighbours share the zeros between them."""
        root = self.find()
        # Between planes only what has to be zero counts; what vector loads reach beyond it is never used. Of 7x7 maps
        # the guards are more than half: with those of `guard_after` a map of 960 channels and its depthwise result
        # leave the second-level cache.
        rows = max(root.reach.top, root.reach.bottom, _OVERHANG_ROWS)
        between = rows * root.pitch + max(root.reach.left, root.reach.right) + BLOCK
        stride = round_up(root.height * root.pitch + between, BLOCK)
        # An odd number of cache lines: planes an even number apart would compete for few cache sets.
        return stride if stride // BLOCK % 2 else stride + BLOCK


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Taps:
    """The taps of a convolution, relative to the output position in a (phase-split) input map.

    ``offsets``: (phase, rows, columns) per tap, row-major over the kernel. ``phase_size``: height
    and width of one phase plane (the map itself when the stride is 1).
    """

    offsets: tuple[tuple[int, int, int], ...]
    phase_size: tuple[int, int]
    reach: Reach

    def flat(self, pitch: int, phase_stride: int) -> list[int]:
        """Tap offsets in floats."""
        return [phase * phase_stride + rows * pitch + columns for phase, rows, columns in self.offsets]


def convolution_taps(
    size: tuple[int, int],
    out_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    split: bool = True,
) -> Taps:
    """Where each tap of a convolution reads. Sizes are (height, width), padding (t, l, b, r).

    Without ``split`` the map stays whole whatever the stride, and offsets are relative to ``stride * position``.
    """
    step = (1, 1) if split else stride  # between the pixels of adjoining outputs
    if not split:
        stride = (1, 1)
    phase_size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
    offsets = []
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            row, column = r * dilation[0] - padding[0], s * dilation[1] - padding[1]
            phase = (row % stride[0]) * stride[1] + column % stride[1]
            offsets.append((phase, row // stride[0], column // stride[1]))
    rows, columns = [o[1] for o in offsets], [o[2] for o in offsets]
    reach = Reach(
        top=max(0, -min(rows)),
        left=max(0, -min(columns)),
        bottom=max(0, (out_size[0] - 1) * step[0] + max(rows) - (phase_size[0] - 1)),
        right=max(0, (out_size[1] - 1) * step[1] + max(columns) - (phase_size[1] - 1)),
    )
    return Taps(tuple(offsets), phase_size, reach)
