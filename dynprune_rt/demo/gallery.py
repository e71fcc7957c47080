"""What the demo runs. The files beside this one are made by ``python -m dynprune_rt.recipes.demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).parent

#: Images u8[N, 32, 32, 3] and labels; in the repository only, see NOTICE.
IMAGES = _DIRECTORY / "cifar10_test_400.npz"


@dataclass(frozen=True)
class DemoModel:
    """A gated program and, for comparison, the dense network as ONNX (batch 1)."""

    title: str
    about: str
    program: Path
    dense_onnx: Path


MODELS = (
    DemoModel(
        "ResNet-20, feature boosting and suppression",
        "trained with gates on every convolution of its blocks; 60 % of the channels of each survive",
        _DIRECTORY / "resnet20_fbs.dpr",
        _DIRECTORY / "resnet20_dense.onnx",
    ),
    DemoModel(
        "ResNet-56, instance-wise sparsity",
        "a published dense network, gates added without training: small channels of a map are dropped",
        _DIRECTORY / "resnet56_instance_wise.dpr",
        _DIRECTORY / "resnet56_dense.onnx",
    ),
)
