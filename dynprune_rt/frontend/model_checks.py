"""What is refused before tracing: models and examples that cannot give a correct fp32 program."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynprune_rt.errors import ConversionError, InputError


def check_model(model: Any) -> None:
    """Raise ConversionError unless ``model`` is an fp32 nn.Module on the CPU in eval mode with finite weights."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("a TorchScript module cannot be traced again; pass the original torch.nn.Module")
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        raise ConversionError(f"{type(model).__name__} wraps the model; pass model.module")
    if hasattr(model, "_orig_mod") and isinstance(model, torch.nn.Module):
        raise ConversionError("torch.compile wraps the model; pass the module it was made from (model._orig_mod)")
    if not isinstance(model, torch.nn.Module):
        raise ConversionError(f"expected a torch.nn.Module, got {type(model).__name__}")
    training = [path or "the model itself" for path, module in model.named_modules() if module.training]
    if training:
        raise ConversionError(
            f"the model is in training mode ({training[0]}{', ...' if len(training) > 1 else ''}): "
            "call model.eval() first"
        )
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            _check_tensor(kind, name, tensor)


def _check_tensor(kind: str, name: str, tensor: torch.Tensor) -> None:
    if torch.nn.parameter.is_lazy(tensor):
        raise ConversionError(f"{kind} {name} is not initialised: run the model once before converting it")
    if tensor.device.type == "meta":
        raise ConversionError(f"{kind} {name} is on the meta device and has no values: load the weights first")
    if tensor.device.type != "cpu":
        raise ConversionError(f"{kind} {name} is on {tensor.device}: call model.cpu() first")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ConversionError(f"{kind} {name} is sparse or quantized; only dense fp32 weights can be converted")
    if not tensor.is_floating_point():
        if tensor.is_complex():
            raise ConversionError(f"{kind} {name} is complex; only real fp32 models can be converted")
        return
    # A 0-d float64 buffer (a threshold made from a Python float) never promotes an fp32 tensor in torch.
    if tensor.dtype is not torch.float32 and not (tensor.dtype is torch.float64 and tensor.ndim == 0):
        raise ConversionError(f"{kind} {name} is {tensor.dtype}; convert in fp32: call model.float() first")
    if not bool(torch.isfinite(tensor).all()):
        # -inf and inf are legal masks and thresholds in buffers, never in weights; NaN is legal nowhere.
        if kind == "buffer" and not bool(torch.isnan(tensor).any()):
            return
        bad = int((~torch.isfinite(tensor)).sum())
        raise ConversionError(f"{kind} {name} holds {bad} NaN or infinite values: the checkpoint is damaged")


def check_example(example: Any) -> torch.Tensor:
    """The example as a contiguous fp32 CPU tensor [N, ...]; numpy arrays are accepted.

    Raises InputError for any other type, dtype or rank, and for non-finite values.
    """
    if isinstance(example, np.ndarray):
        example = torch.from_numpy(np.ascontiguousarray(example))
    if not isinstance(example, torch.Tensor):
        raise InputError(
            f"example must be one tensor [N, ...], got {type(example).__name__}; "
            "pass further arguments of the model by args= and kwargs="
        )
    if example.device.type != "cpu":
        raise InputError(f"example is on {example.device}: pass example.cpu()")
    if example.dtype is not torch.float32:
        raise InputError(f"example is {example.dtype}; expected torch.float32: pass example.float()")
    if example.ndim < 2:
        raise InputError(f"example has shape {list(example.shape)}; expected a batch first: [N, C, H, W]")
    if 0 in example.shape:
        raise InputError(f"example has shape {list(example.shape)}, which is empty")
    if not bool(torch.isfinite(example).all()):
        raise InputError("example holds NaN or infinite values")
    return example.detach().contiguous()
