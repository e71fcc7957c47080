"""The zoo end to end: torch model -> program -> compiled runtime, against torch and against itself.

The default selection covers every network and every gate pattern; ``pytest -m full`` runs every network
with every gate.
"""

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt import models

TOLERANCE = 1e-4  # of the largest output: fp32 in another order of summation

#: Reduced forms: the blocks of each network, fewer of them, narrower, on odd image sizes.
FORMS = {
    "cifar_resnet20": (32, {"blocks": 1}),
    "cifar_resnet32": (33, {"blocks": 1, "shortcut": "B"}),
    "cifar_resnet44": (31, {"blocks": 2, "width": 8}),
    "cifar_resnet56": (32, {"blocks": 2, "width": 12}),
    "cifar_resnet110": (35, {"blocks": 3, "width": 8}),
    "vgg16_bn": (32, {"width": 0.25}),
    "resnet18": (65, {"width": 0.25, "depths": (1, 1, 1, 1)}),
    "resnet34": (97, {"width": 0.125, "depths": (2, 2, 1, 1)}),
    "resnet50": (33, {"width": 0.25, "depths": (1, 1, 1, 1)}),
    "mobilenet_v1": (65, {"width": 0.25}),
    "mobilenet_v1_075": (97, {"width": 0.125}),
    "mobilenet_v2": (65, {"width": 0.5}),
    "squeezenet1_1": (97, {"width": 0.25}),
    "densenet121": (65, {"growth": 8, "depths": (2, 2, 2)}),
    "cifar_densenet40": (33, {"depths": (2, 2, 2)}),
}

#: Every gate once on a basic-block ResNet; the other networks with gates that take different paths through them.
BLOCK_GATES = [("cifar_resnet20", gate) for gate in models.GATES]
OTHER_GATES = [
    ("vgg16_bn", "fbs"),
    ("resnet18", "manidp"),
    ("resnet34", "kth"),
    ("resnet50", "dgnet"),
    ("resnet50", "laudnet"),
    ("resnet50", "random"),
    ("mobilenet_v1", "random"),
    ("mobilenet_v1_075", "dcp"),
    ("mobilenet_v2", "dgnet"),
    ("mobilenet_v2", "instance_norm"),
    ("squeezenet1_1", "random"),
    ("densenet121", "manidp"),
    ("cifar_densenet40", "kth"),
    ("cifar_resnet32", "fbs_before_norm"),
]
DENSE = [(name, None) for name in models.available()]

WITHOUT_RESIDUALS = {"vgg16_bn", "mobilenet_v1", "mobilenet_v1_075", "squeezenet1_1", "densenet121", "cifar_densenet40"}
EVERY = [
    (name, gate)
    for name in models.available()
    for gate in models.GATES
    if not (gate in ("aig", "ftwt") and name in WITHOUT_RESIDUALS)
]


def build(name, gate):
    """The reduced model and eight images for it."""
    size, options = FORMS[name]
    model = models.create(name, gate, seed=7, input_size=size, **options)
    return model, models.synthetic_images(8, size, seed=21)


def torch_outputs(model, images):
    with torch.no_grad():
        return model(images).numpy()


def deviations(outputs, expected):
    """Per image, the largest difference relative to the largest output of the batch."""
    return np.abs(outputs - expected).reshape(len(expected), -1).max(1) / np.abs(expected).max()


def rounding_decides(model, image):
    """Whether torch itself gives another result when the image changes by less than fp32 rounding of a sum."""
    reference = torch_outputs(model, image)
    nudged = [torch_outputs(model, image * (1 + step)) for step in (3e-6, -3e-6)]
    return max(float(deviations(other, reference).max()) for other in nudged) > TOLERANCE


def check(name, gate):
    model, images = build(name, gate)
    program = dynprune_rt.convert(model, images[:2])
    session = dynprune_rt.load(program, threads=1)
    x = images.numpy()
    expected = torch_outputs(model, images)
    outputs = session.run(x)

    # Against torch. A gate within rounding of its threshold may fall on the other side.
    deviating = [i for i, error in enumerate(deviations(outputs, expected)) if error > TOLERANCE]
    assert all(rounding_decides(model, images[i : i + 1]) for i in deviating), deviations(outputs, expected)
    assert len(deviating) <= 1

    # Bit for bit: skipping, batch, threads.
    np.testing.assert_array_equal(session.run(x, skip=False), outputs)
    np.testing.assert_array_equal(session.run(x[:1]), outputs[:1])
    np.testing.assert_array_equal(session.run(x[2:5]), outputs[2:5])
    threaded = dynprune_rt.load(program, threads=2)
    np.testing.assert_array_equal(threaded.run(x), outputs)
    np.testing.assert_array_equal(threaded.run(x[4:5]), outputs[4:5])

    # Multiply-accumulates as the kernels counted them.
    groups = {n.name: n.attrs["groups"] for n in program.graph.nodes if n.op == "conv2d"}
    for i in range(3):
        for layer in session.profile(x[i : i + 1]).layers:
            if groups.get(layer["name"], 1) == 1:
                work = layer["live_in"] * layer["live_out"] / (layer["total_in"] * layer["total_out"])
            else:
                assert groups[layer["name"]] == layer["total_out"]  # depthwise is the only grouped one in the zoo
                work = layer["live_out"] / layer["total_out"]
            assert layer["macs"] == pytest.approx(layer["dense_macs"] * work), layer
    assert session.profile(x, skip=False).macs == program.dense_macs * len(x)


@pytest.mark.parametrize(("name", "gate"), DENSE + BLOCK_GATES + OTHER_GATES)
def test_network(name, gate):
    check(name, gate)


@pytest.mark.full
@pytest.mark.parametrize(("name", "gate"), [pair for pair in EVERY if pair not in BLOCK_GATES + OTHER_GATES])
def test_every_network_with_every_gate(name, gate):
    check(name, gate)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_random_gates_keep_the_requested_share(share):
    model = models.create("cifar_resnet20", "random", seed=1, share=share, blocks=1)
    session = dynprune_rt.load(dynprune_rt.convert(model, models.synthetic_images(2, 32)), threads=1)
    profile = session.profile(models.synthetic_images(4, 32, seed=3).numpy())
    layers = {layer["name"]: layer for layer in profile.layers}
    for name in ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv2"):
        assert layers[name]["live_out"] == share * layers[name]["total_out"]
    assert layers["layer2.0.conv2"]["live_in"] == share * layers["layer2.0.conv2"]["total_in"]


@pytest.mark.parametrize("gate", [None, "se"])
def test_without_gates_nothing_is_skipped(gate):
    model = models.create("cifar_resnet20", gate, blocks=1)
    session = dynprune_rt.load(dynprune_rt.convert(model, models.synthetic_images(2, 32)), threads=1)
    profile = session.profile(models.synthetic_images(2, 32).numpy())
    assert profile.macs == profile.dense_macs


def test_a_saved_program_gives_the_same_bits(tmp_path):
    model, images = build("cifar_resnet20", "kth")
    program = dynprune_rt.convert(model, images[:2])
    program.save(tmp_path / "net.dpr")
    expected = dynprune_rt.load(program, threads=1).run(images.numpy())
    np.testing.assert_array_equal(dynprune_rt.load(tmp_path / "net.dpr", threads=1).run(images.numpy()), expected)
