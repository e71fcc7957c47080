"""What FBS and ManiDP share: gates that score channels from the pooled input, under a schedule of keep rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.attach import (
    Keeps,
    attach_gates,
    gate_key,
    gates_of,
    masks_of,
    recorded_masks,
    site_records,
    total_gate_macs,
)
from dynprune_rt.methods.base import Calibration, Method
from dynprune_rt.methods.gates import TrainableGate
from dynprune_rt.methods.graph import LayerCost, Site, TracedModel
from dynprune_rt.methods.informed import start_gate
from dynprune_rt.methods.macs import macs_at_widths
from dynprune_rt.methods.saliency_gates import FBSGate, ManiDPGate, Rule, SaliencyGate
from dynprune_rt.methods.schedules import KeepSchedule
from dynprune_rt.methods.variety import batch_shaping, live_balance, shaping_prior, soft_decisions


def keep_rate_for(
    layers: list[LayerCost], sites: list[Site], target: float, gate_macs: int = 0, whole: bool = False
) -> float:
    """The uniform share of live channels that leaves ``target`` of the MACs, the gates' own included.

    ``whole``: every gate rounds its count of channels up, as winner-take-all does.

    Raises TrainingError when even a share of 5 % leaves more.
    """
    if not 0.0 < target <= 1.0:
        raise TrainingError(f"target={target}: the share of the MACs to leave must be in (0, 1]")
    dense = sum(layer.macs for layer in layers)

    def left(keep: float) -> float:
        counts = {s.conv: keep * s.channels for s in sites}
        if whole:
            counts = {name: math.ceil(count - 1e-9) for name, count in counts.items()}
        return (macs_at_widths(layers, counts) + gate_macs) / dense

    low, high = 0.05, 1.0
    if left(low) > target:
        raise TrainingError(
            f"target={target}: with every gate at {low:.0%} of its channels {left(low):.1%} of the MACs are "
            "still left; choose a higher target"
        )
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) > target else (middle, high)
    return low


class SaliencyMethod(Method):
    """Saliency gates on every site, started from the pretrained network.

    target: share of the dense MACs to leave. end: part of the run after which the final keep rate holds.
    inner_only: gate only sites before another convolution, not those before an addition.
    static_part, image_part: see `informed.start_gate`.

    Against gates that come out nearly static, all off as published:
    centre: see `SaliencyGate`. balance, shaping: weights of `variety.live_balance` and of `variety.batch_shaping` (the
    prior is high at both ends and has the keep rate as its mean), averaged over the gates.
    """

    dynamic: ClassVar[bool] = True
    keeps: ClassVar[Keeps] = ""

    def __init__(
        self,
        target: float,
        end: float,
        rule: Rule,
        inner_only: bool,
        static_part: float,
        image_part: float,
        centre: float,
        balance: float,
        shaping: float,
    ) -> None:
        super().__init__()
        if min(balance, shaping) < 0:
            raise TrainingError(f"balance={balance}, shaping={shaping}: weights of loss terms cannot be negative")
        self.target, self.end, self.rule, self.inner_only = target, end, rule, inner_only
        self.static_part, self.image_part = static_part, image_part
        self.centre, self.balance, self.shaping = centre, balance, shaping
        self._sites: list[Site] = []
        self._schedule = KeepSchedule(1.0)

    def build(self, site: Site, inputs: int) -> FBSGate | ManiDPGate:
        raise NotImplementedError

    def rebuild(self, traced: TracedModel) -> nn.Module:
        self._sites = traced.inner_sites() if self.inner_only else list(traced.sites)
        attach_gates(traced, self._sites, self.build, self.keeps)
        gates = total_gate_macs(traced.module)
        keep = keep_rate_for(traced.layers, self._sites, self.target, gates, whole=self.rule == "topk")
        self._schedule = KeepSchedule(keep, self.end)
        return traced.module

    def prepare(self, traced: TracedModel, calibration: Calibration, classes: int) -> nn.Module:
        sites = traced.inner_sites() if self.inner_only else list(traced.sites)
        modules = dict(traced.module.named_modules())
        images = [batch[0].float().cpu() for batch in calibration]
        records = list(site_records(traced.module, traced, sites, images))
        model = self.rebuild(traced)
        gates = dict(zip([s.conv for s in self._sites], gates_of(model).values(), strict=True))
        for site, pooled, energy in records:
            gate = gates[site.conv]
            assert isinstance(gate, (FBSGate, ManiDPGate))
            norm = modules[site.norm] if site.norm is not None else None
            start_gate(gate, norm, pooled, energy, self.static_part, self.image_part)
        return model

    def begin_step(self, model: nn.Module, progress: float) -> None:
        self._set_keep(model, self._schedule.at(progress))

    @property
    def quantile_thresholds(self) -> bool:
        """True where stored thresholds are quantiles, to be taken once more from the finished network."""
        return self.rule == "threshold"

    def finalise(self, model: nn.Module) -> nn.Module:
        model.eval()
        self._set_keep(model, self._schedule.at(1.0))
        if self.quantile_thresholds and self.calibration:
            self._calibrate(model)
        for gate in gates_of(model).values():
            assert isinstance(gate, SaliencyGate)
            gate.saliency = gate.compared = None
        for mask in masks_of(model).values():
            mask.pooled = None
        return model

    def live_masks(self, model: nn.Module, images: Iterable[Tensor]) -> dict[str, Tensor]:
        found = recorded_masks(model, images)
        return {site.conv: found[gate_key(site.conv)] for site in self._sites}

    def gate_macs(self, model: nn.Module) -> int:
        return total_gate_macs(model)

    def _calibrate(self, model: nn.Module) -> None:
        """One pass over the calibration images, as one batch, sets the thresholds in order of execution."""
        gates = [gate for gate in gates_of(model).values() if isinstance(gate, (FBSGate, ManiDPGate))]
        for gate in gates:
            gate.calibrating = True
        with torch.no_grad():
            model(torch.cat([images.float().cpu() for images, _ in self.calibration]))
        for gate in gates:
            gate.calibrating = False

    def _set_keep(self, model: nn.Module, keep: float) -> None:
        for gate in gates_of(model).values():
            gate.keep = keep

    def variety(self, model: nn.Module) -> Tensor | None:
        """The terms that ask for masks which differ between images; None where they are off or all channels live."""
        if self.balance == 0 and self.shaping == 0:
            return None
        terms = []
        for gate in gates_of(model).values():
            assert isinstance(gate, SaliencyGate)
            if gate.compared is None or gate.keep >= 1.0:
                continue
            decisions = soft_decisions(*gate.compared)
            if self.balance > 0:
                terms.append(self.balance * live_balance(decisions, gate.keep))
            if self.shaping > 0:
                terms.append(self.shaping * batch_shaping(decisions, *shaping_prior(gate.keep)))
        return torch.stack(terms).sum() / len(gates_of(model)) if terms else None

    @staticmethod
    def saliencies(gates: Iterable[TrainableGate]) -> list[Tensor]:
        """The last step's scores, [N, C] per gate."""
        found = [gate.saliency for gate in gates]
        assert all(s is not None for s in found)
        return [s for s in found if s is not None]
