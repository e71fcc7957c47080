"""What a training run is given: batches, start weights, a device; checked before they can do harm."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from dynprune_rt.errors import DataError, TrainingError


class Loader(Protocol):
    """Batches of (images f32 [B, C, H, W], labels i64 [B]); a `set_epoch` method, where there is one, is called."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def __len__(self) -> int: ...


def first_batches(loader: Loader, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches of the first epoch."""
    result = []
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(0)
    for batch in loader:
        result.append((batch[0], batch[1]))
        if len(result) == count:
            break
    if not result:
        raise DataError("the loader gave no batch")
    return result


def check_batch(images: Tensor, labels: Tensor, classes: int) -> None:
    """Raises DataError for labels that are no class, images that are not finite, and different lengths."""
    if len(images) != len(labels):
        raise DataError(f"a batch has {len(images)} images and {len(labels)} labels")
    if labels.dtype not in (torch.int64, torch.int32) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"labels must be whole numbers in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    if not bool(torch.isfinite(images).all()):
        raise DataError("images hold values that are not finite")


def class_count(model: nn.Module, example: Tensor) -> int:
    """Logits of ``model``. Raises TrainingError where it returns something else."""
    with torch.no_grad():
        logits = copy.deepcopy(model).cpu().eval()(example)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise TrainingError("the model must return logits [N, classes]")
    return int(logits.shape[1])


def load_start(model: nn.Module, start: Mapping[str, Tensor]) -> None:
    """Load parameters and statistics; only thresholds and counters may be missing. Raises TrainingError otherwise."""
    try:
        missing, unknown = model.load_state_dict(start, strict=False)
    except RuntimeError as error:
        raise TrainingError(f"the start weights do not fit: {error}") from None
    missing = [name for name in missing if not name.endswith(("num_batches_tracked", ".threshold", ".level"))]
    if missing or unknown:
        raise TrainingError(f"the start weights do not fit: missing {missing[:5]}, unknown {list(unknown)[:5]}")


def choose_device(wanted: str | torch.device | None) -> torch.device:
    """The wanted device, else CUDA where there is one, else the CPU. Raises TrainingError where it is missing."""
    device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainingError(f"cannot train on {device}: {str(error).splitlines()[0]}") from None
    return device
