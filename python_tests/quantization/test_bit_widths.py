"""The allotment of bits to output channels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dynprune_rt.errors import QuantizationError
from dynprune_rt.ir.packed_weights import WIDTHS, packed_size
from dynprune_rt.quantization.bit_widths import allocate_bits, budget_of_bytes, budget_of_mean, given_bits, row_bits

SHAPES = {"a": (3, 16), "b": (2, 40)}


def tables(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: np.sort(random.exponential(1, (count, 3)), axis=1)[:, ::-1] for n, (count, _) in SHAPES.items()}


def cost(bits: dict[str, np.ndarray]) -> int:
    return sum(int(row_bits(SHAPES[n][1])[WIDTHS.index(b)]) for n, widths in bits.items() for b in widths.tolist())


def loss(table: dict[str, np.ndarray], bits: dict[str, np.ndarray]) -> float:
    return float(sum(table[n][k, WIDTHS.index(b)] for n, each in bits.items() for k, b in enumerate(each.tolist())))


@pytest.mark.parametrize("seed", range(4))
def test_no_allotment_of_its_size_does_less_damage(seed):
    table = tables(seed)
    for budget in (budget_of_mean(SHAPES, mean) for mean in (2, 3, 4.5, 6, 8)):
        found = allocate_bits(table, SHAPES, budget)
        spent = cost(found)
        assert spent <= budget
        every = product(*[WIDTHS] * sum(count for count, _ in SHAPES.values()))
        best = min(
            loss(table, bits)
            for bits in ({"a": np.array(w[:3], np.uint8), "b": np.array(w[3:], np.uint8)} for w in every)
            if cost(bits) <= budget
        )
        # One multiplier finds the hull of all allotments; between its corners it may leave one step unused.
        step = max(float((t[:, 0] - t[:, 2]).max()) for t in table.values())
        assert loss(table, found) <= best + step
    assert all((b == 8).all() for b in allocate_bits(table, SHAPES, budget_of_mean(SHAPES, 8)).values())


def test_damage_decides_and_useless_bits_stay_unspent():
    table = {"a": np.array([[9.0, 3, 0], [0, 0, 0], [1, 0.9, 0]]), "b": np.zeros((2, 3))}
    assert allocate_bits(table, SHAPES, 10**6)["a"].tolist() == [8, 2, 8]
    assert allocate_bits(table, SHAPES, 10**6)["b"].tolist() == [2, 2]
    smallest = cost({"a": np.full(3, 2), "b": np.full(2, 2)})
    assert allocate_bits(table, SHAPES, smallest + 40)["a"].tolist() == [4, 2, 2]


def test_a_width_that_is_worse_than_a_smaller_one_is_skipped():
    table = {"a": np.array([[5.0, 6.0, 0.0]] * 3), "b": np.zeros((2, 3))}
    assert 4 not in allocate_bits(table, SHAPES, budget_of_mean(SHAPES, 5))["a"].tolist()


def test_a_budget_of_bytes_is_that_of_the_packed_tensors():
    total = 130
    bits = allocate_bits(tables(), SHAPES, budget_of_bytes(SHAPES, total))
    size = sum(packed_size(b, SHAPES[n][1]) for n, b in bits.items())
    assert 110 < size <= total
    with pytest.raises(QuantizationError, match="too few"):
        allocate_bits(tables(), SHAPES, budget_of_bytes(SHAPES, 30))


def test_given_widths():
    bits = given_bits({"a": [8, 4, 2]}, SHAPES)
    assert bits["a"].tolist() == [8, 4, 2] and bits["b"].tolist() == [8, 8]
    assert given_bits({"b": 4}, SHAPES)["b"].tolist() == [4, 4]
    for wrong in ({"c": 4}, {"a": 3}, {"a": [8, 8]}):
        with pytest.raises(QuantizationError, match=r"'[ac]'"):
            given_bits(wrong, SHAPES)
