"""Which function translates which ATen operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

#: (translation, *operands, **keywords) -> operand or tuple of operands.
Handler = Callable[..., Any]

#: ATen overload ("relu.default") -> handler.
HANDLERS: dict[str, Handler] = {}

_H = TypeVar("_H", bound=Handler)


def aten(*overloads: str) -> Callable[[_H], _H]:
    """Register a handler for these ATen overloads; each may be taken once."""

    def decorate(handler: _H) -> _H:
        for overload in overloads:
            if overload in HANDLERS:
                raise ValueError(f"aten.{overload} has two handlers")
            HANDLERS[overload] = handler
        return handler

    return decorate


class Unsupported(Exception):
    """Raised by a handler: this use of the operator has no counterpart; the text says why, or what to do."""
