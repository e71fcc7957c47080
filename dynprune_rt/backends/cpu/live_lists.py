"""Lists of live channels, as lowering refers to them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class LiveListRef:
    """A live list that emission numbers."""

    index: int = -1
