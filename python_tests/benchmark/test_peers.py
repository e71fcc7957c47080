"""Every peer that is installed computes what torch computes; the others say why not."""

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt.benchmark.case import export_onnx
from dynprune_rt.benchmark.peers import PEERS, DenseNetwork, default_peers
from dynprune_rt.benchmark.peers.interface import not_installed


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(4 * 64, 5)).eval()


@pytest.mark.parametrize("name", default_peers("f32"))
def test_outputs_equal_torchs(name, module, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    inputs = [np.random.default_rng(i).standard_normal((2, 3, 8, 8), dtype=np.float32) for i in range(2)]
    network = DenseNetwork(onnx=export_onnx(module, torch.from_numpy(inputs[0])), module=module)
    peer = PEERS[name]
    reason = peer.missing(network)
    if reason is not None:
        assert "not installed" in reason or "no ONNX model" in reason
        return
    run = peer.prepare(network, inputs, 1)
    for i, x in enumerate(inputs):
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(run(i), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_peers_in_narrow_types_are_near_torch(dtype, module):
    inputs = [np.random.default_rng(i).standard_normal((2, 3, 8, 8), dtype=np.float32) for i in range(2)]
    network = DenseNetwork(onnx=export_onnx(module, torch.from_numpy(inputs[0])), module=module)
    peer = PEERS[default_peers(dtype)[1]]
    if peer.missing(network) is not None:
        pytest.skip(peer.missing(network))
    try:
        run = peer.prepare(network, inputs, 1)
    except RuntimeError as error:  # a CPU without instructions for bf16
        assert "does not run bf16" in str(error) and "avx512_bf16" not in dynprune_rt.available_isas()
        return
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs[0])).numpy()
    assert 0 < np.abs(run(0) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_without_its_form_of_the_network_says_so(name):
    assert PEERS[name].missing(DenseNetwork()) is not None


def test_not_installed_names_the_package():
    assert not_installed("numpy") is None
    assert not_installed("no_such_runtime") == "no_such_runtime is not installed"
