"""ATen matrix products: linear where one side is a weight, matmul otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dynprune_rt.frontend.operands import Known
from dynprune_rt.frontend.registry import Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation


@aten("linear.default")
def _linear(t: Translation, x: Any, weight: Any, bias: Any = None) -> Value:
    t.weight(weight, "weight")
    t.weight(bias, "bias")
    return t.op("linear", t.value(x), t.value(weight), None if bias is None else t.value(bias))


@aten("matmul.default", "mm.default", "bmm.default", "mv.default")
def _matmul(t: Translation, a: Any, b: Any) -> Value:
    if isinstance(b, Known) and b.tensor.ndim == 2 and not b.batched and isinstance(a, Value) and a.type.rank >= 2:
        # [C, K] as the layer's weight [K, C].
        return t.op("linear", a, t.value(Known(b.tensor.t().contiguous(), name=b.name and f"{b.name}.t")), None)
    left, right = t.value(a), t.value(b)
    if isinstance(b, Value) and b.type.rank == 2 and not (isinstance(a, Value) and a.type.rank == 1):
        raise Unsupported("multiplies by a matrix whose rows are the images of a batch")
    return t.op("matmul", left, right)


@aten("addmm.default")
def _addmm(t: Translation, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Value:
    """beta * bias + alpha * (a @ b)."""
    if isinstance(a, Value) and isinstance(b, Known) and isinstance(bias, Known) and bias.tensor.ndim == 1:
        weight, shift = b.tensor.t() * alpha, bias.tensor * beta
        return t.op("linear", a, t.value(Known(weight.contiguous())), t.value(Known(shift)))
    return _plus(t, bias, _matmul(t, a, b), beta, alpha)


@aten("baddbmm.default")
def _baddbmm(t: Translation, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Value:
    return _plus(t, bias, _matmul(t, a, b), beta, alpha)


def _plus(t: Translation, bias: Any, product: Value, beta: float, alpha: float) -> Value:
    if alpha != 1:
        product = t.op("mul", product, t.constant(alpha))
    summand = t.value(bias, "f32")
    if beta != 1:
        summand = t.op("mul", summand, t.constant(beta))
    return t.op("add", summand, product)


@aten("scaled_dot_product_attention.default")
def _attention(
    t: Translation,
    query: Value,
    key: Value,
    value: Value,
    mask: Any = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """softmax(q k^T * scale + mask) v."""
    if dropout or causal or enable_gqa:
        raise Unsupported("is attention with dropout, causal masking or grouped heads")
    rank = key.type.rank
    swapped = t.op("permute", key, dims=(*range(rank - 2), rank - 1, rank - 2))
    factor = 1 / math.sqrt(query.type.shape[-1]) if scale is None else scale
    scores = t.op("mul", t.op("matmul", query, swapped), t.constant(factor))
    if isinstance(mask, (Value, Known)):
        is_bool = isinstance(mask, Known) and mask.tensor.dtype is torch.bool
        if is_bool or (isinstance(mask, Value) and mask.type.dtype == "bool"):
            scores = t.op("where", t.value(mask), scores, t.constant(-math.inf))
        else:
            scores = t.op("add", scores, t.value(mask, "f32"))
    return t.op("matmul", t.op("softmax", scores, dim=rank - 1), value)


@aten("einsum.default")
def _einsum(t: Translation, equation: str, operands: Sequence[Any], *, path: Any = None) -> Value:
    """Products without a sum over the batch: multiply what broadcasts, then sum what is left out."""
    terms, _, output = equation.replace(" ", "").partition("->")
    labels = terms.split(",")
    if "." in equation or not output or any(len(set(term)) != len(term) for term in labels):
        raise Unsupported(f"is einsum {equation!r}; use explicit letters, each once per operand, and an output")
    batch = output[0]
    order = output + "".join(sorted(set("".join(labels)) - set(output)))
    product: Value | None = None
    for term, operand in zip(labels, operands, strict=True):
        aligned = _aligned(t, operand, term, order, batch)
        product = aligned if product is None else t.op("mul", product, aligned)
    assert product is not None
    summed = tuple(range(len(output), len(order)))
    if not summed:
        return product
    return t.op("reduce", product, kind="sum", dims=summed, keepdim=False)


def _aligned(t: Translation, operand: Any, term: str, order: str, batch: str) -> Value:
    """The operand with dimensions in ``order``, of size 1 where it lacks them."""
    permutation = [term.index(label) for label in order if label in term]
    if isinstance(operand, Known):
        tensor = operand.tensor.permute(permutation).float()
        for i, label in enumerate(order):
            if label not in term:
                tensor = tensor.unsqueeze(i)
        return t.value(Known(tensor, operand.batched))
    if term[0] != batch:
        raise Unsupported("moves the batch away from dimension 0")
    x = t.value(operand, "f32")
    if permutation != list(range(len(permutation))):
        x = t.op("permute", x, dims=permutation)
    sizes = iter(x.type.shape)
    return t.reshape(x, tuple(next(sizes) if label in term else 1 for label in order))
