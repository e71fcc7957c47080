"""Symbolic sets of channels, one Boolean formula per channel.

An *atom* says "element i of this gate tensor is exactly zero"; it is true or false per image. A set
of channels is an integer array whose entries name formulas over atoms: channel c belongs to the set,
for one image, where formula c is true. Formulas are kept as truth tables over at most `MAX_ATOMS`
atoms, so that equal formulas have equal names and tautologies and contradictions show themselves
(the complement pair m, 1-m of layer-skipping networks, for instance).

Every set that the analysis uses may be replaced by a smaller one without harm, so a formula over too
many atoms is shrunk, never enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np

from dynprune_rt.ir.graph import Value

#: Formulas over more atoms are shrunk: a truth table has 2**n bits.
MAX_ATOMS = 8

#: A conjunction over a dimension gives up (FALSE) where it meets more distinct formulas: several copies
#: of one channel, or the channels that a convolution joins (a gate on a whole branch is one formula).
MAX_COPIES = 4
MAX_JOINED = 2

#: See `ChannelSets.likely`.
LEAST_SHARE = 1 / 8

FALSE = 0
TRUE = 1

#: Names of formulas, one per channel (or element); int64.
Set = np.ndarray


@lru_cache(maxsize=1 << 16)
def _spread(table: int, positions: tuple[int, ...], width: int) -> int:
    """A truth table over len(positions) variables, read as one over ``width`` variables."""
    result = 0
    for row in range(1 << width):
        narrow = 0
        for i, position in enumerate(positions):
            narrow |= ((row >> position) & 1) << i
        if (table >> narrow) & 1:
            result |= 1 << row
    return result


@lru_cache(maxsize=1 << 16)
def cofactor(table: int, width: int, variable: int, value: int) -> int:
    """The truth table over the other ``width - 1`` variables where one variable has this value."""
    result = 0
    for row in range(1 << (width - 1)):
        low = row & ((1 << variable) - 1)
        wide = ((row >> variable) << (variable + 1)) | (value << variable) | low
        if (table >> wide) & 1:
            result |= 1 << row
    return result


@lru_cache(maxsize=1 << 16)
def essential(table: int, width: int) -> tuple[tuple[int, ...], int]:
    """The variables that a truth table depends on, and the table over these alone."""
    kept = list(range(width))
    for variable in reversed(range(width)):
        zero = cofactor(table, len(kept), variable, 0)
        if zero == cofactor(table, len(kept), variable, 1):
            table = zero
            del kept[variable]
    return tuple(kept), table


class ChannelSets:
    """Creates formulas and combines sets. Sets of different algebras must not be mixed."""

    def __init__(self) -> None:
        # Formula number -> sorted atoms, truth table over them.
        self._atoms: list[tuple[int, ...]] = [(), ()]
        self._tables: list[int] = [0, 1]
        self._formulas: dict[tuple[tuple[int, ...], int], int] = {((), 0): FALSE, ((), 1): TRUE}
        self._cache: dict[tuple[int, int, int], int] = {}
        # Atom number -> position in `sources`, element.
        self._origin: list[tuple[int, int]] = []
        self._first_atom: dict[int, tuple[int, int]] = {}
        #: The gate tensors that atoms refer to.
        self.sources: list[Value] = []

    # -- formulas -------------------------------------------------------------------------------

    def zeros_of(self, source: Value) -> Set:
        """For every element of a batched tensor the atom "is exactly zero", in the shape of one image."""
        shape = source.type.shape[1:]
        count = int(np.prod(shape, dtype=np.int64))
        if id(source) not in self._first_atom:
            number = len(self.sources)
            self.sources.append(source)
            self._first_atom[id(source)] = (len(self._origin), number)
            for element in range(count):
                self._intern((len(self._origin),), 0b10)
                self._origin.append((number, element))
        first, _ = self._first_atom[id(source)]
        start = self._formulas[((first,), 0b10)]
        # Atoms of one source are created in one go, and so are their formulas.
        return np.arange(start, start + count, dtype=np.int64).reshape(shape)

    def _intern(self, atoms: tuple[int, ...], table: int) -> int:
        formula = self._formulas.get((atoms, table))
        if formula is None:
            formula = len(self._atoms)
            self._atoms.append(atoms)
            self._tables.append(table)
            self._formulas[(atoms, table)] = formula
        return formula

    def _make(self, atoms: tuple[int, ...], table: int) -> int:
        kept, table = essential(table, len(atoms))
        return self._intern(tuple(atoms[i] for i in kept), table)

    def describe(self, formula: int) -> tuple[tuple[tuple[int, int], ...], int]:
        """A formula as its atoms (source number, element) and the truth table over them."""
        return tuple(self._origin[a] for a in self._atoms[formula]), self._tables[formula]

    def source_numbers(self, sets: Set) -> set[int]:
        """Numbers of the sources that a set depends on."""
        return {self._origin[a][0] for formula in np.unique(sets) for a in self._atoms[formula]}

    def width(self, sets: Set) -> int:
        """The largest number of atoms in one formula of the set."""
        return max((len(self._atoms[formula]) for formula in np.unique(sets)), default=0)

    # -- Boolean operations, element by element with broadcasting ---------------------------------

    def conj(self, a: Set, b: Set) -> Set:
        """Intersection; a formula with too many atoms becomes FALSE."""
        return self._elementwise(0, a, b)

    def disj(self, a: Set, b: Set) -> Set:
        """Union; where a formula had too many atoms, the part from one operand alone."""
        return self._elementwise(1, a, b)

    def complement(self, a: Set) -> Set:
        """Exactly the channels outside the set."""
        return self._map(self._complement, a)

    def without(self, a: Set, sources: Iterable[int]) -> Set:
        """The largest part of the set that is the same whatever the given sources hold."""
        forbidden = set(sources)

        def restrict(formula: int) -> int:
            atoms, table = list(self._atoms[formula]), self._tables[formula]
            for position in reversed(range(len(atoms))):
                if self._origin[atoms[position]][0] in forbidden:
                    width = len(atoms)
                    table = cofactor(table, width, position, 0) & cofactor(table, width, position, 1)
                    del atoms[position]
            return self._make(tuple(atoms), table)

        return self._map(restrict, a) if forbidden else a

    def likely(self, a: Set) -> Set:
        """The set without formulas that hold for few images: less than `LEAST_SHARE` if atoms were coin tosses.

        A chain of many gates that all have to be closed costs more mask arithmetic than it saves.
        """

        def keep(formula: int) -> int:
            rows = 1 << len(self._atoms[formula])
            return formula if self._tables[formula].bit_count() >= LEAST_SHARE * rows else FALSE

        return self._map(keep, a)

    def conj_over(self, a: Set, axis: int) -> Set:
        """Conjunction over one dimension, which is kept with size 1."""
        if a.shape[axis] == 1:
            return a
        if a.shape[axis] == 0:
            return np.full(tuple(1 if i == axis % a.ndim else d for i, d in enumerate(a.shape)), TRUE, np.int64)
        rows = np.moveaxis(a, axis, -1)
        result = np.where((rows == FALSE).any(axis=-1), FALSE, rows[..., 0])
        open_rows = (rows != rows[..., :1]).any(axis=-1) & (result != FALSE)
        for position in zip(*np.nonzero(open_rows), strict=True) if open_rows.ndim else [()] * int(open_rows):
            result[position] = self._conj_all(rows[position], MAX_COPIES)
        return np.expand_dims(result, axis)

    def conj_selected(self, a: Set, selected: np.ndarray) -> Set:
        """For every row k of the bool matrix ``selected`` [K, C] the conjunction of a[c] over selected c."""
        if not a.any():
            return np.where(selected.any(axis=1), FALSE, TRUE).astype(np.int64)
        selected = selected & (a != TRUE)
        result = np.where(selected[:, a == FALSE].any(axis=1), FALSE, TRUE).astype(np.int64)
        cache: dict[bytes, int] = {}
        for k in np.nonzero((result == TRUE) & selected.any(axis=1))[0]:
            key = selected[k].tobytes()
            if key not in cache:
                cache[key] = self._conj_all(a[selected[k]], MAX_JOINED)
            result[k] = cache[key]
        return result

    def _conj_all(self, formulas: np.ndarray, most: int) -> int:
        distinct = [int(f) for f in np.unique(formulas) if f != TRUE]
        if len(distinct) > most or (distinct and distinct[0] == FALSE):
            return FALSE
        result = TRUE
        for formula in distinct:
            result = self._combine(0, result, formula)
        return result

    def _map(self, function: Callable[[int], int], a: Set) -> Set:
        distinct, inverse = np.unique(a, return_inverse=True)
        results = np.fromiter((function(int(f)) for f in distinct), np.int64, len(distinct))
        return results[inverse].reshape(a.shape)

    def _elementwise(self, kind: int, a: Set, b: Set) -> Set:
        a, b = np.broadcast_arrays(a, b)
        neutral, absorbing = (TRUE, FALSE) if kind == 0 else (FALSE, TRUE)
        result = np.where(b == neutral, a, b)
        result[(a == absorbing) | (b == absorbing)] = absorbing
        pending = (a > TRUE) & (b > TRUE) & (a != b)
        if pending.any():
            pairs = np.stack([np.minimum(a, b)[pending], np.maximum(a, b)[pending]], axis=1)
            distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
            found = np.fromiter((self._combine(kind, int(x), int(y)) for x, y in distinct), np.int64, len(distinct))
            result[pending] = found[inverse.reshape(-1)]
        return result

    def _combine(self, kind: int, a: int, b: int) -> int:
        """Conjunction (kind 0) or disjunction (kind 1) of two formulas."""
        if a == b or b == (TRUE if kind == 0 else FALSE):
            return a
        if a == (TRUE if kind == 0 else FALSE):
            return b
        key = (kind, a, b)
        found = self._cache.get(key)
        if found is not None:
            return found
        atoms_a, atoms_b = self._atoms[a], self._atoms[b]
        atoms = tuple(sorted({*atoms_a, *atoms_b}))
        if len(atoms) > MAX_ATOMS:
            smaller = a if len(atoms_a) <= len(atoms_b) else b
            result = FALSE if kind == 0 else smaller
        else:
            where = {atom: i for i, atom in enumerate(atoms)}
            table_a = _spread(self._tables[a], tuple(where[x] for x in atoms_a), len(atoms))
            table_b = _spread(self._tables[b], tuple(where[x] for x in atoms_b), len(atoms))
            result = self._make(atoms, table_a & table_b if kind == 0 else table_a | table_b)
        self._cache[key] = result
        return result

    def _complement(self, a: int) -> int:
        atoms = self._atoms[a]
        return self._intern(atoms, ((1 << (1 << len(atoms))) - 1) ^ self._tables[a])
