"""ATen normalizations. Batch norm with stored statistics is an affine map per channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynprune_rt.frontend.registry import Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation


def _affine(t: Translation, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, eps: float) -> Value:
    """(x - mean) / sqrt(variance + eps) * weight + bias, folded in float64."""
    names = {"weight": weight, "bias": bias, "running mean": mean, "running variance": variance}
    arrays = {what: t.weight(operand, f"batch norm {what}") for what, operand in names.items()}
    running_mean, running_variance = arrays["running mean"], arrays["running variance"]
    if running_mean is None or running_variance is None:
        raise Unsupported("normalises by the statistics of the batch: results would depend on the other images")
    variances = running_variance.astype(np.float64) + eps
    if not (np.isfinite(variances).all() and (variances > 0).all() and np.isfinite(running_mean).all()):
        raise Unsupported("running statistics hold infinite or negative values: the checkpoint is damaged")
    scale = 1.0 / np.sqrt(variances)
    if arrays["weight"] is not None:
        scale = scale * arrays["weight"]
    shift = -running_mean.astype(np.float64) * scale
    if arrays["bias"] is not None:
        shift = shift + arrays["bias"]
    name = t.name
    return t.op("affine", x, t.constant(scale, name=f"{name}.scale"), t.constant(shift, name=f"{name}.shift"))


@aten("_native_batch_norm_legit_no_training.default")
def _batch_norm_no_training(
    t: Translation, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Any, ...]:
    return _affine(t, x, weight, bias, mean, variance, eps), None, None


@aten("batch_norm.default")
def _batch_norm(
    t: Translation,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Value:
    if training:
        raise Unsupported("normalises by the statistics of the batch: results would depend on the other images")
    return _affine(t, x, weight, bias, mean, variance, eps)


@aten(
    "_native_batch_norm_legit.no_stats",
    "_native_batch_norm_legit.default",
    "_native_batch_norm_legit_functional.default",
)
def _batch_statistics(t: Translation, x: Value, *rest: Any, **kwargs: Any) -> Value:
    raise Unsupported("normalises by the statistics of the batch: results would depend on the other images")


def _group_norm_op(t: Translation, x: Value, groups: int, weight: Any, bias: Any, eps: float) -> Value:
    inputs = [None if v is None else t.value(v) for v in (weight, bias)]
    return t.op("group_norm", x, *inputs, groups=groups, eps=float(eps))


@aten("group_norm.default")
def _group_norm(
    t: Translation, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Value:
    return _group_norm_op(t, x, groups, weight, bias, eps)


@aten("native_group_norm.default")
def _native_group_norm(
    t: Translation, x: Value, weight: Any, bias: Any, n: Any, c: int, hw: int, groups: int, eps: float
) -> tuple[Any, ...]:
    return _group_norm_op(t, x, groups, weight, bias, eps), None, None


@aten("instance_norm.default")
def _instance_norm(
    t: Translation,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Value:
    """Per image and channel: group norm with one channel per group; or stored statistics."""
    if not use_input_stats:
        return _affine(t, x, weight, bias, mean, variance, eps)
    return _group_norm_op(t, x, x.type.channels, weight, bias, eps)


def _layer_norm_op(t: Translation, x: Value, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Value:
    dims = tuple(range(x.type.rank - len(shape), x.type.rank))
    inputs = [None if v is None else t.value(v) for v in (weight, bias)]
    return t.op("layer_norm", x, *inputs, dims=dims, eps=float(eps))


@aten("layer_norm.default")
def _layer_norm(
    t: Translation,
    x: Value,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    return _layer_norm_op(t, x, shape, weight, bias, eps)


@aten("native_layer_norm.default")
def _native_layer_norm(
    t: Translation, x: Value, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[Any, ...]:
    return _layer_norm_op(t, x, shape, weight, bias, eps), None, None
