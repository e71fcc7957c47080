"""Operators on torch tensors against the reference, over the cases of the CPU's flat operators."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from dynprune_rt.backends.cuda.torch_ops import TORCH_OPS, evaluate
from dynprune_rt.ir import interpreter
from dynprune_rt.ir.operators import OPERATORS
from python_tests.backends.test_flat_ops import CASES, ROUNDED, Case, _node

#: torch rounds these where the reference is exact.
TORCH_ROUNDS = {*ROUNDED.split(), "sqrt"}


def _defined(case: Case) -> bool:
    """False where torch's result is not defined, or differs from itself between vector and scalar code."""
    operand = case.operands[0]
    assert operand is not None
    out_of_range_cast = case.op == "cast" and operand.dtype == "f32"
    infinite_gelu = case.op == "gelu" and operand.values == "special"
    return not out_of_range_cast and not infinite_gelu


_TESTED = [case for case in CASES if _defined(case)]


def test_the_table_covers_every_operator() -> None:
    # Quantized programs run on the CPU only.
    assert set(TORCH_OPS) == {name for name in OPERATORS if name != "conv2d" and "quantize" not in name}


@pytest.mark.parametrize("case", _TESTED, ids=str)
def test_operator(case: Case) -> None:
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    arrays = [None if o is None else o.draw(rng) for o in case.operands]
    node = _node(case, arrays)
    with np.errstate(all="ignore"):
        expected = interpreter.evaluate(node, arrays)
    actual = evaluate(node, [None if a is None else torch.from_numpy(np.array(a)) for a in arrays])
    assert len(actual) == len(expected)
    for tensor, array in zip(actual, expected, strict=True):
        tolerance = 1e-5 if case.op in TORCH_ROUNDS else 0.0
        np.testing.assert_allclose(tensor.numpy(), array, rtol=tolerance, atol=tolerance, strict=True)
