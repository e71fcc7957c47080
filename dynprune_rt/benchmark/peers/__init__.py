"""Dense runtimes to compare with, one module each."""

from dynprune_rt.benchmark.peers.interface import DenseNetwork, Peer
from dynprune_rt.benchmark.peers.onnxruntime import OnnxRuntime
from dynprune_rt.benchmark.peers.openvino import OpenVINO
from dynprune_rt.benchmark.peers.torch_compile import TorchCompile
from dynprune_rt.benchmark.peers.torch_eager import TorchEager

_FLOAT: tuple[Peer, ...] = (OpenVINO(), OnnxRuntime(), TorchCompile(), TorchEager())
_NARROW: tuple[Peer, ...] = (OpenVINO("bf16"), OpenVINO("int8"))

#: Peers by name, in the order of reports.
PEERS: dict[str, Peer] = {peer.name: peer for peer in (*_FLOAT, *_NARROW)}


def default_peers(dtype: str) -> tuple[str, ...]:
    """Names of the peers that a run in "f32", "bf16" or "int8" is compared with when none are named."""
    return tuple(peer.name for peer in _FLOAT) if dtype == "f32" else ("openvino", f"openvino-{dtype}")


__all__ = ["PEERS", "DenseNetwork", "Peer", "default_peers"]
