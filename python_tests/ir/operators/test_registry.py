"""What holds for every row of the table."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS, REQUIRED, Channels, operator, register
from dynprune_rt.ir.types import DTYPES
from python_tests.ir.operators import (
    test_convolution,
    test_elementwise,
    test_indexing,
    test_normalization,
    test_pooling,
    test_quantized,
    test_reductions,
    test_shape,
)
from python_tests.ir.operators.case import type_of

FAMILIES = (
    test_convolution,
    test_elementwise,
    test_indexing,
    test_normalization,
    test_pooling,
    test_quantized,
    test_reductions,
    test_shape,
)
CASES = [case for family in FAMILIES for case in family.CASES]

#: Operands that select among others: zeros in them do not make a zero.
SELECTORS = {"where": {0}, "gather": {1}, "scatter": {1}, "index_select": {1}}
WEIGHTS = {"conv2d": {1}, "linear": {1}, "matmul": {1}, "quantized_conv2d": {1, 2}}


def test_every_operator_is_compared_with_torch():
    assert {case.op for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize("row", OPERATORS.values(), ids=lambda row: row.name)
def test_defaults_are_canonical(row):
    for name, attribute in row.attrs.items():
        if attribute.default is not None and attribute.default is not REQUIRED:
            canonical = attribute.check(attribute.default)
            assert canonical == attribute.default and type(canonical) is type(attribute.default), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_canonical_attributes_are_a_fixed_point(case):
    """Lists, as JSON gives them, and canonical values mean the same."""
    row = OPERATORS[case.op]
    canonical = row.canonical_attrs(case.attrs)
    assert row.canonical_attrs(canonical) == canonical
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in canonical.items()}
    assert row.canonical_attrs(listed) == canonical


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unbatched_operands_give_unbatched_results(case):
    """Dropping the batch mark either is refused or gives the very shapes of the result."""
    row = OPERATORS[case.op]
    concrete = [None if array is None else type_of(array, batched=False) for array in case.inputs]
    try:
        types = row.infer_types(concrete, case.attrs)
    except VerificationError:
        return
    for inferred, array in zip(types, row.compute(case.inputs, case.attrs), strict=True):
        assert inferred.shape == array.shape and DTYPES[inferred.dtype] == array.dtype


@pytest.mark.parametrize("case", [c for c in CASES if OPERATORS[c.op].preserves_zero(c.attrs)], ids=str)
def test_zero_preserving_operators_preserve_zero(case):
    row = OPERATORS[case.op]
    keep = SELECTORS.get(case.op, set()) | WEIGHTS.get(case.op, set())
    inputs = [a if a is None or i in keep else np.zeros_like(a) for i, a in enumerate(case.inputs)]
    for out in row.compute(inputs, case.attrs):
        assert not out.any()


NOT_ZERO_PRESERVING = [
    case
    for case in CASES
    if OPERATORS[case.op].channels is Channels.POINTWISE
    and not OPERATORS[case.op].preserves_zero(case.attrs)
    and case.op != "affine"  # depends on the shift
    and case.inputs[0].dtype != np.int64  # a division by zero, undefined for integers
]


@pytest.mark.parametrize("case", NOT_ZERO_PRESERVING, ids=str)
def test_other_pointwise_operators_do_not(case):
    """The flag is not set too rarely: it would cost skips."""
    (out,) = OPERATORS[case.op].compute([np.zeros_like(a) for a in case.inputs], case.attrs)
    assert (np.isnan(out) | (out != 0)).all()


PER_CHANNEL = [c for c in CASES if OPERATORS[c.op].channels in (Channels.POINTWISE, Channels.SPATIAL)]


@pytest.mark.parametrize("case", PER_CHANNEL, ids=str)
def test_channels_do_not_mix(case):
    """A change of one channel changes that channel only."""
    row = OPERATORS[case.op]
    changed = list(case.inputs)
    for i in set(range(len(changed))) - case.unbatched:
        changed[i] = np.array(case.inputs[i])
        changed[i][:, 1] = changed[i][:, 0]
    for before, after in zip(row.compute(case.inputs, case.attrs), row.compute(changed, case.attrs), strict=True):
        np.testing.assert_array_equal(np.delete(before, 1, axis=1), np.delete(after, 1, axis=1))


def test_unknown_operator():
    with pytest.raises(VerificationError, match="unknown operator 'conv9d'"):
        operator("conv9d")


def test_a_name_is_taken_once():
    row = OPERATORS["relu"]
    with pytest.raises(ValueError, match="registered twice"):
        register(row)
