"""Every supported ATen operator against torch: one traced module per family, one test per function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dynprune_rt.frontend.registry import HANDLERS
from python_tests.frontend.equivalence import Functions, assert_close, ops, run, to_graph

torch.manual_seed(0)
W = {
    "conv": torch.randn(6, 4, 3, 3),
    "grouped": torch.randn(8, 1, 3, 3),
    "conv1d": torch.randn(4, 4, 3),
    "even": torch.randn(4, 4, 2, 2),
    "linear": torch.randn(7, 4),
    "matrix": torch.randn(4, 7),
    "vector": torch.rand(4) + 0.5,
    "slope": torch.rand(4),
    "index": torch.tensor([2, 0, 3, 3]),
}

Function = Callable[[Any, torch.Tensor], torch.Tensor]


def put(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    y = x.clone()
    y[index] = value
    return y


def of_input(function: Callable[[torch.Tensor], torch.Tensor]) -> Function:
    return lambda module, x: function(x)


ELEMENTWISE: dict[str, Function] = {
    **{
        name: of_input(f)
        for name, f in {
            "relu": F.relu,
            "relu6": F.relu6,
            "hardtanh": lambda x: F.hardtanh(x, 0, 1),
            "clamp": lambda x: x.clamp(-0.5, 0.25),
            "clamp_min": lambda x: x.clamp(min=0),
            "clamp_max": lambda x: x.clamp(max=0.5),
            "clamp_crossed": lambda x: x.clamp(0.5, -0.5),
            "clamp_tensor": lambda x: torch.clamp(x, min=x.flip(1), max=torch.tensor(0.7)),
            "neg": torch.neg,
            "abs": torch.abs,
            "sqrt": lambda x: x.abs().sqrt(),
            "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
            "exp": torch.exp,
            "log": lambda x: x.abs().log(),
            "reciprocal": lambda x: (x.abs() + 0.1).reciprocal(),
            "sigmoid": torch.sigmoid,
            "tanh": torch.tanh,
            "silu": F.silu,
            "hardswish": F.hardswish,
            "hardsigmoid": F.hardsigmoid,
            "mish": F.mish,
            "softplus": F.softplus,
            "softplus_beta": lambda x: F.softplus(x, beta=2.0),
            "gelu": F.gelu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
            "elu": lambda x: F.elu(x, 0.7),
            "selu": F.selu,
            "celu": lambda x: F.celu(x, 0.6),
            "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
            "hardshrink": lambda x: F.hardshrink(x, 0.4),
            "softshrink": lambda x: F.softshrink(x, 0.4),
            "threshold": lambda x: F.threshold(x, 0.2, -1.0),
            "threshold_zero": lambda x: F.threshold(x, 0.0, 0.0),
            "round": lambda x: torch.round(x * 3),
            "floor": lambda x: torch.floor(x * 3),
            "ceil": lambda x: torch.ceil(x * 3),
            "trunc": lambda x: torch.trunc(x * 3),
            "sign": torch.sign,
            "erf": torch.erf,
            "sin": torch.sin,
            "cos": torch.cos,
            "square": torch.square,
            "heaviside": lambda x: torch.heaviside(x, torch.tensor(0.5)),
            "dropout": lambda x: F.dropout(x, training=False),
            "detach": lambda x: x.detach() * 2,
            "isnan": lambda x: torch.isnan(x / (x > 0)),
            "isinf": lambda x: torch.isinf(x / (x > 0)),
            "nan_to_num": lambda x: torch.nan_to_num(x / (x > 0), 1.0, 2.0, -2.0),
            "add_scalar": lambda x: x + 1,
            "add_alpha": lambda x: torch.add(x, x.flip(1), alpha=0.5),
            "sub_scalar": lambda x: x - 0.3,
            "rsub": lambda x: 1 - x,
            "rsub_alpha": lambda x: torch.rsub(x, 2.0, alpha=3),
            "mul_bool": lambda x: x * (x > 0),
            "div_int": lambda x: (x > 0).long() / 3,
            "div_scalar": lambda x: x / 3,
            "div_floor": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
            "div_trunc": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
            "floor_divide": lambda x: x // 0.3,
            "remainder": lambda x: x % 0.7,
            "pow_2": lambda x: x**2,
            "pow_half": lambda x: x.abs() ** 0.5,
            "pow_3": lambda x: x**3,
            "pow_minus_1": lambda x: (x.abs() + 0.1) ** -1,
            "pow_tensor": lambda x: x.abs() ** x.flip(1),
            "pow_base": lambda x: 2**x,
            "maximum": lambda x: torch.maximum(x, x.flip(1)),
            "minimum": lambda x: torch.minimum(x, torch.tensor(0.1)),
            "max_other": lambda x: torch.max(x, x.flip(1)),
            "compare": lambda x: (x > 0.5) | ~(x <= -0.5) & (x != 0) ^ (x >= 1),
            "compare_tensors": lambda x: (x < x.flip(1)).float() + (x == x).int(),
            "logical": lambda x: torch.logical_and(x, x > 1) | torch.logical_not(torch.logical_xor(x, x > 0)),
            "bool_sum": lambda x: (x > 0) + (x < -1),
            "bool_product": lambda x: (x > 0) * (x < 1),
            "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
            "where_scalar": lambda x: torch.where(x > 0, 1.0, x),
            "where_scalars": lambda x: torch.where(x > 0, 1.0, 0.0),
            "masked_fill": lambda x: x.masked_fill(x < 0.3, 0.0),
            "masked_fill_": lambda x: x.clone().masked_fill_(x < 0.3, -1.0),
            "addcmul": lambda x: torch.addcmul(x, x, x.flip(1), value=0.5),
            "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5),
            "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
            "cast_int": lambda x: (x * 3).long(),
            "cast_int32": lambda x: (x * 3).int() * 2,
            "cast_bool": lambda x: x.relu().bool(),
            "type_as": lambda x: (x > 0).type_as(x),
            "straight_through": lambda x: (x > 0).float() - x.sigmoid().detach() + x.sigmoid(),
            "glu": lambda x: F.glu(x, 1),
            "full_like": lambda x: x * torch.full_like(x, 0.5),
            "ones_like": lambda x: torch.ones_like(x) - x,
            "scalar_tensor": lambda x: x * torch.tensor(0.5),
            "new_zeros": lambda x: x + x.new_zeros(x.shape[0], 4, 1, 1),
        }.items()
    },
    "prelu": lambda m, x: F.prelu(x, m.w_slope),
    "broadcast": lambda m, x: x * m.w_vector.view(1, -1, 1, 1) + m.w_vector.view(-1, 1, 1),
    "batch_norm": lambda m, x: F.batch_norm(x, m.w_slope, m.w_vector, m.w_vector, m.w_slope),
    "batch_norm_plain": lambda m, x: F.batch_norm(x, m.w_slope, m.w_vector),
    "instance_norm": lambda m, x: F.instance_norm(x, weight=m.w_vector, bias=m.w_slope),
    "instance_norm_stats": lambda m, x: F.instance_norm(x, m.w_slope, m.w_vector, use_input_stats=False),
    "group_norm": lambda m, x: F.group_norm(x, 2, m.w_vector, m.w_slope),
    "layer_norm": lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (4,), m.w_vector, m.w_slope),
}

SHAPES: dict[str, Function] = {
    "view": lambda m, x: x.view(x.shape[0], -1),
    "view_minus_1": lambda m, x: x.view(-1, 4 * 36),
    "reshape": lambda m, x: x.permute(0, 2, 3, 1).reshape(x.size(0), 36, 4),
    "flatten": lambda m, x: x.flatten(1),
    "flatten_last": lambda m, x: x.flatten(2),
    "unflatten": lambda m, x: x.unflatten(1, (2, 2)),
    "squeeze": lambda m, x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2),
    "unsqueeze": lambda m, x: x.mean((2, 3))[:, :, None, None] * x,
    "permute": lambda m, x: x.permute(0, 3, 1, 2),
    "transpose": lambda m, x: x.transpose(1, -1),
    "expand_as": lambda m, x: x.mean((2, 3), keepdim=True).expand_as(x) * x,
    "expand": lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 5, 3),
    "repeat": lambda m, x: x.repeat(1, 2, 1, 3),
    "repeat_interleave": lambda m, x: x.mean((2, 3)).repeat_interleave(3, dim=1),
    "slice": lambda m, x: x[:, 1:3, ::2, -4:],
    "slice_batch": lambda m, x: x[:, :, 1],
    "select": lambda m, x: x[:, -1] + x.select(1, 0),
    "narrow": lambda m, x: x.narrow(1, 1, 2),
    "split": lambda m, x: torch.cat(x.split(3, 1)[::-1], 1),
    "split_sizes": lambda m, x: x.split([1, 3], 1)[1],
    "chunk": lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "unbind": lambda m, x: x.unbind(1)[2],
    "stack": lambda m, x: torch.stack([x.mean(1), x.amax(1)], 1),
    "cat": lambda m, x: torch.cat([x, x * 2, x[:, :1]], 1),
    "cat_rows": lambda m, x: torch.cat([x, x.flip(2)], 2),
    "cat_zeros": lambda m, x: torch.cat([x, torch.zeros(x.shape[0], 3, 6, 6)], 1),
    "cat_zeros_both": lambda m, x: torch.cat(
        [x.new_zeros(x.shape[0], 1, 6, 6), x, x.new_zeros(x.shape[0], 2, 6, 6)], 1
    ),
    "cat_constants": lambda m, x: torch.cat([x.mean((2, 3)), m.w_vector.expand(x.shape[0], 4)], 1),
    "index_select": lambda m, x: x.index_select(1, m.w_index),
    "index_list": lambda m, x: x[:, [2, 0]],
    "index_rows": lambda m, x: x[:, :, m.w_index],
    "flip": lambda m, x: x.flip(1, 3),
    "roll": lambda m, x: x.roll((1, -2), (1, 2)),
    "shuffle": lambda m, x: x.view(-1, 2, 2, 6, 6).transpose(1, 2).reshape(-1, 4, 6, 6),
    "channel_shuffle": lambda m, x: F.channel_shuffle(x, 2),
    "pixel_shuffle": lambda m, x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda m, x: F.pixel_unshuffle(x, 2),
    "pad": lambda m, x: F.pad(x, (1, 2, 0, 3)),
    "pad_channels": lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 1), value=0.5),
    "pad_crop": lambda m, x: F.pad(x, (-1, 2, 1, -2)),
    "pad_reflect": lambda m, x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "pad_replicate": lambda m, x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
    "pad_circular": lambda m, x: F.pad(x, (1, 2, 2, 1), mode="circular"),
    "assign_slice": lambda m, x: put(x, (slice(None), slice(1, 3)), 0.5),
    "assign_slice_tensor": lambda m, x: put(x, (slice(None), slice(None, 2)), x[:, 2:] * 2),
    "assign_channel": lambda m, x: put(x, (slice(None), 1), x[:, 0]),
    "assign_strided": lambda m, x: put(x, (slice(None), slice(None), slice(None, None, 2)), x[:, :, 1::2]),
    "assign_all": lambda m, x: put(x, slice(None), x * 2),
    "add_to_slice": lambda m, x: x.clone()[:, :2].add_(x[:, 2:]),
    "einsum": lambda m, x: torch.einsum("nchw,nc->nchw", x, x.mean((2, 3))),
    "einsum_sum": lambda m, x: torch.einsum("nchw,kc->nkhw", x, m.w_linear),
    "einsum_permuted": lambda m, x: torch.einsum("nchw,nh->nwc", x, x.mean((1, 3))),
    "as_strided": lambda m, x: x.mean((2, 3)).as_strided((x.shape[0], 4, 1, 1), (4, 1, 1, 1)),
}

REDUCTIONS: dict[str, Function] = {
    "mean": lambda m, x: x.mean((2, 3)),
    "mean_keepdim": lambda m, x: x.mean((-1, -2), keepdim=True),
    "mean_one_by_one": lambda m, x: x.mean(3).mean(2),
    "mean_one_by_one_keepdim": lambda m, x: x.mean(2, keepdim=True).mean(3, keepdim=True),
    "mean_flat": lambda m, x: x.view(x.shape[0], 4, -1).mean(2),
    "mean_channels": lambda m, x: x.mean(1, keepdim=True),
    "sum": lambda m, x: x.sum((2, 3)),
    "sum_bool": lambda m, x: (x > 0).sum(1),
    "sum_all": lambda m, x: x.sum((1, 2, 3)),
    "mean_abs": lambda m, x: x.abs().mean((2, 3)),
    "sum_abs": lambda m, x: x.abs().sum((2, 3)),
    "sum_squares": lambda m, x: (x * x).sum((2, 3)),
    "mean_squares": lambda m, x: x.pow(2).mean((2, 3), keepdim=True),
    "norm": lambda m, x: x.norm(dim=(2, 3)),
    "norm_1": lambda m, x: x.norm(p=1, dim=(2, 3)),
    "norm_flat": lambda m, x: x.flatten(2).norm(p=2, dim=2),
    "norm_inf": lambda m, x: torch.linalg.vector_norm(x, float("inf"), dim=(2, 3)),
    "norm_3": lambda m, x: torch.linalg.vector_norm(x, 3, dim=(2, 3)),
    "norm_0": lambda m, x: torch.linalg.vector_norm(x.relu(), 0, dim=(2, 3)),
    "root": lambda m, x: x.square().sum((2, 3)).sqrt(),
    "normalize": lambda m, x: F.normalize(x.mean((2, 3)), dim=1),
    "amax": lambda m, x: x.amax((2, 3)),
    "amin": lambda m, x: x.amin((2, 3), keepdim=True),
    "amax_abs": lambda m, x: x.abs().amax((2, 3)),
    "max_dim": lambda m, x: x.flatten(2).max(2).values,
    "max_index": lambda m, x: x.flatten(2).max(2, keepdim=True).indices,
    "min_dim": lambda m, x: x.min(1)[0],
    "max_twice": lambda m, x: x.max(3)[0].max(2)[0],
    "prod": lambda m, x: x.prod(1),
    "any": lambda m, x: (x > 1).any(1),
    "all": lambda m, x: (x > -2).flatten(1).all(1),
    "var": lambda m, x: x.var((2, 3)),
    "var_biased": lambda m, x: x.var(1, unbiased=False, keepdim=True),
    "std": lambda m, x: x.std((2, 3)),
    "var_mean": lambda m, x: torch.var_mean(x, (2, 3))[1],
    "softmax": lambda m, x: x.softmax(1),
    "log_softmax": lambda m, x: F.log_softmax(x.mean((2, 3)), -1),
    "softmin": lambda m, x: F.softmin(x, 1),
    "cumsum": lambda m, x: x.cumsum(1),
    "argmax": lambda m, x: x.argmax(1),
    "argmin": lambda m, x: x.mean((2, 3)).argmin(-1, keepdim=True),
    "topk": lambda m, x: x.mean((2, 3)).topk(2)[0],
    "topk_indices": lambda m, x: x.topk(3, 2, largest=False).indices,
    "sort": lambda m, x: x.sort(1, descending=True).values,
    "argsort": lambda m, x: x.argsort(3),
    "sort_stable": lambda m, x: torch.sort(x, stable=True, dim=1)[1],
    "kthvalue": lambda m, x: x.kthvalue(2, 1)[0],
    "median": lambda m, x: x.median(2).values,
    "max_pool": lambda m, x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_ceil": lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_pool_dilated": lambda m, x: F.max_pool2d(x, 2, 1, dilation=2),
    "max_pool_all": lambda m, x: F.max_pool2d(x, 6),
    "max_pool1d": lambda m, x: F.max_pool1d(x.flatten(2), 4, 2, 1),
    "avg_pool": lambda m, x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool_plain": lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool_divisor": lambda m, x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "avg_pool_all": lambda m, x: F.avg_pool2d(x, x.shape[2]),
    "avg_pool1d": lambda m, x: F.avg_pool1d(x.flatten(2), 4, 2, 1),
    "adaptive_avg": lambda m, x: F.adaptive_avg_pool2d(x, (2, 5)),
    "adaptive_avg_1": lambda m, x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_same": lambda m, x: F.adaptive_avg_pool2d(x, 6) + 1,
    "adaptive_avg_1d": lambda m, x: F.adaptive_avg_pool1d(x.flatten(2), 1),
    "adaptive_max": lambda m, x: F.adaptive_max_pool2d(x, 4),
    "adaptive_max_1": lambda m, x: F.adaptive_max_pool2d(x, 1),
    "nearest": lambda m, x: F.interpolate(x, scale_factor=2),
    "nearest_size": lambda m, x: F.interpolate(x, size=(9, 4)),
    "nearest_scale": lambda m, x: F.interpolate(x, scale_factor=1.7),
    "nearest_of_1x1": lambda m, x: F.interpolate(x.mean((2, 3), keepdim=True), size=(6, 6)) * x,
    "bilinear": lambda m, x: F.interpolate(x, size=(9, 4), mode="bilinear"),
    "bilinear_corners": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "conv": lambda m, x: F.conv2d(x, m.w_conv, stride=2, padding=1),
    "conv_dilated": lambda m, x: F.conv2d(x, m.w_conv, dilation=2, padding=(2, 1)),
    "conv_depthwise": lambda m, x: F.conv2d(x, m.w_grouped, groups=4, padding=1),
    "conv_same": lambda m, x: F.conv2d(x, m.w_conv, padding="same"),
    "conv_same_even": lambda m, x: F.conv2d(x, m.w_even, padding="same"),
    "conv_padded": lambda m, x: F.conv2d(F.pad(x, (0, 1, 0, 1)), m.w_conv, stride=2),
    "conv_of_1x1": lambda m, x: F.conv2d(x.mean((2, 3), keepdim=True), m.w_conv[:, :, :1, :1]).relu() * 2,
    "conv1d": lambda m, x: F.conv1d(x.flatten(2), m.w_conv1d, padding=1, stride=2),
    "conv1d_same": lambda m, x: F.conv1d(x.flatten(2), m.w_conv1d, padding="same"),
    "conv_expression": lambda m, x: F.conv2d(x, m.w_conv * (m.w_conv > 0)),
    "linear": lambda m, x: F.linear(x.mean((2, 3)), m.w_linear),
    "linear_3d": lambda m, x: F.linear(x.flatten(2).transpose(1, 2), m.w_linear),
    "matmul": lambda m, x: x.mean((2, 3)) @ m.w_matrix,
    "mm": lambda m, x: torch.mm(x.mean((2, 3)), m.w_linear.t()),
    "addmm": lambda m, x: torch.addmm(m.w_linear[:, 0], x.mean((2, 3)), m.w_matrix, beta=0.5, alpha=2),
    "bmm": lambda m, x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)),
    "matmul_batched": lambda m, x: x @ x.transpose(2, 3),
    "attention": lambda m, x: F.scaled_dot_product_attention(x, x.flip(1), x),
}

INDEXING: dict[str, Function] = {
    "gather": lambda m, x: x.mean((2, 3)).gather(1, x.mean((2, 3)).argsort(1)),
    "scatter_value": lambda m, x: x.mean((2, 3)).scatter(1, x.mean((2, 3)).topk(2)[1], 0.0),
    "scatter_ones": lambda m, x: torch.ones_like(x.mean((2, 3))).scatter_(1, x.mean((2, 3)).topk(2)[1], 0),
    "scatter_source": lambda m, x: torch.zeros(x.shape[0], 4).scatter_(1, x.mean((2, 3)).topk(2)[1], x.mean((2, 3))),
    "one_hot": lambda m, x: F.one_hot(x.mean((2, 3)).argmax(1), 4),
    "bool_assign": lambda m, x: put(x, x < 0.3, 0.0),
    "bool_assign_ones": lambda m, x: put(torch.ones_like(x), x < 0.3, 0.0),
    "bool_assign_vector_mask": lambda m, x: put(x, x.mean((2, 3)) > 0, 0.0),
    "bool_assign_selected": lambda m, x: put(torch.zeros_like(x), x > 0.3, x[x > 0.3]),
    "bool_assign_two": lambda m, x: put(put(x, x < 0.3, 0.0), x > 0.3, 1.0),
    "arange_gather": lambda m, x: x.mean((2, 3))[torch.arange(x.shape[0]), x.mean((2, 3)).argmax(1)],
    "arange_gather_columns": lambda m, x: x.mean((2, 3))[
        torch.arange(x.shape[0]).unsqueeze(1), x.mean((2, 3)).topk(2)[1]
    ],
    "arange_assign": lambda m, x: put(
        torch.zeros(x.shape[0], 4), (torch.arange(x.shape[0]), x.mean((2, 3)).argmax(1)), 1.0
    ),
    "arange_assign_columns": lambda m, x: put(
        x.mean((2, 3)), (torch.arange(x.shape[0])[:, None], x.mean((2, 3)).topk(2)[1]), 0.0
    ),
    "constant_gather": lambda m, x: (
        torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(x.shape[0], 4).gather(1, x.mean((2, 3)).argmax(1, keepdim=True))
    ),
}

FAMILIES = {"elementwise": ELEMENTWISE, "shapes": SHAPES, "reductions": REDUCTIONS, "indexing": INDEXING}


@pytest.fixture(scope="module", params=[(f, c) for f in FAMILIES for c in (False, True)], ids=str)
def results(request: pytest.FixtureRequest) -> tuple[dict[str, Function], dict[int, Any], dict[int, Any]]:
    """(functions, torch's results, the graph's results) of a family, by batch size."""
    family, canonical = request.param
    functions = FAMILIES[family]
    graph = to_graph(module(functions), torch.randn(2, 4, 6, 6), outputs=None, canonical=canonical)
    inputs = {batch: torch.randn(batch, 4, 6, 6) for batch in (1, 2, 3)}
    with torch.no_grad():
        expected = {batch: module(functions)(x.clone()) for batch, x in inputs.items()}
    return functions, expected, {batch: run(graph, x) for batch, x in inputs.items()}


def module(functions: dict[str, Function]) -> Functions:
    made = Functions(functions)
    for name, tensor in W.items():
        made.register_buffer(f"w_{name}", tensor)
    return made


def test_functions_agree_with_torch(results: Any) -> None:
    """Every function of the family, translated and in canonical form, at batches 1, 2 and 3."""
    functions, expected, actual = results
    for batch in (1, 2, 3):
        for name, value in zip(functions, actual[batch], strict=True):
            assert_close(value, expected[batch][name], f"{name} at batch {batch}")


def test_handlers_name_existing_overloads() -> None:
    """A misspelt overload would never be found."""
    for overload in HANDLERS:
        packet = overload.partition(".")[0]
        assert hasattr(torch.ops.aten, packet), overload


def test_reductions_over_maps_are_canonical() -> None:
    """Whatever the spelling, a reduction over H and W is one spatial_reduce."""
    names = [n for n in REDUCTIONS if n.startswith(("mean", "sum_", "norm", "root", "amax", "amin"))]
    names = [n for n in names if n not in ("mean_channels", "sum_bool", "sum_all", "norm_3", "norm_0", "normalize")]
    graph = to_graph(module({n: REDUCTIONS[n] for n in names}), torch.randn(2, 4, 6, 6), outputs=None)
    assert set(ops(graph)) == {"spatial_reduce", "reshape", "div"}
    assert {n.attrs["kind"] for n in graph.nodes if n.op == "spatial_reduce"} == {
        *("mean", "sum_abs", "mean_abs", "sum_squares", "l2", "max", "min", "max_abs")
    }


def test_shuffles_are_index_selects() -> None:
    names = ["shuffle", "channel_shuffle", "index_select", "index_list", "repeat_interleave"]
    graph = to_graph(module({n: SHAPES[n] for n in names}), torch.randn(2, 4, 6, 6), outputs=None)
    assert set(ops(graph)) == {"index_select", "spatial_reduce"}
    assert np.array_equal(graph.constant(graph.nodes[0].inputs[1]), [0, 2, 1, 3])
