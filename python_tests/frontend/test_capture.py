"""Every habit of published models that stops or misleads torch.export: answered, or refused by name and line."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynprune_rt.errors import ConversionError
from dynprune_rt.frontend.capture import capture
from dynprune_rt.frontend.exported_graph import feeding_nodes, operator_name
from python_tests.frontend.equivalence import Model, assert_close, assert_equivalent, run, to_graph

IMAGE = torch.randn(1, 3, 6, 6)


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3)


class Forward(nn.Module):
    """A model whose forward (and so its line) is in this file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.eval()


class BranchOnValues(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if y.sum() > 0:
            y = y * 2
        return y


class LoopOverImages(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.stack([y[i] * 2 for i in range(x.shape[0])])


class Noise(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + torch.rand_like(y)


class GumbelGate(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y * F.gumbel_softmax(y.mean((2, 3)), hard=True)[:, :, None, None]


class LiveDropout(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return F.dropout(y)


class ItemOfValues(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y * y.max().item()


class WidthOfValues(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = int(x.mean((2, 3)).argmax(1)[0]) + 1
        return F.conv2d(x, self.conv.weight[:width])


class NumpyInForward(Forward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * float(x.numpy().mean())


def line_of(cls: type, text: str) -> str:
    """ "test_capture.py:57": where ``text`` stands in the class."""
    lines, first = inspect.getsourcelines(cls)
    return f"test_capture.py:{first + next(i for i, line in enumerate(lines) if text in line)}"


@pytest.mark.parametrize(
    ("cls", "text", "message"),
    [
        (BranchOnValues, "if y.sum", "branch depends on the values"),
        (LoopOverImages, "for i in range", "fixes the batch size"),
        (Noise, "rand_like", "rand_like.* random numbers"),
        (GumbelGate, "gumbel", "random numbers"),
        (LiveDropout, "F.dropout", "native_dropout.*training=self.training"),
        (ItemOfValues, ".item()", ".item()"),
        (WidthOfValues, "int(x", "depends on the values of the images"),
        (NumpyInForward, "numpy()", "NumPy"),
    ],
)
def test_refusals_name_the_line(
    cls: type[Forward], text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConversionError, match=message) as error:
        capture(cls(), IMAGE)
    assert line_of(cls, text) in str(error.value)
    assert capsys.readouterr().err == ""


def test_the_data_of_a_tensor_is_its_detached_self() -> None:
    """ManiDP: mask_before.data < threshold."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x)
        g = y.mean((2, 3))
        mask = torch.ones_like(g)
        mask[g.data < m.threshold] = 0
        return y * mask[:, :, None, None]

    assert_equivalent(Model(forward, conv=conv(), threshold=torch.tensor([0.1])), IMAGE)


def test_cuda_calls_are_ignored() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x).cuda().to("cuda", non_blocking=True)
        return y.to(torch.device("cuda"), torch.float32) * 2

    graph = to_graph(Model(forward, conv=conv()), torch.randn(2, 3, 6, 6))
    assert [n.op for n in graph.nodes] == ["conv2d", "mul"]


@pytest.mark.parametrize(
    "read",
    [
        lambda m: int(m.count[0]) > 1,
        lambda m: m.count[0].item() > 1,
        lambda m: bool((m.count > 1).all()),
        lambda m: m.count.tolist() == [2.0, 3.0],
        lambda m: float(m.conv.weight.detach().abs().sum()) > 0,
    ],
)
def test_scalars_of_constants_have_their_value(read: Any) -> None:
    """DGC: ``if int(self.count[0]) > 0``."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x)
        return y * 3 if read(m) else y

    assert_equivalent(Model(forward, conv=conv(), count=torch.tensor([2.0, 3.0])), IMAGE)


def test_scalars_written_from_the_input_are_not_constant() -> None:
    """A fresh tensor that received a value computed from the image depends on it."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        buffer = torch.zeros(2)
        buffer[0] = x.sum()
        return m.conv(x) * 3 if bool(buffer[0] > 0) else m.conv(x)

    with pytest.raises(ConversionError, match="branch depends on the values"):
        capture(Model(forward, conv=conv()), IMAGE)


def test_scalars_that_follow_the_batch_are_not_constant() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x)
        return y * 3 if bool(torch.tensor(x.shape[0]) > 2) else y

    with pytest.raises(ConversionError):
        capture(Model(forward, conv=conv()), IMAGE)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_example_batch(batch: int) -> None:
    assert_equivalent(Model(lambda m, x: m.conv(x).relu(), conv=conv()), torch.randn(batch, 3, 6, 6))


def test_squeeze_keeps_the_batch() -> None:
    """SkipNet: squeeze() breaks eager at batch 1; the program keeps the batch."""
    model = Model(lambda m, x: m.conv(x).mean((2, 3), keepdim=True).squeeze(), conv=conv())
    graph = to_graph(model, IMAGE)
    with torch.no_grad():
        assert_close(run(graph, IMAGE)[0], model(IMAGE)[None])
        x = torch.randn(3, 3, 6, 6)
        assert_close(run(graph, x)[0], model(x))


def test_auxiliary_outputs_and_statistics_vanish() -> None:
    """CGNet counts ones with a boolean index; that needs assertions and unbacked sizes, and feeds no output."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        y = m.conv(x)
        mask = y.mean((2, 3)) > 0
        ones = mask[mask > 0].numel()
        return y * mask[:, :, None, None], {"ones": torch.tensor(1) * ones, "mask": mask}

    captured = capture(Model(forward, conv=conv()), IMAGE)
    names = [operator_name(n) for n in feeding_nodes(captured.program) if n.op == "call_function"]
    views = {"unsqueeze.default", "slice.Tensor"}
    assert [n for n in names if n not in views] == ["conv2d.default", "mean.dim", "gt.Scalar", "mul.Tensor"]
    assert captured.output_paths == ["[0]"]
    assert captured.left_out == ["[1]['ones']", "[1]['mask']"]


OUTPUTS = Model(lambda m, x: {"logits": m.conv(x), "more": (x * 2, [x.mean((2, 3))])}, conv=conv())


@pytest.mark.parametrize(
    ("selector", "paths"),
    [
        (0, ["['logits']"]),
        (2, ["['more'][1][0]"]),
        ("logits", ["['logits']"]),
        ("['more'][0]", ["['more'][0]"]),
        ((2, 0), ["['more'][1][0]", "['logits']"]),
        (None, ["['logits']", "['more'][0]", "['more'][1][0]"]),
    ],
)
def test_outputs_are_selected_by_index_or_key(selector: Any, paths: list[str]) -> None:
    assert capture(OUTPUTS, IMAGE, outputs=selector).output_paths == paths


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (3, "out of range; the model returns 0: \\['logits'\\] \\[2, 4, 4, 4\\], 1: "),
        (-1, "out of range"),
        ("loss", "no output 'loss'"),
        ((), "selects nothing"),
        ((0, 0), "twice"),
        ((0.5,), "0.5"),
    ],
)
def test_wrong_selectors(selector: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        capture(OUTPUTS, IMAGE, outputs=selector)


def test_outputs_without_tensor_are_refused() -> None:
    with pytest.raises(ConversionError, match="returns no tensor"):
        capture(Model(lambda m, x: 3), IMAGE)


def test_outputs_that_ignore_the_input_are_refused() -> None:
    with pytest.raises(ConversionError, match="do not depend on the input"):
        capture(Model(lambda m, x: m.b * 2, b=torch.ones(3)), IMAGE)


def test_extra_arguments_are_bound() -> None:
    """Python numbers, tensors and containers, which models append to."""

    def forward(m: Any, x: torch.Tensor, scale: float, meta: dict[str, Any], offset: Any = None) -> torch.Tensor:
        meta["masks"].append(x > 0)
        return m.conv(x) * scale * meta["gain"] + offset

    model = Model(forward, conv=conv())
    meta = {"masks": [], "gain": torch.tensor(2.0), "name": "x"}
    captured_args = {"args": (0.5, meta), "kwargs": {"offset": torch.ones(4, 1, 1)}}
    graph = to_graph(model, IMAGE, **captured_args)
    assert meta["masks"] == []
    with torch.no_grad():
        expected = model(IMAGE, 0.5, meta, offset=torch.ones(4, 1, 1))
    assert_close(run(graph, IMAGE)[0], expected)


def test_labels_follow_the_batch_and_may_not_feed_an_output() -> None:
    def forward(m: Any, x: torch.Tensor, label: torch.Tensor) -> Any:
        logits = m.conv(x).mean((2, 3))
        return logits, F.cross_entropy(logits, label), logits * label[:, None]

    model = Model(forward, conv=conv())
    for batch in (1, 4):
        captured = capture(model, torch.randn(batch, 3, 6, 6), args=(torch.ones(batch, dtype=torch.long),))
        assert len(captured.left_out) == 2
    with pytest.raises(ConversionError, match=r"args\[0\] has one entry per image and feeds"):
        capture(model, IMAGE, args=(torch.ones(1, dtype=torch.long),), outputs=2)


def test_state_between_calls_is_refused() -> None:
    def counted(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.calls += 1
        return m.conv(x) * m.calls

    with pytest.raises(ConversionError, match="two runs of the model on the same input differ"):
        capture(Model(counted, conv=conv(), calls=0), IMAGE)


def test_a_mutated_buffer_that_feeds_an_output_is_refused() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.mean += x.mean() * 0
        return m.conv(x) - m.mean

    with pytest.raises(ConversionError, match="buffer mean is changed by forward"):
        capture(Model(forward, conv=conv(), mean=torch.ones(1)), IMAGE)


def test_a_mutated_counter_is_left_as_it_was() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.count += 1
        return m.conv(x)

    model = Model(forward, conv=conv(), count=torch.zeros(1))
    graph = to_graph(model, IMAGE)
    assert [n.op for n in graph.nodes] == ["conv2d"]
    assert model.count.item() == 0


def test_a_tensor_kept_from_the_first_call_is_refused() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x)
        if m.kept is None:
            m.kept = y
        return y * m.kept

    with pytest.raises(ConversionError, match="kept from an earlier call"):
        capture(Model(forward, conv=conv(), kept=None), torch.randn(2, 3, 6, 6))


def test_an_input_written_in_place_is_refused() -> None:
    with pytest.raises(ConversionError, match="writes into its input"):
        capture(Model(lambda m, x: m.conv(x.relu_()), conv=conv()), IMAGE)


def test_a_failing_model_is_reported_with_its_line() -> None:
    with pytest.raises(ConversionError, match=r"model itself fails on an input of shape \[2, 3, 6, 6\] at .*: Runtime"):
        capture(Model(lambda m, x: m.conv(x).view(-1, 7), conv=conv()), IMAGE)


def test_random_state_and_loggers_are_untouched(capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    good, bad = Model(lambda m, x: m.conv(x), conv=conv()), LoopOverImages()
    before = (logger.level, list(logger.handlers), logger.propagate, torch.get_rng_state())
    capture(good, IMAGE)
    with pytest.raises(ConversionError):
        capture(bad, IMAGE)
    after = (logger.level, list(logger.handlers), logger.propagate, torch.get_rng_state())
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])
    assert capfd.readouterr().out == ""
