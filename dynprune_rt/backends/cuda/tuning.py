"""Chooses from measured times how maps are stored and how convolutions are executed (see `modes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from dynprune_rt.backends.cuda.maps import ConvMode
from dynprune_rt.backends.cuda.modes import (
    Choices,
    ConvProblem,
    conv_problem,
    is_gemm,
    packable,
    spread_modes,
)
from dynprune_rt.backends.cuda.times_cache import TimesCache
from dynprune_rt.ir.graph import Graph, Node, Value

#: Milliseconds of one convolution: problem, mode, batch.
Timer = Callable[[ConvProblem, ConvMode, int], float]

#: Numbers of segments that are tried for a sum; more than one pays where one image has few tiles.
SEGMENTS: Final = (1, 2, 4, 8)
#: Tiles of one image from which on segments are not tried: they fill a GPU as they are.
_MANY_TILES: Final = 128
#: A later candidate must be faster by this factor: noise must not decide.
_MARGIN: Final = 0.97


class Tuner:
    """Measures convolutions, each problem once, and chooses. ``batch``: what decisions for all batches are made for."""

    def __init__(self, timer: Timer, cache: TimesCache, batch: int, segments: bool) -> None:
        self._timer, self._cache = timer, cache
        self.batch = batch
        self._segments = segments
        self._prepared: set[tuple[ConvProblem, int, int]] = set()

    def time(self, problem: ConvProblem, mode: ConvMode, batch: int) -> float:
        """Milliseconds; measured where the cache has none."""
        key = f"{problem.key} {mode} x{batch}"
        known = self._cache.get(key)
        if known is None:
            known = self._timer(problem, mode, batch)
            self._cache.put(key, known)
        return known

    def choose(self, graph: Graph) -> Choices:
        """What is the same for all batches: packed maps and segments."""
        nodes = [node for node in graph.nodes if is_gemm(node)]
        packed = self._choose_packed(nodes, packable(graph))
        segments = {}
        for node in nodes:
            count = self._choose_segments(conv_problem(node, packed, True))
            if count != 1:
                segments[node.name] = count
        return Choices(packed, segments, True, self.measured)

    def choose_dense(self, graph: Graph) -> Choices:
        """The same where nothing is skipped."""
        segments = {}
        for node in graph.nodes:
            if is_gemm(node) and (count := self._choose_segments(conv_problem(node, frozenset(), False))) != 1:
                segments[node.name] = count
        return Choices(frozenset(), segments, False, self.measured)

    def prepare(self, choices: Choices, nodes: Iterable[Node], batch: int) -> None:
        """Measure what `measured` will be asked for, and keep it on disk."""
        for node in nodes:
            problem, segments = choices.problem(node), choices.segments.get(node.name, 1)
            for mode in spread_modes(problem, segments):
                self.time(problem, mode, batch)
            self._prepared.add((problem, segments, batch))
        self._cache.save()

    def measured(self, problem: ConvProblem, segments: int, batch: int) -> ConvMode | None:
        """The fastest mode for a batch that was prepared. Measures nothing: graphs may be being captured."""
        if (problem, segments, batch) not in self._prepared:
            return None
        return self._fastest(problem, spread_modes(problem, segments), batch)

    def _fastest(self, problem: ConvProblem, modes: list[ConvMode], batch: int) -> ConvMode:
        best, best_time = modes[0], self.time(problem, modes[0], batch)
        for mode in modes[1:]:
            if (time := self.time(problem, mode, batch)) < best_time * _MARGIN:
                best, best_time = mode, time
        return best

    def _cost(self, problem: ConvProblem) -> float:
        return min(self.time(problem, mode, self.batch) for mode in spread_modes(problem, 1))

    def _choose_packed(self, nodes: list[Node], candidates: frozenset[Value]) -> frozenset[Value]:
        """Maps of one mask are decided together, one mask after the other until nothing changes.

        From two starts, everything packed and nothing; the cheaper end wins.
        """
        groups: dict[Value, set[Value]] = {}
        for value in sorted(candidates, key=lambda v: v.name):
            assert value.live is not None
            groups.setdefault(value.live, set()).add(value)
        ends = []
        for start in (candidates, frozenset[Value]()):
            packed, changed, rounds = start, True, 0
            while changed and rounds < 4:
                changed, rounds = False, rounds + 1
                for group in groups.values():
                    touching = [n for n in nodes if n.inputs[0] in group or n.output in group]
                    with_it, without = packed | group, packed - group
                    costs = [self._total(touching, option) for option in (with_it, without)]
                    chosen = without if costs[1] < costs[0] * _MARGIN else with_it
                    changed = changed or chosen != packed
                    packed = chosen
            ends.append(packed)
        totals = [self._total(nodes, end) for end in ends]
        return ends[1] if totals[1] < totals[0] * _MARGIN else ends[0]

    def _total(self, nodes: list[Node], packed: frozenset[Value]) -> float:
        return sum(self._cost(conv_problem(node, packed, True)) for node in nodes)

    def _choose_segments(self, problem: ConvProblem) -> int:
        """Segments are for single images: with more, a block sums them one after the other, at little cost."""
        pixels = problem.out_size[0] * problem.out_size[1]
        tiles = -(-pixels // 64) * -(-problem.outputs // 64)
        if not self._segments or tiles >= _MANY_TILES:
            return 1
        best, best_time = 1, self.time(problem, ConvMode(problem.layouts()[0]), 1)
        for count in SEGMENTS[1:]:
            time = self.time(problem, ConvMode(problem.layouts()[0], count, spread=True), 1)
            if time < best_time * _MARGIN:
                best, best_time = count, time
        return best
