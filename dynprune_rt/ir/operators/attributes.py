"""Kinds of operator attributes: what a value must look like, and its canonical form.

Canonical values are int, float, bool, str, None and tuples of these, so that attributes compare
equal however they were written (a list read from JSON, a tuple, a numpy-free int for a float).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dynprune_rt.ir.types import MAX_RANK


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


#: Default of an attribute that has none.
REQUIRED: Final = _Required()

#: Bound on every integer attribute; sizes, strides and dimensions are far below.
MAX_INTEGER = 2**31 - 1

Check = Callable[[Any], Any]


@dataclass(frozen=True)
class Attribute:
    """One attribute: ``check`` returns the canonical value or raises ValueError."""

    check: Check
    default: Any = REQUIRED


def integer(low: int = 0, high: int = MAX_INTEGER) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"expected an integer, got {value!r:.80}")
        if not low <= value <= high:
            raise ValueError(f"expected an integer in [{low}, {high}], got {value!s:.80}")
        return value

    return check


def integers(length: int | None = None, low: int = 0) -> Check:
    """A sequence of integers >= low: ``length`` entries, or one per dimension."""
    item = integer(low)

    def check(value: Any) -> tuple[int, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"expected a list of integers, got {value!r:.80}")
        if length is not None and len(value) != length:
            raise ValueError(f"expected {length} integers, got {len(value)}")
        if len(value) > MAX_RANK:
            raise ValueError(f"expected at most {MAX_RANK} integers, got {len(value)}")
        return tuple(item(v) for v in value)

    return check


def number(finite: bool = True) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"expected a number, got {value!r:.80}")
        try:
            result = float(value)
        except OverflowError:
            raise ValueError("the number is out of range") from None
        if math.isnan(result) or (finite and math.isinf(result)):
            raise ValueError(f"expected a {'finite ' if finite else ''}number, got {result}")
        return result

    return check


def interval(value: Any) -> tuple[float, float]:
    """Bounds (lo, hi) of a clamp, lo <= hi; infinities are allowed."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"expected bounds (lo, hi), got {value!r:.80}")
    low, high = (number(finite=False)(v) for v in value)
    if low > high:
        raise ValueError(f"the lower bound {low} exceeds the upper bound {high}")
    return low, high


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r:.80}")
    return value


def choice(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}; got {value!r:.80}")
        return value

    return check


def choices(*allowed: str) -> Check:
    """A sequence of distinct words out of ``allowed``."""
    item = choice(*allowed)

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"expected a list of words, got {value!r:.80}")
        words = tuple(item(v) for v in value)
        if len(set(words)) != len(words):
            raise ValueError(f"repeated entries in {words}")
        return words

    return check


def positive_pair_or_none(value: Any) -> tuple[float, float] | None:
    """Two numbers > 0, or None."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"expected two numbers or none, got {value!r:.80}")
    pair = tuple(number()(v) for v in value)
    if min(pair) <= 0:
        raise ValueError(f"expected positive numbers, got {pair}")
    return pair[0], pair[1]
