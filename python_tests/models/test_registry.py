"""Creating networks: every name and gate, options, determinism, weights, errors."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from dynprune_rt import models
from dynprune_rt.errors import DynpruneError
from dynprune_rt.models.gates import ImageGate

#: Options that make a network small enough to build with every gate.
SMALL = {
    "resnet18": {"width": 0.25},
    "resnet34": {"width": 0.125},
    "resnet50": {"width": 0.125},
    "mobilenet_v1": {"width": 0.25},
    "mobilenet_v1_075": {"width": 0.25},
    "mobilenet_v2": {"width": 0.5},
    "squeezenet1_1": {"width": 0.25},
    "densenet121": {"growth": 8, "depths": (2, 2, 2, 2)},
    "vgg16_bn": {"width": 0.25},
}
RESIDUAL = {"aig", "ftwt"}


def small(name, gate=None, **options):
    return models.create(
        name, gate, input_size=min(65, models.entry(name).input_size), **SMALL.get(name, {}), **options
    )


@pytest.mark.parametrize("name", models.available())
def test_outputs_are_finite_and_depend_on_the_image(name):
    size = min(65, models.entry(name).input_size)
    y = small(name)(models.synthetic_images(3, size))
    assert y.shape[0] == 3
    assert torch.isfinite(y).all()
    assert y.std(0).mean() > 1e-3


@pytest.mark.parametrize(
    "name", ["cifar_resnet20", "resnet50", "mobilenet_v1", "mobilenet_v2", "densenet121", "vgg16_bn"]
)
@pytest.mark.parametrize("gate", list(models.GATES))
def test_every_gate_finds_its_place(name, gate):
    if gate in RESIDUAL and name in ("mobilenet_v1", "densenet121", "vgg16_bn"):
        with pytest.raises(DynpruneError, match="has no place"):
            small(name, gate)
        return
    model = small(name, gate)
    assert any(isinstance(m, ImageGate) for m in model.modules())
    assert not model.training
    assert torch.isfinite(model(models.synthetic_images(2, 33, seed=4))).all()


def test_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first = models.create("cifar_resnet20", "kth", seed=1)
    assert torch.equal(torch.rand(1), expected)
    again = models.create("cifar_resnet20", "kth", seed=1)
    other = models.create("cifar_resnet20", "kth", seed=2)
    x = models.synthetic_images(2, 32)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_gate_sites_selects_by_running_number():
    model = models.create("cifar_resnet20", "instance_norm", gate_sites=[0, 5])
    names = [n for n, m in model.named_modules() if isinstance(m, ImageGate)]
    assert names == ["layer1.0.gate1", "layer1.2.gate2"]


def test_shortcut_options():
    padded, projected = (models.create("cifar_resnet20", shortcut=s) for s in "AB")
    difference = sum(p.numel() for p in projected.parameters()) - sum(p.numel() for p in padded.parameters())
    assert difference == 16 * 32 + 32 * 64 + 2 * 32 + 2 * 64


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar_resnet20", 269722), ("cifar_resnet56", 853018), ("resnet18", 11689512), ("resnet50", 25557032),
     ("mobilenet_v2", 3504872), ("squeezenet1_1", 1235496), ("densenet121", 7978856), ("mobilenet_v1", 4231976)],
)  # fmt: skip
def test_parameter_counts_of_the_published_networks(name, parameters):
    assert sum(p.numel() for p in models.create(name, input_size=33).parameters()) == parameters


def test_same_padding_puts_the_odd_pixel_last():
    model = small("mobilenet_v1")
    x = models.synthetic_images(1, 32)
    conv = model.conv1
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, stride=2)
    assert torch.equal(model._spatial(conv)(x), expected)


def test_weights_survive_a_safetensors_file(tmp_path):
    source = models.create("cifar_resnet20", "manidp", seed=1)
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = models.create("cifar_resnet20", "manidp", seed=2, weights=tmp_path / "w.safetensors")
    x = models.synthetic_images(2, 32)
    assert torch.equal(source(x), loaded(x))


def test_dense_weights_in_a_gated_network_calibrate_the_gates_only(tmp_path):
    source = models.create("cifar_resnet20", seed=1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    gated = models.create("cifar_resnet20", "random", weights=tmp_path / "w.safetensors")
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(gated.state_dict()[key], value), key


def test_gates_numbered_through_the_network_are_matched_with_blocks(tmp_path):
    source = models.create("cifar_resnet20", "kth", seed=1)
    tensors = {}
    for key, value in source.state_dict().items():
        if ".gate" not in key:
            tensors[key] = value
            continue
        layer, block, gate, _, kind = key.split(".")
        number = 2 * (3 * (int(layer[-1]) - 1) + int(block)) + int(gate[-1]) - 1
        tensors[f"gates.{number}.w2.{kind}"] = value
        tensors[f"gates.{number}.thre"] = torch.tensor(0.0)
    save_file(tensors, tmp_path / "w.safetensors")
    x = models.synthetic_images(2, 32)
    assert torch.equal(models.create("cifar_resnet20", "kth", weights=tmp_path / "w.safetensors")(x), source(x))


def test_weights_that_do_not_fit_are_named(tmp_path):
    tensors = dict(models.create("cifar_resnet20").state_dict())
    tensors["linear.weight"] = torch.zeros(7, 64)
    tensors["extra"] = torch.zeros(1)
    del tensors["bn1.bias"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(DynpruneError) as error:
        models.create("cifar_resnet20", weights=tmp_path / "w.safetensors")
    for part in ("linear.weight: (7, 64) in the file", "extra: not in the model", "bn1.bias: not in the file"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "did you mean resnet18"),
        ({"name": "cifar_resnet20", "gate": "magic"}, "unknown gate 'magic'"),
        ({"name": "cifar_resnet20", "gate": "kth", "share": 0.0}, "share"),
        ({"name": "cifar_resnet20", "depth": 3}, "cannot build"),
        ({"name": "cifar_resnet20", "gate": "manidp", "gate_options": {"rule": "max"}}, "does not take"),
        ({"name": "cifar_resnet20", "gate": "instance_norm", "gate_options": {"rule": "median"}}, "rule='median'"),
        ({"name": "cifar_resnet20", "gate_sites": [1]}, "need a gate"),
        ({"name": "cifar_resnet20", "shortcut": "C"}, "expected 'A' or 'B'"),
    ],
)
def test_errors_name_the_culprit(arguments, message):
    with pytest.raises(DynpruneError, match=message):
        models.create(**arguments)


def test_unreadable_weights(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(DynpruneError, match="cannot read"):
        models.create("cifar_resnet20", weights=tmp_path / "w.safetensors")


def test_an_image_does_not_depend_on_its_batch():
    assert np.array_equal(models.synthetic_images(5, 16, seed=2)[:3], models.synthetic_images(3, 16, seed=2))
