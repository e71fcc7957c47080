"""bfloat16 values as numpy arrays: numpy has no such type, so their bits are kept as uint16."""

from __future__ import annotations

import numpy as np

#: Exponent bits of which every number of magnitude 2^-63 or more has at least one.
_LARGE_EXPONENT = np.uint16(0x6000)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> bits, rounded to nearest even; magnitudes below 2^-63 become +0, NaN becomes quiet.

    The small ones go so that no product of two bfloat16 numbers is a denormal, which instruction sets treat in
    different ways.
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    quiet = bits >> 16 | 0x40
    result = np.where(np.isnan(x), quiet, rounded).astype(np.uint16)
    return np.where(result & _LARGE_EXPONENT, result, np.uint16(0))


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
