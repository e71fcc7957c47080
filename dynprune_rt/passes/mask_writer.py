"""Writes symbolic channel sets into the graph as bool vectors [N, C], built from ordinary operators.

One value per distinct set: equal sets share their mask, and the parts of masks are shared as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.ir.types import BATCH, DTYPES
from dynprune_rt.passes.channel_sets import FALSE, TRUE, ChannelSets, Set, cofactor, essential

#: More runs of channels with different formulas than this are gathered by one permutation.
MAX_RUNS = 8

#: In place of an element: any will do.
FREE = -1


@dataclass(frozen=True)
class _Leaf:
    """For each channel of a group, one element of a source."""

    source: int
    elements: tuple[int, ...]


class MaskWriter:
    """Appends mask nodes to the end of a graph; sort the graph afterwards."""

    def __init__(self, graph: Graph, sets: ChannelSets) -> None:
        self._builder = Builder(graph)
        self._sets = sets
        self._masks: dict[bytes, Value] = {}
        self._groups: dict[tuple[int, tuple[_Leaf, ...]], Value] = {}
        self._bits: dict[int, Value] = {}
        self._constants: dict[bytes, Value] = {}

    def mask(self, live: Set) -> Value | None:
        """A bool value [N, C] that is true where the formula of the channel is; None if no formula varies.

        ``live``: formulas [C].
        """
        live = np.ascontiguousarray(live)
        if not (live > TRUE).any():
            return None
        key = live.tobytes()
        if key not in self._masks:
            self._masks[key] = self._write(live)
        return self._masks[key]

    def _write(self, live: Set) -> Value:
        mask = self._continued(live)
        if mask is not None:
            return mask
        mask = self._varying(live)
        if (live == TRUE).any():
            mask = self._builder.op("logical_or", mask, self._constant(live == TRUE), name=self._stem(mask))
        if (live == FALSE).any():
            mask = self._builder.op("logical_and", mask, self._constant(live != FALSE), name=self._stem(mask))
        return mask

    def _continued(self, live: Set) -> Value | None:
        """A known mask for the first channels and one for the rest, as dense blocks grow by concatenation."""
        for length in sorted({bits.type.channels for bits in self._masks.values()}, reverse=True):
            rest = live[length:]
            known = self._masks.get(live[:length].tobytes())
            if known is not None and (rest > TRUE).any():
                more = self.mask(rest)
                assert more is not None
                joined: Value = self._builder.op("cat", known, more, attrs={"dim": 1}, name=self._stem(known))
                return joined
        return None

    def _varying(self, live: Set) -> Value:
        # A fixed channel joins the group of its neighbour, with free elements; it is set right afterwards.
        varying = np.nonzero(live > TRUE)[0]
        nearest = varying[np.clip(np.searchsorted(varying, np.arange(len(live)), side="right") - 1, 0, None)]
        described = [self._sets.describe(int(formula)) for formula in live[nearest]]
        fixed = live <= TRUE
        kinds = [(table, tuple(source for source, _ in atoms)) for atoms, table in described]
        starts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
        runs = [list(range(a, b)) for a, b in zip(starts, [*starts[1:], len(kinds)], strict=True)]
        if len(runs) > MAX_RUNS:
            by_kind: dict[tuple[int, tuple[int, ...]], list[int]] = {}
            for channel, kind in enumerate(kinds):
                by_kind.setdefault(kind, []).append(channel)
            runs = list(by_kind.values())
        parts = []
        for run in runs:
            table, sources = kinds[run[0]]
            leaves = tuple(
                _Leaf(source, tuple(FREE if fixed[c] else described[c][0][position][1] for c in run))
                for position, source in enumerate(sources)
            )
            parts.append(self._group(table, leaves))
        if len(parts) == 1:
            return self._arranged(parts[0], runs[0])
        joined: Value = self._builder.op("cat", *parts, attrs={"dim": 1}, name=self._stem(parts[0]))
        return self._arranged(joined, [channel for run in runs for channel in run])

    def _arranged(self, mask: Value, channels: list[int]) -> Value:
        """The mask in channel order, where entry i is for channel ``channels[i]``."""
        if channels == sorted(channels):
            return mask
        index = self._builder.constant("mask.order", np.argsort(np.array(channels, np.int64)))
        arranged: Value = self._builder.op("index_select", mask, index, attrs={"dim": 1}, name=self._stem(mask))
        return arranged

    # -- one formula for a group of channels ------------------------------------------------------

    def _group(self, table: int, leaves: tuple[_Leaf, ...]) -> Value:
        """A truth table over the leaves, as a tree of logical operators (it is neither false nor true)."""
        needed, table = essential(table, len(leaves))
        leaves = tuple(leaves[i] for i in needed)
        key = (table, leaves)
        if key not in self._groups:
            self._groups[key] = self._expand(table, leaves)
        return self._groups[key]

    def _expand(self, table: int, leaves: tuple[_Leaf, ...]) -> Value:
        width = len(leaves)
        if width == 1:
            return self._literal(leaves[0], zero=table == 0b10)
        full = (1 << (1 << (width - 1))) - 1
        for variable in range(width):
            low, high = cofactor(table, width, variable, 0), cofactor(table, width, variable, 1)
            rest = leaves[:variable] + leaves[variable + 1 :]
            for op, fixed, other, zero in (
                ("logical_and", low, high, True),
                ("logical_and", high, low, False),
                ("logical_or", high, low, True),
                ("logical_or", low, high, False),
            ):
                if fixed == (0 if op == "logical_and" else full):
                    return self._join(op, self._literal(leaves[variable], zero), self._group(other, rest))
        low, high, rest = cofactor(table, width, 0, 0), cofactor(table, width, 0, 1), leaves[1:]
        return self._join(
            "logical_or",
            self._join("logical_and", self._literal(leaves[0], True), self._group(high, rest)),
            self._join("logical_and", self._literal(leaves[0], False), self._group(low, rest)),
        )

    def _join(self, op: str, a: Value, b: Value) -> Value:
        joined: Value = self._builder.op(op, a, b, name=self._stem(a))
        return joined

    def _literal(self, leaf: _Leaf, zero: bool) -> Value:
        """[N, channels]: whether the leaf's elements are zero (or are not)."""
        key = (0b10 if zero else 0b01, (leaf,))
        if key in self._groups:
            return self._groups[key]
        if zero:
            positive = self._literal(leaf, zero=False)
            literal: Value = self._builder.op("logical_not", positive, name=self._stem(positive))
        else:
            literal = self._select(self._nonzero(leaf.source), leaf.elements)
        self._groups[key] = literal
        return literal

    def _select(self, bits: Value, elements: tuple[int, ...]) -> Value:
        if len(elements) == bits.type.channels and all(e in (c, FREE) for c, e in enumerate(elements)):
            return bits
        name = self._stem(bits)
        selected: Value
        if bits.type.channels == 1:
            selected = self._builder.op("expand", bits, attrs={"shape": (BATCH, len(elements))}, name=name)
        else:
            index = self._builder.constant("mask.channels", np.maximum(np.array(elements, np.int64), 0))
            selected = self._builder.op("index_select", bits, index, attrs={"dim": 1}, name=name)
        return selected

    def _nonzero(self, number: int) -> Value:
        """[N, elements] of a source: whether each is not zero."""
        if number not in self._bits:
            source = self._sets.sources[number]
            maker = source.producer.name if source.producer is not None else source.name
            name = f"{maker}.live"
            flat = source
            if source.type.rank != 2:
                flat = self._builder.op("reshape", source, attrs={"shape": (BATCH, source.type.elements)}, name=name)
            if source.type.dtype != "bool":
                zero = self._builder.constant(f"{name}.zero", np.zeros((), DTYPES[source.type.dtype]))
                flat = self._builder.op("ne", flat, zero, name=name)
            self._bits[number] = flat
        return self._bits[number]

    def _constant(self, bits: np.ndarray) -> Value:
        key = bits.tobytes()
        if key not in self._constants:
            self._constants[key] = self._builder.constant("mask.fixed", bits.reshape(1, -1))
        return self._constants[key]

    @staticmethod
    def _stem(mask: Value) -> str:
        return mask.producer.name if mask.producer is not None else mask.name
