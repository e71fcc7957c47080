"""Instance-wise sparsity (Liu et al., "Learning Instance-wise Sparsity for Accelerating Deep Models", IJCAI 2019).

Read in the abstract (and a secondary excerpt): feature decay regularisation by the instance-wise l2,1 norm, channels
of small l2 norm dropped with dynamic thresholds, layers chosen by coefficient of variation. Reconstructed: the form of
the threshold (all plausible ones are offered), that large variation is safe, the normalisation of the regulariser, and
the annealing of the threshold within training. Gates mask what a convolution reads; a shortcut keeps the whole map.
The gate looks at the map it masks, so that only the reader's input channels are skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.attach import attach_input_gates, gates_of, masks_of, recorded_masks
from dynprune_rt.methods.base import Calibration, Method, StepContext
from dynprune_rt.methods.gates import NormGate
from dynprune_rt.methods.graph import LayerCost, TracedModel
from dynprune_rt.methods.losses import feature_decay, normalised_feature_decay
from dynprune_rt.methods.macs import macs_of_masks
from dynprune_rt.methods.schedules import KeepSchedule
from dynprune_rt.methods.thresholds import select_uneven

_STEPS = 10

#: Of the dense MACs.
_CLOSE = 0.003


class InstanceWiseSparsity(Method):
    """target: share of the MACs to leave; after every epoch the one level of all gates is searched that leaves it, on
    the calibration images, along a schedule from 1 that ends at ``end`` of the run.

    decay: weight of the regulariser; ``normalised``: l2,1 over l2, which shrinking a batch norm cannot pay.
    layer_share: part of the convolution inputs to gate, the most uneven ones.
    """

    name: ClassVar[str] = "is"
    dynamic: ClassVar[bool] = True

    def __init__(
        self,
        target: float = 0.85,
        rule: Literal["mean", "max", "quantile", "topk"] = "mean",
        decay: float = 0.05,
        normalised: bool = True,
        layer_share: float = 1.0,
        end: float = 0.6,
    ) -> None:
        super().__init__()
        if rule not in NormGate.RULES:
            raise TrainingError(f"rule={rule!r}: expected one of {', '.join(NormGate.RULES)}")
        if not 0.0 < target <= 1.0:
            raise TrainingError(f"target={target}: the share of the MACs to leave must be in (0, 1]")
        self.target, self.rule, self.decay, self.normalised = target, rule, decay, normalised
        self.layer_share, self.end = layer_share, end
        self._layers: list[LayerCost] = []

    def prepare(self, traced: TracedModel, calibration: Calibration, classes: int) -> nn.Module:
        self.state["layers"] = self._uneven(traced, calibration)
        model = self.rebuild(traced)
        self._reach(model, 1.0, calibration[:1])
        return model

    def rebuild(self, traced: TracedModel) -> nn.Module:
        chosen = set(self.state["layers"])
        sources = attach_input_gates(traced, lambda channels: NormGate(channels, self.rule), chosen, "feature")
        self._layers = [replace(c, input_site=sources.get(c.module), output_site=None) for c in traced.layers]
        return traced.module

    def penalty(self, context: StepContext) -> Tensor | None:
        if self.decay == 0:
            return None
        features = [mask.feature for mask in masks_of(context.model).values()]
        assert all(f is not None for f in features)
        term = normalised_feature_decay if self.normalised else feature_decay
        return self.decay * term([f for f in features if f is not None])

    def end_epoch(self, model: nn.Module, progress: float) -> nn.Module | None:
        # Between epochs one batch will do; `finalise` looks at all of them.
        self._reach(model, KeepSchedule(self.target, self.end).at(progress), self.calibration[:1])
        return None

    def finalise(self, model: nn.Module) -> nn.Module:
        self._reach(model.eval(), self.target, self.calibration)
        for mask in masks_of(model).values():
            mask.feature = None
        return model

    def live_masks(self, model: nn.Module, images: Iterable[Tensor]) -> dict[str, Tensor]:
        return recorded_masks(model, images)

    def cost_layers(self, traced: TracedModel) -> list[LayerCost]:
        return self._layers

    def _uneven(self, traced: TracedModel, calibration: Calibration) -> list[str]:
        """Gate keys of the most uneven inputs, measured with all of them open."""
        probe = copy.deepcopy(traced)
        attach_input_gates(probe, lambda channels: NormGate(channels, self.rule), None)
        norms: dict[str, list[Tensor]] = {}
        probe.module.eval()
        with torch.no_grad():
            for images, _ in calibration:
                probe.module(images.float().cpu())
                for key, gate in gates_of(probe.module).items():
                    assert gate.saliency is not None
                    norms.setdefault(key, []).append(gate.saliency)
        return select_uneven({key: torch.cat(parts) for key, parts in norms.items()}, self.layer_share)

    def _reach(self, model: nn.Module, target: float, calibration: Calibration) -> None:
        """Bisect the level of all gates until these images need ``target`` of the MACs, or up to ``_CLOSE`` less."""
        device = next(model.parameters()).device
        images = [batch.to(device) for batch, _ in calibration]
        low, high = (1.0, 0.0) if self.rule == "topk" else (0.0, self._largest_level(model, images))
        if target >= 1.0:
            self._set_level(model, low)
            return
        dense = sum(layer.macs for layer in self._layers)

        def left(level: float) -> float:
            self._set_level(model, level)
            return float(macs_of_masks(self._layers, recorded_masks(model, images)).mean()) / dense

        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = left(middle)
            if target - _CLOSE <= found <= target:
                return
            low, high = (middle, high) if found > target else (low, middle)
        if (found := left(high)) > target + 0.02:
            raise TrainingError(
                f"target={target}: with every gate at its limit {found:.1%} of the MACs are still left; choose a "
                "higher target or a larger layer_share"
            )

    def _largest_level(self, model: nn.Module, images: list[Tensor]) -> float:
        if self.rule == "mean":
            return 4.0
        if self.rule == "max":
            return 1.0
        self._set_level(model, 0.0)
        recorded_masks(model, images[:1])
        return max(float(gate.saliency.max()) for gate in gates_of(model).values() if gate.saliency is not None)

    def _set_level(self, model: nn.Module, level: float) -> None:
        for gate in gates_of(model).values():
            assert isinstance(gate, NormGate)
            if self.rule == "topk":
                gate.keep = max(level, 1e-6)
            else:
                gate.level.fill_(level)
