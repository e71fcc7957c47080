"""The training loop: what it improves, that an interrupted run ends like an uninterrupted one, and its errors."""

import json

import pytest
import torch
from torch import nn

from dynprune_rt import methods
from dynprune_rt.errors import DataError, TrainingError
from dynprune_rt.methods import Batches, Settings, accuracy, train
from python_tests.methods.networks import Residual, coloured, settle

SETTINGS = Settings(epochs=3, learning_rate=0.05, warmup_steps=2, precision="fp32")
METHODS = {
    "is": {"target": 0.9, "end": 0.5},
    "di": {"target": 0.6},
    "manidp": {"target": 0.6, "end": 0.3, "every": 3},
    "cwp": {"target": 0.6, "mask_part": 0.6},
    "fbs": {"target": 0.6, "end": 0.3},
}


def parts():
    return settle(Residual()), Batches(coloured(96), 16, augment=True, seed=1, shift=1)


def calibration():
    return list(Batches(coloured(48, seed=7), 24))


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Interrupted(Batches):
    """Stops like Ctrl-C in the middle of one epoch."""

    stop_in: int | None = None

    def __iter__(self):
        for i, batch in enumerate(super().__iter__()):
            if self.epoch == self.stop_in and i == 3:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop_in", [1, 2])
def test_resumed_weights_equal_those_of_one_run(name, stop_in, tmp_path):
    model, loader = parts()

    def go(batches, folder):
        method = methods.create(name, **METHODS[name])
        return train(model, batches, method, settings=SETTINGS, calibration=calibration(), folder=folder)

    whole = go(loader, tmp_path / "whole")
    broken = Interrupted(loader.data, 16, augment=True, seed=1, shift=1)
    broken.stop_in = stop_in
    with pytest.raises(KeyboardInterrupt):
        go(broken, tmp_path / "broken")
    broken.stop_in = None
    torch.manual_seed(99)
    resumed = go(broken, tmp_path / "broken")
    assert same(whole.model, resumed.model)
    assert [r["loss"] for r in whole.history] == [r["loss"] for r in resumed.history]
    log = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2, 3]


@pytest.mark.parametrize("name", METHODS)
def test_training_learns_and_meets_its_target(name):
    """A few seconds from random weights: accuracy far over chance (25 %) with the MACs that were asked for."""
    torch.manual_seed(0)
    model = Residual(width=16).eval()
    data = coloured(256)
    method = methods.create(name, **METHODS[name])
    settings = Settings(epochs=8, learning_rate=0.1, warmup_steps=4, precision="fp32", distillation=0.0)
    batches = list(Batches(data.part(0, 128), 64))
    result = train(model, Batches(data, 32, augment=True, shift=1), method, settings=settings, calibration=batches)
    unseen = Batches(coloured(200, seed=5), 100)
    assert accuracy(result.model, unseen) > 0.6
    left = methods.measure_activity(model, result.model, result.method, [x for x, _ in batches])
    target = METHODS[name]["target"]
    assert left.macs_left == pytest.approx(target, abs=0.08)
    assert 0.0 <= left.static_share <= 1.0
    assert (left.static_share == 1.0) or method.dynamic


def test_the_users_model_is_left_as_it_was():
    model, loader = parts()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(model, loader, methods.FBS(0.6), settings=Settings(epochs=1, precision="fp32"), calibration=calibration())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_plain_lists_of_batches_will_do():
    model, loader = parts()
    result = train(model, list(loader), methods.DiscriminantInformation(0.6), settings=Settings(epochs=1))
    assert not result.model.training
    assert result.history[0]["loss"] > 0


def test_going_on_from_earlier_weights():
    model, loader = parts()
    first = train(model, loader, methods.FBS(0.6, end=0.0), settings=SETTINGS, calibration=calibration())
    settings = Settings(epochs=1, learning_rate=0.0, warmup_steps=0, precision="fp32", weight_decay=0.0)
    start = first.model.state_dict()
    again = train(model, loader, methods.FBS(0.6, end=0.0), settings=settings, calibration=calibration(), start=start)
    parameters = dict(again.model.named_parameters())
    assert all(torch.equal(v, parameters[k]) for k, v in first.model.named_parameters())
    with pytest.raises(TrainingError, match="start weights do not fit"):
        train(model, loader, methods.FBS(0.6), settings=settings, calibration=calibration(), start={"x": torch.ones(1)})


@pytest.mark.parametrize("name", ["is", "di", "manidp", "fbs"])
def test_no_epoch_at_all_prepares_and_calibrates(name):
    model, loader = parts()
    result = train(model, loader, methods.create(name, 0.8), settings=Settings(epochs=0), calibration=calibration())
    images = [x for x, _ in calibration()]
    left = methods.measure_activity(model, result.model, result.method, images).macs_left
    assert result.history == [] and not result.model.training
    # Winner-take-all counts channels that the ReLU of the saliency left at zero as kept.
    assert left == pytest.approx(0.8, abs=0.12)


def test_soft_masks_need_training():
    model, loader = parts()
    with pytest.raises(TrainingError, match="cwp trains its masks"):
        train(model, loader, methods.CWP(0.6), settings=Settings(epochs=0), calibration=calibration())


class Exploding(Batches):
    def __iter__(self):
        for i, (x, y) in enumerate(super().__iter__()):
            yield (x * 1e38 * 10 if self.epoch == 1 and i == 2 else x), y


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    model, loader = parts()
    bad = Exploding(loader.data, 16, augment=True, seed=1, shift=1)
    with pytest.raises(TrainingError, match=r"not finite at step 9.*checkpoint is kept"):
        train(model, bad, methods.FBS(0.6), settings=SETTINGS, calibration=calibration(), folder=tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in saved["model"].values())


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path):
    model, loader = parts()
    settings = Settings(epochs=1, precision="fp32")
    train(model, loader, methods.FBS(0.6), settings=settings, calibration=calibration(), folder=tmp_path)
    with pytest.raises(TrainingError, match="another run"):
        train(model, loader, methods.FBS(0.7), settings=settings, calibration=calibration(), folder=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="cannot resume"):
        train(model, loader, methods.FBS(0.6), settings=settings, calibration=calibration(), folder=tmp_path)


class Short(list):
    def __len__(self):
        return 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1),
        ("learning_rate", float("nan")),
        ("distillation", 1.5),
        ("precision", "fp16"),
        ("temperature", 0.0),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(TrainingError, match=f"out of range: {name}="):
        Settings(**{name: value})


def test_bad_input():
    model, loader = parts()
    settings = Settings(epochs=1, precision="fp32")
    images, labels = calibration()[0]
    with pytest.raises(DataError, match=r"labels must be whole numbers in 0\.\.3"):
        train(model, [(images, labels + 1)], methods.FBS(0.6), settings=settings)
    with pytest.raises(DataError, match="not finite"):
        train(model, [(images * float("inf"), labels)], methods.FBS(0.6), settings=settings)
    with pytest.raises(DataError, match="24 images and 20 labels"):
        train(model, [(images, labels[:20])], methods.FBS(0.6), settings=settings)
    with pytest.raises(TrainingError, match="nothing to train"):
        train(model, [], methods.FBS(0.6), settings=settings)
    with pytest.raises(DataError, match="no calibration images"):
        train(model, loader, methods.FBS(0.6), settings=settings, calibration=[])
    with pytest.raises(DataError, match="announced 5 batches and gave 1"):
        train(model, Short([(images, labels)]), methods.FBS(0.6), settings=settings)
    with pytest.raises(TrainingError, match="tells 3 classes apart, not 4"):
        train(model, loader, methods.FBS(0.6), settings=settings, teacher=settle(Residual(classes=3)))
    with pytest.raises(TrainingError, match="cannot train on cuda:7"):
        train(model, loader, methods.FBS(0.6), settings=settings, device="cuda:7")
    with pytest.raises(TrainingError, match="nothing to gate"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), loader, methods.FBS(0.6), settings=settings)
    for name in METHODS:
        method = methods.create(name, 0.01)
        with pytest.raises(TrainingError, match="still left"):
            train(model, loader, method, settings=settings, calibration=calibration())
    for name in METHODS:
        with pytest.raises(TrainingError, match=r"target=1\.5"):
            train(model, loader, methods.create(name, 1.5), settings=settings, calibration=calibration())


def test_unknown_methods_and_options():
    with pytest.raises(TrainingError, match="known methods: is, di, manidp, cwp, fbs"):
        methods.create("magic")
    with pytest.raises(TrainingError, match="no option colour"):
        methods.create("fbs", 0.5, colour="red")
