"""CWP (Wang, Ma, Yu, arXiv 2209.03534 v2, 2022): static pruning by instance-weighted soft masks.

Read in the abstract only: per-instance channel-wise soft masks, instances weighted by complexity, importance of a
filter = weighted sum of its masks, a regulariser that polarises them, removal below a threshold. Everything else is a
reconstruction: masks are sigmoids of a perceptron on the pooled input, divided by their mean over the layer's channels
(a common factor would be undone by the next batch norm, and a cost term could shrink whole layers for free); weights
are proportional to the cross-entropy; polarisation is the relative variance of the importance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.attach import attach_gates, gate_key, gates_of
from dynprune_rt.methods.base import Calibration, Method, StepContext
from dynprune_rt.methods.budget import greedy_removal
from dynprune_rt.methods.gates import SoftMaskGate
from dynprune_rt.methods.graph import LayerCost, TracedModel, first_readers, require_inner
from dynprune_rt.methods.losses import instance_weights, polarisation
from dynprune_rt.methods.removal import remove_channels
from dynprune_rt.methods.thresholds import valley


class CWP(Method):
    """Train soft masks for ``mask_part`` of the run, remove channels, fine-tune for the rest.

    cut "budget": the least important channels per cost saved go until ``target`` of the MACs is left; "valley": those
    below the valley of each layer's histogram, whatever that leaves. ``polarise`` weighs the polarisation term.
    """

    name: ClassVar[str] = "cwp"

    def __init__(
        self,
        target: float = 0.5,
        mask_part: float = 0.2,
        polarise: float = 0.1,
        cut: Literal["budget", "valley"] = "budget",
        minimum: float = 0.1,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if cut not in ("budget", "valley"):
            raise TrainingError(f"cut={cut!r}: expected 'budget' or 'valley'")
        if not 0.0 < mask_part < 1.0:
            raise TrainingError(f"mask_part={mask_part}: must be in (0, 1), fine-tuning needs the rest")
        if not 0.0 < target <= 1.0:
            raise TrainingError(f"target={target}: the share of the MACs to leave must be in (0, 1]")
        self.target, self.mask_part, self.polarise, self.cut = target, mask_part, polarise, cut
        self.minimum, self.momentum = minimum, momentum
        self.state["importance"] = {}
        self._layers: list[LayerCost] = []
        self._plain: TracedModel | None = None

    def prepare(self, traced: TracedModel, calibration: Calibration, classes: int) -> nn.Module:
        if self.cut == "budget":  # an impossible target is told before the masks are trained
            even = {site.conv: torch.ones(site.channels) for site in require_inner(traced)}
            greedy_removal(traced.layers, even, self.target, self.minimum)
        return self.rebuild(traced)

    def rebuild(self, traced: TracedModel) -> nn.Module:
        sites = require_inner(traced)
        if "kept" in self.state:
            remove_channels(traced, self.state["kept"])
            return traced.module
        self._layers = traced.layers
        self._plain = copy.deepcopy(traced)  # for the removal, when gates are attached to the other one
        return attach_gates(traced, sites, lambda site, inputs: SoftMaskGate(inputs, site.channels))

    def penalty(self, context: StepContext) -> Tensor | None:
        gates = gates_of(context.model)
        if not gates:
            return None
        weights = instance_weights(context.losses)
        terms = []
        for key, gate in gates.items():
            assert gate.saliency is not None
            importance = (weights[:, None] * gate.saliency).mean(0)
            terms.append(polarisation(importance))
            old = self.state["importance"].get(key)
            now = importance.detach().float().cpu()
            self.state["importance"][key] = now if old is None else torch.lerp(now, old, self.momentum)
        return self.polarise * torch.stack(terms).mean()

    def end_epoch(self, model: nn.Module, progress: float) -> nn.Module | None:
        if "kept" in self.state or progress < self.mask_part - 1e-9:
            return None
        assert self._plain is not None
        names = [site.conv for site in self._plain.inner_sites()]
        importance = {name: self.state["importance"][gate_key(name)] for name in names}
        if self.cut == "budget":
            kept = greedy_removal(self._layers, importance, self.target, self.minimum)
        else:
            kept = {name: above_valley(values, self.minimum) for name, values in importance.items()}
        trained = model.cpu().state_dict()
        plain = self._plain
        plain.module.load_state_dict({k: v for k, v in trained.items() if not k.startswith(("gates.", "masks."))})
        fold_importance(plain, importance)
        remove_channels(plain, kept)
        self.state["kept"] = kept
        return plain.module

    def finalise(self, model: nn.Module) -> nn.Module:
        if "kept" not in self.state:
            raise TrainingError("cwp trains its masks before it removes channels: at least one epoch is needed")
        return super().finalise(model)


def above_valley(importance: Tensor, minimum: float) -> Tensor:
    """Indices of the channels above the histogram's valley, at least ``minimum`` of them."""
    floor = max(1, round(minimum * importance.numel()))
    kept = (importance > valley(importance)).nonzero().flatten()
    return kept if len(kept) >= floor else importance.topk(floor).indices.sort().values


def fold_importance(traced: TracedModel, importance: Mapping[str, Tensor]) -> None:
    """Scale the layers that read each inner site by its constant masks [C], all above 0; exact."""
    modules = dict(traced.module.named_modules())
    for site in traced.inner_sites():
        for reader in first_readers(traced, site):
            with torch.no_grad():
                _scale_input(modules[reader.module], importance[site.conv], reader.block)


def _scale_input(module: nn.Module, scale: Tensor, block: int) -> None:
    """Make ``module`` behave as if its input's channels were multiplied by ``scale`` [C]."""
    if isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        module.running_mean.div_(scale)
        module.weight.mul_(scale)
        return
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
    shape = (-1, 1) if depthwise else (1, -1)
    rest = [1] * (module.weight.dim() - 2)
    module.weight.mul_(scale.repeat_interleave(block).to(module.weight).reshape(*shape, *rest))
