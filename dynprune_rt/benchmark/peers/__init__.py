"""Dense runtimes to compare with, one module each."""

from dynprune_rt.benchmark.peers.interface import DenseNetwork, Peer
from dynprune_rt.benchmark.peers.onnxruntime import OnnxRuntime
from dynprune_rt.benchmark.peers.openvino import OpenVINO
from dynprune_rt.benchmark.peers.torch_compile import TorchCompile
from dynprune_rt.benchmark.peers.torch_eager import TorchEager

#: Peers by name, in the order of reports.
PEERS: dict[str, Peer] = {peer.name: peer for peer in (OpenVINO(), OnnxRuntime(), TorchCompile(), TorchEager())}

__all__ = ["PEERS", "DenseNetwork", "Peer"]
