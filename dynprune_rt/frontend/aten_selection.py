"""ATen operators that pick extreme or ordered elements: the decisions of top-k gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynprune_rt.frontend.aten_shape import dimension
from dynprune_rt.frontend.registry import Handler, Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation


@aten("topk.default")
def _topk(t: Translation, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return t.emit("topk", x, k=k, dim=dimension(x, dim), largest=largest)


@aten("sort.default")
def _sort(t: Translation, x: Value, dim: int = -1, descending: bool = False) -> Any:
    return t.emit("sort", x, dim=dimension(x, dim), descending=descending)


@aten("sort.stable")
def _sort_stable(
    t: Translation, x: Value, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    return _sort(t, x, dim, descending)


@aten("argsort.default")
def _argsort(t: Translation, x: Value, dim: int = -1, descending: bool = False) -> Value:
    return _sort(t, x, dim, descending)[1]  # type: ignore[no-any-return]


@aten("argsort.stable")
def _argsort_stable(t: Translation, x: Value, *, stable: bool, dim: int = -1, descending: bool = False) -> Value:
    return _sort(t, x, dim, descending)[1]  # type: ignore[no-any-return]


@aten("kthvalue.default")
def _kthvalue(t: Translation, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return t.emit("kthvalue", x, k=k, dim=dimension(x, dim), keepdim=keepdim)


@aten("median.dim")
def _median(t: Translation, x: Value, dim: int, keepdim: bool = False) -> Any:
    """torch's median is the lower of the two middle elements."""
    dim = dimension(x, dim)
    return t.emit("kthvalue", x, k=(x.type.shape[dim] + 1) // 2, dim=dim, keepdim=keepdim)


def _arg(op: str) -> Handler:
    def handler(t: Translation, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            raise Unsupported("works over the whole batch; give a dim")
        return t.op(op, x, dim=dimension(x, dim), keepdim=keepdim)

    return handler


aten("argmax.default")(_arg("argmax"))
aten("argmin.default")(_arg("argmin"))


def _extreme(kind: str) -> Handler:
    def handler(t: Translation, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        dim = dimension(x, dim)
        # The position is rarely used; dead code removal takes it away then.
        return (
            t.op("reduce", x, kind=kind, dims=(dim,), keepdim=keepdim),
            t.op(f"arg{kind}", x, dim=dim, keepdim=keepdim),
        )

    return handler


aten("max.dim")(_extreme("max"))
aten("min.dim")(_extreme("min"))
