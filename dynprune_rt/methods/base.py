"""What a method is: the hooks that the training loop calls, in the order of a run.

    rebuild or prepare  ->  begin_step, penalty (every step)  ->  end_epoch (may hand over a new model)  ->  finalise

Everything a method decides from data lives in its `state`, so that a resumed run rebuilds the same structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dynprune_rt.methods.gates import TrainableGate
from dynprune_rt.methods.graph import LayerCost, TracedModel

Calibration = Sequence[tuple[Tensor, Tensor]]


@dataclass
class StepContext:
    """One training step as a method sees it; losses are the cross-entropy per image, f32[N]."""

    model: nn.Module
    logits: Tensor
    labels: Tensor
    losses: Tensor
    progress: float


class Method:
    """Base of the methods. ``state`` holds tensors, numbers, strings and containers of them only."""

    name: ClassVar[str] = ""
    #: True where masks differ from image to image in the finished model.
    dynamic: ClassVar[bool] = False

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        #: Set by `train`: batches of training images, not augmented.
        self.calibration: Calibration = ()

    def config(self) -> dict[str, Any]:
        """The method's settings, for logs and for refusing a checkpoint of other ones."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in ("state", "calibration")}

    def prepare(self, traced: TracedModel, calibration: Calibration, classes: int) -> nn.Module:
        """Attach gates, or remove channels, on a fresh copy of the user's model."""
        raise NotImplementedError

    def rebuild(self, traced: TracedModel) -> nn.Module:
        """The same structure from ``state``, without data; weights are loaded afterwards."""
        raise NotImplementedError

    def begin_step(self, model: nn.Module, progress: float) -> None:
        """Set keep rates and thresholds for the step."""

    def penalty(self, context: StepContext) -> Tensor | None:
        """The method's terms beside the task loss."""
        return None

    def end_epoch(self, model: nn.Module, progress: float) -> nn.Module | None:
        """Update thresholds; a returned model replaces the trained one (its optimiser starts afresh)."""
        return None

    def finalise(self, model: nn.Module) -> nn.Module:
        """The model for inference, in eval mode, ready for `dynprune_rt.convert`."""
        return model.eval()

    def live_masks(self, model: nn.Module, images: Iterable[Tensor]) -> dict[str, Tensor]:
        """bool [N, C] per gated site on ``images``; empty for a static method."""
        return {}

    def cost_layers(self, traced: TracedModel) -> list[LayerCost]:
        """The dense network's layers, their sites named as in `live_masks`."""
        return traced.layers

    def gate_macs(self, model: nn.Module) -> int:
        """MACs per image spent on gates."""
        return 0


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that belong to gates (trained without weight decay)."""
    return [p for m in model.modules() if isinstance(m, TrainableGate) for p in m.parameters()]
