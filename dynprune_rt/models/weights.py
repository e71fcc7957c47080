"""Loading weights from safetensors files, published ones included."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from dynprune_rt.errors import DynpruneError

#: Parameters of the gates in the trained CIFAR ResNets, and their names here.
_GATE_PARAMETERS = {
    "w1.weight": ("fc1.weight",),
    "w2.weight": ("fc2.weight", "fc.weight"),
    "w2.bias": ("fc2.bias", "fc.bias"),
    "thre": ("threshold",),
}


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Copy the tensors of a safetensors file into ``model``; returns the gate parameters it did not hold.

    Everything outside the gates must be there. Gates numbered through the network (``gates.k``, two per
    basic block) are matched with the blocks' ``gate1`` and ``gate2``.

    Raises DynpruneError naming every missing, superfluous or differently shaped tensor.
    """
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise DynpruneError("loading weights needs safetensors: pip install safetensors") from None
    try:
        tensors = load_file(str(path))
    except Exception as error:
        raise DynpruneError(f"cannot read {path} as safetensors: {error}") from None
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    tensors = _rename_gates(tensors, own)
    wrong = [f"{k}: {tuple(v.shape)} in the file, {tuple(own[k].shape)} in the model"
             for k, v in tensors.items() if k in own and v.shape != own[k].shape]  # fmt: skip
    missing = [k for k in own if k not in tensors]
    gates = [k for k in missing if "gate" in k]
    lost = [f"{k}: not in the file" for k in missing if "gate" not in k]
    unknown = [f"{k}: not in the model" for k in tensors if k not in own]
    if wrong or lost or unknown:
        raise DynpruneError(f"{path} does not fit the model:\n  " + "\n  ".join((wrong + lost + unknown)[:20]))
    model.load_state_dict(tensors, strict=False)
    return gates


def _rename_gates(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """``gates.{2 b + i}`` of block b, as ``layer{s}.{j}.gate{i + 1}``; parameters without a use are left out."""
    blocks = list(dict.fromkeys(m.group(1) for k in own if (m := re.match(r"(layer\d+\.\d+)\.", k))))
    renamed = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"gates\.(\d+)\.(.+)", key)
        if match is None or int(match[1]) // 2 >= len(blocks):
            renamed[key] = tensor
            continue
        prefix = f"{blocks[int(match[1]) // 2]}.gate{int(match[1]) % 2 + 1}."
        names = [prefix + name for name in _GATE_PARAMETERS.get(match[2], (match[2],))]
        target = next((name for name in names if name in own), None)
        if target is not None:
            renamed[target] = tensor
        elif match[2] != "thre":
            renamed[key] = tensor
    return renamed
