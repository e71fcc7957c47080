"""The teacher's kept logits: equal to computed ones, known by the batch, and worthless when broken."""

import copy

import pytest
import torch

from dynprune_rt import methods
from dynprune_rt.methods import Batches, Settings, train
from dynprune_rt.methods.teacher import Teacher
from python_tests.methods.networks import Residual, coloured, settle

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_logits_equal_computed_ones(precision, tmp_path):
    batches = [x for x, _ in Batches(coloured(32), 16, augment=True, shift=1)]
    model = settle(Residual())
    plain = Teacher(model, CPU, precision)
    wanted = [plain.logits(x) for x in batches]
    first = Teacher(model, CPU, precision, tmp_path)
    first.begin_epoch(0)
    assert all(torch.equal(first.logits(x), w) for x, w in zip(batches, wanted, strict=True))
    first.end_epoch()

    second = Teacher(copy.deepcopy(model), CPU, precision, tmp_path)
    second.model.register_forward_hook(lambda *_: pytest.fail("computed although it was kept"))
    second.begin_epoch(0)
    # Another order, as any loader may have.
    assert all(torch.equal(second.logits(x), w) for x, w in zip(batches[::-1], wanted[::-1], strict=True))


def test_other_batches_epochs_and_teachers_are_computed(tmp_path):
    images = torch.randn(4, 3, 12, 12)
    teacher = Teacher(settle(Residual()), CPU, "fp32", tmp_path)
    teacher.begin_epoch(0)
    teacher.logits(images)
    teacher.end_epoch()
    other = Teacher(settle(Residual(), seed=1), CPU, "fp32", tmp_path)
    assert other.folder != teacher.folder
    calls = []
    teacher.model.register_forward_hook(lambda *_: calls.append(1))
    changed = images.clone()
    changed[3, 2, 11, 11] += 1e-6
    teacher.begin_epoch(0)
    assert torch.equal(teacher.logits(changed), teacher._compute(changed))
    assert len(calls) == 2
    teacher.begin_epoch(1)
    teacher.logits(images)
    assert len(calls) == 3


def test_a_broken_file_is_written_anew(tmp_path):
    images = torch.randn(4, 3, 12, 12)
    for content in (b"", b"damaged"):
        teacher = Teacher(settle(Residual()), CPU, "fp32", tmp_path)
        path = teacher.folder / "epoch_0000.npz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        teacher.begin_epoch(0)
        wanted = teacher.logits(images)
        teacher.end_epoch()
        again = Teacher(copy.deepcopy(teacher.model), CPU, "fp32", tmp_path)
        again.begin_epoch(0)
        assert len(again._known) == 1 and torch.equal(again.logits(images), wanted)


def test_a_run_with_kept_logits_ends_in_the_same_weights(tmp_path):
    model, loader = settle(Residual()), Batches(coloured(64), 16, augment=True, shift=1)
    settings = Settings(epochs=2, precision="fp32", warmup_steps=1)

    def go(cache):
        method = methods.DiscriminantInformation(0.6)
        return train(model, loader, method, settings=settings, teacher_cache=cache).model.state_dict()

    runs = [go(None), go(tmp_path), go(tmp_path)]
    assert len(list(tmp_path.glob("*/epoch_*.npz"))) == 2
    assert all(torch.equal(run[key], runs[0][key]) for run in runs for key in run)
