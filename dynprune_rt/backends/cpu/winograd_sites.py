"""Convolutions that may run as Winograd, and the memory of their transformed inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dynprune_rt import _C
from dynprune_rt.backends.cpu.live_lists import LiveListRef
from dynprune_rt.backends.cpu.storage import Arena, MapView
from dynprune_rt.ir.graph import Value


def is_winograd_shape(
    kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], padding: tuple[int, ...], groups: int
) -> bool:
    """True where the Winograd kernels apply: 3x3, stride 1, padding 1."""
    plain = stride == (1, 1) and dilation == (1, 1) and padding == (1, 1, 1, 1) and groups == 1
    return plain and kernel == (3, 3)


@dataclass(eq=False)
class KeptInput:
    """A transformed input that convolutions go on with, each transforming what changed (csrc/core/conv_step.h)."""

    slot: int
    sites: list[WinogradSite] = field(default_factory=list)
    offset: int = -1


@dataclass(eq=False)
class WinogradSite:
    """A convolution that may run as Winograd; which images do is decided per image by the cost model."""

    in_channels: int
    out_channels: int
    out: MapView
    few_tiles: bool  # output channels fill the vectors instead
    bf16: bool = False  # maps of two channels per word
    kept: KeptInput | None = None
    turn: int = 0
    changed: LiveListRef | None = None

    @property
    def m(self) -> int:
        """Tile size of F(m x m, 3x3). 4 saves more multiplications, 2 fills vectors on smaller maps."""
        if self.bf16:
            return 4
        return 4 if min(self.out.height, self.out.width) > (4 if self.few_tiles else 11) else 2

    @property
    def form(self) -> _C.WinogradWeights:
        """Transformed weights for layers whose weights stay in the cache whatever runs in between; beyond,
        transforming the live ones of each image costs less than fetching up to four times the bytes."""
        if self.few_tiles:
            return _C.WinogradWeights.channel_lanes
        if self.bf16:
            return _C.WinogradWeights.on_the_fly
        transformed = 4 * (self.m + 2) ** 2 * self.in_channels * self.out_channels
        return _C.WinogradWeights.on_the_fly if transformed > (64 << 10) else _C.WinogradWeights.transformed

    @property
    def kept_input(self) -> tuple[int, int, int]:
        """Slot, turn and list of changed channels for `PlanBuilder.add_conv`."""
        slot = -1 if self.kept is None else self.kept.slot
        return slot, self.turn, -1 if self.changed is None else self.changed.index


class WinogradSites:
    """All such convolutions of a plan.

    In a residual network with gates a block changes only its live channels of the map, in place. The next block's
    convolution then finds the other channels transformed already.
    """

    def __init__(self, builder: _C.PlanBuilder, updates: dict[Value, tuple[Value, LiveListRef]]) -> None:
        """``updates``: as in `Recorder`, filled while sites are added."""
        self._builder = builder
        self._sites: list[WinogradSite] = []
        self._kept: list[KeptInput] = []
        self._updates = updates
        self._readers: dict[Value, WinogradSite] = {}
        self._shared_scratch = -1

    def fits(self, height: int, width: int) -> bool:
        """True for maps that are worth it: other kernels fill vectors better where there are few tiles."""
        smallest = 5 if self._builder.has_channel_lanes else 4
        return self._builder.has_winograd and (min(height, width) >= smallest or self._few_tiles(height, width))

    def _few_tiles(self, height: int, width: int) -> bool:
        """Maps for winograd_fits_channel_lanes() of csrc/cpu/kernels.h."""
        sides = (height, width)
        few = any(all(m < side <= 2 * m for side in sides) for m in (2, 4))
        return few and self._builder.has_channel_lanes

    def add(self, x: Value, out_channels: int, out: MapView) -> WinogradSite:
        """The site of a convolution of ``x``."""
        few_tiles = self._few_tiles(out.height, out.width)
        return self._add(x, WinogradSite(x.type.channels, out_channels, out, few_tiles))

    def add_bf16(self, x: Value, out_channels: int, out: MapView) -> WinogradSite | None:
        """The site of a convolution of the bf16 map ``x``; None where the direct kernel is as fast."""
        if not self._builder.bf16_winograd_pays(x.type.channels, out_channels, out.height, out.width):
            return None
        return self._add(x, WinogradSite(x.type.channels, out_channels, out, few_tiles=False, bf16=True))

    def _add(self, x: Value, site: WinogradSite) -> WinogradSite:
        self._sites.append(site)
        if x.live is None and not site.few_tiles:
            source, changed = self._updates.get(x, (None, None))
            former = None if source is None else self._readers.get(source)
            if former is not None:
                if former.kept is None:
                    former.kept = KeptInput(len(self._kept), [former])
                    self._kept.append(former.kept)
                site.kept, site.turn, site.changed = former.kept, former.turn + 1, changed
                site.kept.sites.append(site)
            self._readers[x] = site
        return site

    def place(self, arena: Arena, shape_id: Callable[[MapView], int]) -> None:
        """Reserve the memory: one scratch for all, and one for each kept input."""

        def reserve(sites: list[WinogradSite]) -> int:
            return arena.reserve(
                max(
                    (
                        self._builder.winograd_input_scratch(
                            s.in_channels, s.out_channels, s.m, shape_id(s.out), s.form
                        )
                        for s in sites
                    ),
                    default=0,
                )
            )

        self._shared_scratch = reserve([s for s in self._sites if s.kept is None])
        for kept in self._kept:
            kept.offset = reserve(kept.sites)

    def scratch(self, site: WinogradSite) -> int:
        """Arena offset of the transformed input of a placed site."""
        return self._shared_scratch if site.kept is None else site.kept.offset
