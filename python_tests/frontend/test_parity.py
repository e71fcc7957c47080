"""The check of a conversion: what is an error, and what rounding explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynprune_rt.errors import VerificationError
from dynprune_rt.frontend.capture import Captured, capture
from dynprune_rt.frontend.eager import EagerModel
from dynprune_rt.frontend.near_threshold import near_threshold
from dynprune_rt.frontend.parity import Runner, check_parity
from dynprune_rt.frontend.reference_values import reference_values
from dynprune_rt.frontend.translate import translate
from python_tests.frontend.equivalence import Model, run

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def prepared(model: nn.Module, image: torch.Tensor = IMAGE) -> tuple[Runner, Captured, EagerModel]:
    captured = capture(model, image)
    graph, _ = translate(captured)
    return lambda x: run(graph, torch.from_numpy(x)), captured, EagerModel(model, image, (), None)


def plain(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.second(m.first(x).relu()).mean((2, 3))


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"first": nn.Conv2d(3, 4, 3), "second": nn.Conv2d(4, 5, 1)}


def test_agreement() -> None:
    runner, captured, eager = prepared(Model(plain, **layers()))
    parity = check_parity(runner, captured, eager, IMAGE)
    assert parity.images == 2 + 1 + 2 + 3
    assert parity.max_error < 1e-6
    assert (parity.near_threshold, parity.rounding_sensitive, parity.notes) == (0, 0, [])


def test_a_wrong_kernel_is_an_error() -> None:
    """The translated graph agrees, so the fault is in what ran instead of it."""
    runner, captured, eager = prepared(Model(plain, **layers()))

    def wrong(x: np.ndarray) -> Sequence[np.ndarray]:
        return [y * 1.001 for y in runner(x)]

    with pytest.raises(VerificationError, match="agrees with the model layer by layer: an optimisation or a kernel"):
        check_parity(wrong, captured, eager, IMAGE)


def test_one_wrong_image_is_an_error() -> None:
    runner, captured, eager = prepared(Model(plain, **layers()))

    def wrong(x: np.ndarray) -> Sequence[np.ndarray]:
        (y,) = runner(x)
        y = y.copy()
        y[-1, 0] += 0.01 * (len(x) == 3)
        return [y]

    with pytest.raises(VerificationError, match="batch 3, image 2"):
        check_parity(wrong, captured, eager, IMAGE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_results_are_errors(value: float) -> None:
    runner, captured, eager = prepared(Model(plain, **layers()))

    def wrong(x: np.ndarray) -> Sequence[np.ndarray]:
        return [np.full_like(y, value) for y in runner(x)]

    with pytest.raises(VerificationError):
        check_parity(wrong, captured, eager, IMAGE)


def test_a_branch_on_the_batch_size_is_found_at_batch_one() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = plain(m, x)
        return y * 2 if x.shape[0] > 1 else y

    runner, captured, eager = prepared(Model(forward, **layers()))
    with pytest.raises(VerificationError, match="at batch 1 only"):
        check_parity(runner, captured, eager, IMAGE)


def test_a_translation_error_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a handler that translates relu wrongly, the first layer that differs is the relu."""
    from dynprune_rt.frontend import registry

    model = Model(plain, **layers())
    monkeypatch.setitem(registry.HANDLERS, "relu.default", lambda t, x: t.op("abs", x))
    runner, captured, eager = prepared(model)
    with pytest.raises(VerificationError, match=r"first layer that differs is equivalence.py:\d+, aten.relu.default"):
        check_parity(runner, captured, eager, IMAGE)


def test_eager_failing_at_batch_one_is_a_note() -> None:
    """SkipNet's squeeze()."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.second(m.first(x)).mean((2, 3), keepdim=True).squeeze()
        return y.softmax(1)

    runner, captured, eager = prepared(Model(forward, **layers()))
    parity = check_parity(runner, captured, eager, IMAGE)
    assert len(parity.notes) == 1
    assert parity.notes[0].startswith("the model itself fails at batch 1")


def test_a_batch_dropped_at_batch_one_is_a_note() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.second(m.first(x)).mean((2, 3), keepdim=True).squeeze()

    runner, captured, eager = prepared(Model(forward, **layers()))
    assert "drops the batch dimension" in check_parity(runner, captured, eager, IMAGE).notes[0]


def test_a_gate_at_its_threshold_is_counted() -> None:
    """The runner's gate falls on the other side for the one image whose value lies on the threshold."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.first(x)
        return y.mean((2, 3)) * (x.mean((1, 2, 3))[:, None] > m.threshold)

    threshold = IMAGE[1].mean() * (1 + 1e-6)
    model = Model(forward, **layers(), threshold=threshold.reshape(1))
    runner, captured, eager = prepared(model)

    def other_side(x: np.ndarray) -> Sequence[np.ndarray]:
        (y,) = runner(x)
        close = np.abs(x.mean((1, 2, 3)) - float(threshold)) < 1e-5 * abs(float(threshold))
        with torch.no_grad():
            gated = model.first(torch.from_numpy(x)).mean((2, 3)).numpy()
        return [np.where(close[:, None], np.where(y == 0, gated, 0), y).astype(np.float32)]

    parity = check_parity(other_side, captured, eager, IMAGE)
    assert parity.near_threshold == 1
    (place,) = parity.near_threshold_at
    assert place.startswith("test_parity.py:")


def test_ties_of_topk_are_counted_even_on_every_image() -> None:
    """FBS with a relu: which of the many zero saliencies are the losers decides whose shift is masked."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        saliency = (x.mean((2, 3)) - 100).relu()
        losers = saliency.topk(10, 1, largest=False, sorted=False)[1]
        return x.mean((2, 3)) + torch.arange(1.0, 33.0).expand(x.shape[0], -1).scatter(1, losers, 0)

    image = torch.randn(2, 32, 4, 4)
    parity = check_parity(*prepared(Model(forward), image), image)
    assert parity.near_threshold == parity.images == 8
    assert len(parity.near_threshold_at) == 1


def test_a_model_that_amplifies_rounding_is_told_from_an_error() -> None:
    """The difference of two large equal numbers: fp32 has no correct digit, in torch neither."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.first(x).mean((2, 3))
        return (y * 1e4 + 1e4).sin() + y

    runner, captured, eager = prepared(Model(forward, **layers()))

    def other_order(x: np.ndarray) -> Sequence[np.ndarray]:
        return runner(np.nextafter(x, np.float32(np.inf)))

    parity = check_parity(other_order, captured, eager, IMAGE)
    assert parity.rounding_sensitive > 0
    assert parity.rounding_error > 1e-5


@pytest.mark.parametrize(
    ("decide", "close", "far"),
    [
        (lambda x: x > 0.5, [[0.5 + 1e-6, 1.0]], [[0.5, 1.0]]),  # equal is equal in every order of summation
        (lambda x: x.round(), [[1.5 + 1e-6, 3.0]], [[1.4, 3.0]]),
        (lambda x: x.floor(), [[1.0 - 1e-6, 3.0]], [[1.1, 3.0]]),
        (lambda x: x.sign(), [[1e-6, 1.0]], [[0.1, 1.0]]),
        (lambda x: x.topk(1)[1], [[1.0, 1.0 + 1e-6]], [[1.0, 1.1]]),
        (lambda x: x.topk(1)[1], [[1.0, 1.0]], [[1.0, 0.0]]),
        (lambda x: x.argmax(1), [[1.0, 1.0 + 1e-6]], [[1.0, 1.1]]),
        (lambda x: x.max(1)[1], [[1.0, 1.0 + 1e-6]], [[1.0, 1.1]]),
        (lambda x: x.kthvalue(1, 1)[1], [[1.0, 1.0 + 1e-6]], [[1.0, 1.1]]),
        (lambda x: x.sort(1)[1], [[1.0, 1.0 + 1e-6]], [[1.0, 1.1]]),
    ],
)
def test_decisions_within_rounding(decide: Any, close: list[list[float]], far: list[list[float]]) -> None:
    model = Model(lambda m, x: decide(x) * 2)
    captured = capture(model, torch.zeros(2, 2))
    x = torch.tensor(far + close)
    values = reference_values(captured.program, [x])
    assert list(near_threshold(captured.program, values)) == [1]


def test_reference_values_in_double_precision() -> None:
    captured = capture(Model(lambda m, x: (x / 3).float() + torch.ones_like(x)), torch.zeros(2, 2))
    values = reference_values(captured.program, [torch.ones(1, 2)], torch.float64)
    result = list(values.values())[-1]
    assert result.dtype is torch.float64
    assert float(result[0, 0]) == 1 / 3 + 1
