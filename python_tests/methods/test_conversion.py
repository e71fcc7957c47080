"""What every method ends in converts, and runs as in torch."""

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt import methods
from dynprune_rt.frontend.capture import capture
from dynprune_rt.frontend.near_threshold import near_threshold
from dynprune_rt.frontend.reference_values import reference_values
from dynprune_rt.methods import Batches, Settings, accuracy, train
from dynprune_rt.methods.graph import trace
from dynprune_rt.methods.latency import layer_rates
from python_tests.methods import real_data
from python_tests.methods.networks import Residual, coloured, settle

METHODS = {"is": 0.85, "di": 0.6, "manidp": 0.6, "cwp": 0.6, "fbs": 0.6}


def agreement(model, images):
    """Worst difference of each image's logits, and the share of images with the same class; skip on against torch."""
    session = dynprune_rt.load(dynprune_rt.convert(model, images[:2].contiguous()), threads=1)
    with torch.no_grad():
        wanted = torch.cat([model(part) for part in images.split(125)]).numpy()
    found = session.run(images.contiguous().numpy())
    errors = np.abs(found - wanted).max(1) / np.abs(wanted).max()
    return errors, (found.argmax(1) == wanted.argmax(1)).mean(), session


def within_rounding_of_a_threshold(model, images):
    """How many of the images have a gate that two correct orders of addition may decide differently."""
    if not len(images):
        return 0
    captured = capture(model, images[:1])
    return len(near_threshold(captured.program, reference_values(captured.program, [images])))


@pytest.mark.parametrize("name", METHODS)
def test_a_trained_model_converts(name):
    model, loader = settle(Residual()), Batches(coloured(64), 16, augment=True, shift=1)
    settings = Settings(epochs=2, precision="fp32", warmup_steps=1)
    result = train(model, loader, methods.create(name, METHODS[name]), settings=settings)
    images = torch.cat([x for x, _ in Batches(coloured(64, seed=4), 32)])
    errors, same, session = agreement(result.model, images)
    off = np.flatnonzero(errors >= 1e-3)
    assert len(off) <= 1
    assert within_rounding_of_a_threshold(result.model, images[off]) == len(off)
    assert same >= 0.98
    left = methods.measure_activity(model, result.model, result.method, [images])
    profile = session.profile(images.contiguous().numpy())
    executed = sum(row["macs"] for row in profile.rows) / len(images)
    dense = trace(model, images[:1]).macs
    assert executed <= left.macs_left * dense * 1.02


@pytest.mark.parametrize("name", METHODS)
@real_data.needs_data
def test_a_resnet_equals_torch_on_a_thousand_test_images(name):
    """Gates as `prepare` sets them on the pretrained network, at their final keep rates; no training."""
    data, model = real_data.cifar10(), real_data.resnet20()
    settings = Settings(epochs=1, learning_rate=0.01, distillation=0.0)
    method = methods.create(name, METHODS[name])
    loader = Batches(data.train.part(0, 256), 128, augment=True)
    result = train(model, loader, method, settings=settings, calibration=real_data.calibration(250))
    images = torch.cat([x for x, _ in Batches(data.test.part(0, 1000), 250)])
    errors, same, _ = agreement(result.model, images)
    assert same >= 0.995
    off = np.flatnonzero(errors >= 1e-4)
    assert len(off) <= 5
    assert within_rounding_of_a_threshold(result.model, images[off]) == len(off)


@real_data.needs_data
def test_a_minute_of_training_recovers_a_pruned_resnet():
    """DI to half the MACs: 2 epochs of 3,000 images against the same structure untrained, on unseen images."""
    data, model = real_data.cifar10(), real_data.resnet20()
    unseen = list(Batches(data.test.part(0, 600), 200))
    settings = Settings(epochs=2, learning_rate=0.02, warmup_steps=10, distillation=0.0)
    loader = Batches(data.train.part(0, 3000), 128, augment=True)
    method = methods.DiscriminantInformation(0.5)
    result = train(model, loader, method, settings=settings, calibration=real_data.calibration())
    untrained = result.method.rebuild(trace(model, real_data.EXAMPLE))
    before, after = accuracy(untrained, unseen), accuracy(result.model, unseen)
    assert before < 0.5
    assert after > 0.78


def test_rates_of_layers_come_from_the_runtime():
    model = settle(Residual())
    rates = layer_rates(model, torch.randn(1, 3, 12, 12), repeats=2)
    names = {layer.module for layer in trace(model, torch.zeros(1, 3, 12, 12)).layers}
    assert {"block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"} <= rates.keys() <= names
    assert all(rate > 0 for rate in rates.values())
    method = methods.DiscriminantInformation(0.6, rates=rates)
    loader = Batches(coloured(32), 16)
    result = train(model, loader, method, settings=Settings(epochs=1, precision="fp32"))
    assert sum(len(index) for index in result.method.state["kept"].values()) < 24
