"""Channel gates as published: the operators of each method, as small modules around one convolution.

A :class:`ChannelGate` evaluates ``activation(norm(conv(x)))`` and multiplies by its mask [N, C, 1, 1]
where its method does. The modules are written with the operators that the public implementations use
(boolean assignment, topk and scatter, kthvalue, argmax and one-hot, ...), since a converter has to
cope with exactly those. Inference forms only: no Gumbel noise, no straight-through terms.

``share`` is the wanted fraction of live channels; a calibration pass (models.calibration) sets
thresholds and scales from data so that masks are mixed and differ from image to image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = Callable[[Tensor], Tensor]
Place = Literal["input", "convolution", "norm", "activation"]


class ImageGate(nn.Module):
    """Anything that decides per image; ``calibrating`` is set during the calibration pass only."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.calibrating = False


class ChannelGate(ImageGate):
    """A gate on one convolution's output channels (or, if ``applied`` is "input", on its inputs).

    ``source`` is the map the gate reads: the convolution's input, or the block's input for gates with
    ``reads_block``. ``mask`` returns [N, channels, 1, 1].
    """

    applied: ClassVar[Place] = "activation"

    def __init__(self, source_channels: int, channels: int, share: float) -> None:
        super().__init__(share)
        self.source_channels = source_channels
        self.channels = channels
        self.reads_block = False

    @property
    def keep(self) -> int:
        """Channels that a fixed-count gate keeps per image: ceil(share * channels), at least 1."""
        return max(1, math.ceil(self.share * self.channels - 1e-9))

    def mask(self, source: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, conv: Layer, norm: Layer, activation: Layer, block_input: Tensor | None) -> Tensor:
        source = block_input if self.reads_block and block_input is not None else x
        mask = self.mask(source)
        if self.applied == "input":
            return activation(norm(conv(x * mask)))
        if self.applied == "convolution":
            return activation(norm(conv(x) * mask))
        if self.applied == "norm":
            return activation(norm(conv(x)) * mask)
        return activation(norm(conv(x))) * mask


def gated_conv(
    x: Tensor,
    conv: Layer,
    norm: Layer,
    activation: Layer,
    gate: ChannelGate | None,
    block_input: Tensor | None = None,
) -> Tensor:
    """``activation(norm(conv(x)))``, under ``gate`` where there is one."""
    if gate is None:
        return activation(norm(conv(x)))
    result: Tensor = gate(x, conv, norm, activation, block_input)
    return result


# -- what calibration sets ----------------------------------------------------------------------------


def standardise(layer: nn.Linear | nn.Conv2d, scores: Tensor, centre: float, spread: float, gain: float = 10.0) -> None:
    """Rescale the rows of ``layer`` so that its outputs ``scores`` [N, C, ...] get this mean and deviation.

    ``gain`` bounds how far a relative change of the input moves the output, in spreads. Without a bound a
    channel that hardly varies turns rounding errors into decisions; gates that multiply by their score
    need it below 1 / spread, or loud channels get louder from gate to gate without end.
    """
    flat = scores.reshape(scores.shape[0], scores.shape[1], -1)
    mean = flat.mean((0, 2))
    deviation = torch.maximum(flat.std((0, 2)), flat.abs().mean((0, 2)) / gain).clamp_min(1e-6)
    factor = spread / deviation
    assert layer.bias is not None
    layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_(centre + factor * (layer.bias - mean))


def midpoint(scores: Tensor, share: float) -> float:
    """A threshold that about ``share`` of ``scores`` reach, midway between two of them."""
    ordered = scores.flatten().sort(descending=True).values
    count = min(max(round(share * ordered.numel()), 1), ordered.numel() - 1)
    return float((ordered[count - 1] + ordered[count]) / 2)


def channel_midpoints(scores: Tensor, share: float) -> Tensor:
    """Per channel of ``scores`` [N, C], a threshold reached by a binomially drawn number of the images.

    Midway between two images' scores; outside all of them for channels drawn always or never live.
    """
    images, channels = scores.shape
    ordered = scores.sort(dim=0, descending=True).values
    span = (ordered[0] - ordered[-1]).clamp_min(0.1)
    padded = torch.cat([(ordered[0] + span)[None], ordered, (ordered[-1] - span)[None]])
    live = torch.bernoulli(torch.full((images, channels), share)).sum(0).long()
    above = padded.gather(0, live[None])
    below = padded.gather(0, live[None] + 1)
    return ((above + below) / 2)[0]


def settled(channels: int, share: float, distance: float) -> Tensor:
    """Offsets [C] that keep two channels in three ``distance`` away from their threshold, above it or below.

    A gate that multiplies by a value near zero magnifies relative errors without bound where a batch norm
    follows; with all channels hovering about their thresholds, a deep network becomes chaotic.
    """
    side = 2 * torch.bernoulli(torch.full((channels,), share)) - 1
    return distance * side * torch.bernoulli(torch.full((channels,), 2 / 3))


# -- 1. ManiDP ----------------------------------------------------------------------------------------


class ManiDPGate(ChannelGate):
    """Saliency of a pooled two-layer perceptron, kept where it reaches a stored threshold (ManiDP, CVPR 2021)."""

    clamp_max = 1000.0

    def __init__(self, source_channels: int, channels: int, share: float, clamp_max: float = 1000.0) -> None:
        super().__init__(source_channels, channels, share)
        hidden = channels // 2 if channels >= 80 else channels
        self.clamp_max = clamp_max
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(source_channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels)
        nn.init.kaiming_normal_(self.fc1.weight)
        nn.init.kaiming_normal_(self.fc2.weight)
        nn.init.ones_(self.fc2.bias)
        self.register_buffer("threshold", torch.tensor(-10000.0))

    def mask(self, source: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(self.pool(source).squeeze(3).squeeze(2)))
        if self.calibrating:
            standardise(self.fc2, self.fc2(hidden), 1.0, 0.25, gain=0.4)
        saliency = F.relu(self.fc2(hidden)).clamp(max=self.clamp_max)
        if self.calibrating:
            self.threshold.fill_(midpoint(saliency, self.share))
        binary = torch.ones_like(saliency)
        binary[saliency < self.threshold] = 0
        return (binary * saliency).unsqueeze(2).unsqueeze(3)


# -- 2., 3. feature boosting and suppression ----------------------------------------------------------


class SaliencyGate(ChannelGate):
    """Base of the winner-take-all gates: relu of one linear layer on the pooled source, k channels survive."""

    def __init__(self, source_channels: int, channels: int, share: float) -> None:
        super().__init__(source_channels, channels, share)
        self.fc = nn.Linear(source_channels, channels)
        nn.init.kaiming_normal_(self.fc.weight)
        nn.init.ones_(self.fc.bias)

    def saliency(self, pooled: Tensor) -> Tensor:
        if self.calibrating:
            standardise(self.fc, self.fc(pooled), 1.0, 0.25, gain=0.4)
        return F.relu(self.fc(pooled))


class FBSGate(SaliencyGate):
    """Feature boosting and suppression (ICLR 2019): the winners' saliency replaces the batch norm's scale.

    out = activation(pi * norm(conv(x)) + beta), beta masked as well; pi by topk and scatter.
    """

    def mask(self, source: Tensor) -> Tensor:
        saliency = self.saliency(source.abs().mean((2, 3)))
        if self.keep == self.channels:
            return saliency[:, :, None, None]
        losers = saliency.topk(self.channels - self.keep, dim=1, largest=False).indices
        return saliency.scatter(1, losers, 0.0)[:, :, None, None]

    def forward(self, x: Tensor, conv: Layer, norm: Layer, activation: Layer, block_input: Tensor | None) -> Tensor:
        mask = self.mask(block_input if self.reads_block and block_input is not None else x)
        y = conv(x)
        if not isinstance(norm, nn.BatchNorm2d):
            return activation(norm(y) * mask)
        if self.calibrating:
            norm(y)  # takes the statistics
        y = F.batch_norm(y, norm.running_mean, norm.running_var, eps=norm.eps)
        beta = norm.bias[None, :, None, None] * (mask > 0)
        return activation(mask * y + beta)


class FBSThresholdGate(SaliencyGate):
    """FBS as the TensorFlow code writes it: the (k+1)-th value is the threshold, only larger ones survive."""

    applied: ClassVar[Place] = "norm"

    def mask(self, source: Tensor) -> Tensor:
        saliency = self.saliency(source.abs().mean(dim=(2, 3)))
        if self.keep == self.channels:
            return saliency[:, :, None, None]
        threshold = saliency.topk(self.keep + 1, dim=1).values.min(dim=1, keepdim=True).values
        return (saliency * torch.gt(saliency, threshold).float()).unsqueeze(-1).unsqueeze(-1)


class FBSBeforeNormGate(SaliencyGate):
    """A PyTorch port of FBS that masks before the batch norm and scales after it.

    Between the two a masked channel holds the constant -mean * scale + shift.
    """

    def mask(self, source: Tensor) -> Tensor:
        return self.saliency(source.mean((2, 3)))

    def forward(self, x: Tensor, conv: Layer, norm: Layer, activation: Layer, block_input: Tensor | None) -> Tensor:
        saliency = self.mask(block_input if self.reads_block and block_input is not None else x)
        active = torch.ones_like(saliency)
        if self.keep < self.channels:
            losers = saliency.topk(self.channels - self.keep, dim=1, largest=False)[1]
            active = active.scatter(1, losers, 0.0)
            saliency = saliency.scatter(1, losers, 0.0)
        y = norm(conv(x) * active.unsqueeze(2).unsqueeze(3))
        return activation(y * saliency.unsqueeze(2).unsqueeze(3))


class KthGate(SaliencyGate):
    """Winner-take-all by comparison with the k-th largest saliency; ``form`` chooses how that is found."""

    def __init__(self, source_channels: int, channels: int, share: float, form: str = "kthvalue") -> None:
        super().__init__(source_channels, channels, share)
        if form not in ("kthvalue", "sort", "topk"):
            raise ValueError(f"form={form!r}: expected 'kthvalue', 'sort' or 'topk'")
        self.form = form

    def mask(self, source: Tensor) -> Tensor:
        saliency = self.saliency(source.mean((2, 3)))
        if self.form == "kthvalue":
            threshold = saliency.kthvalue(self.channels - self.keep + 1, dim=1, keepdim=True).values
        elif self.form == "sort":
            threshold = saliency.sort(dim=1, descending=True).values[:, self.keep - 1 : self.keep]
        else:
            threshold = saliency.topk(self.keep, dim=1).values[:, -1:]
        kept = torch.where(saliency >= threshold, saliency, torch.zeros_like(saliency))
        return kept.unsqueeze(-1).unsqueeze(-1)


# -- 4. Gumbel-sigmoid --------------------------------------------------------------------------------


class DGNetGate(ChannelGate):
    """Pooled 1x1 conv, BN, ReLU, 1x1 conv; open where the logit is not negative (DGNet, ICCV 2021)."""

    def __init__(self, source_channels: int, channels: int, share: float, hidden: int | None = None) -> None:
        super().__init__(source_channels, channels, share)
        hidden = hidden or max(source_channels // 4, 4)
        self.conv1 = nn.Conv2d(source_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1)

    def logits(self, source: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(F.adaptive_avg_pool2d(source, (1, 1)))))
        if self.calibrating:
            standardise(self.conv2, self.conv2(hidden), 0.0, 1.0)
            self.conv2.bias.sub_(channel_midpoints(self.conv2(hidden).flatten(1), self.share))
        result: Tensor = self.conv2(hidden)
        return result

    def mask(self, source: Tensor) -> Tensor:
        return (self.logits(source) >= 0).float()


class BatchShapedGate(DGNetGate):
    """Batch-shaped gate (ICLR 2020): the same perceptron of 16 units, open where the sigmoid passes one half."""

    def __init__(self, source_channels: int, channels: int, share: float) -> None:
        super().__init__(source_channels, channels, share, hidden=16)

    def mask(self, source: Tensor) -> Tensor:
        return (torch.sigmoid(self.logits(source)) > 0.5).to(source.dtype)


# -- 5. two-way softmax -------------------------------------------------------------------------------


class LAUDNetGate(ChannelGate):
    """Two logits per group of ``granularity`` neighbouring channels, applied to the raw convolution output.

    The mask stands before the batch norm, so a masked channel becomes a constant (LAUDNet, TPAMI 2024).
    """

    applied: ClassVar[Place] = "convolution"

    def __init__(self, source_channels: int, channels: int, share: float, granularity: int = 1) -> None:
        super().__init__(source_channels, channels, share)
        if channels % granularity:
            raise ValueError(f"granularity={granularity} does not divide {channels} channels")
        self.granularity = granularity
        self.groups = channels // granularity
        hidden = max(self.groups // 16, 16)
        self.fc1 = nn.Linear(source_channels, hidden)
        self.fc2 = nn.Linear(hidden, 2 * self.groups)

    def mask(self, source: Tensor) -> Tensor:
        batch = source.shape[0]
        hidden = F.relu(self.fc1(F.adaptive_avg_pool2d(source, 1).flatten(1)))
        if self.calibrating:
            standardise(self.fc2, self.fc2(hidden), 0.0, 1.0)
            logits = self.fc2(hidden).view(batch, 2, self.groups)
            self.fc2.bias[: self.groups].sub_(channel_midpoints(logits[:, 0] - logits[:, 1], self.share))
        logits = self.fc2(hidden).view(batch, 2, self.groups)
        mask = (logits[:, 0] >= logits[:, 1]).float()
        if self.granularity > 1:
            # repeat, then bring the copies of a group next to each other
            mask = mask.repeat(1, self.granularity).view(batch, self.granularity, self.groups)
            mask = mask.transpose(1, 2).reshape(batch, self.channels)
        return mask.view(batch, self.channels, 1, 1)


class BranchGate(ImageGate):
    """One decision per residual branch: argmax of two logits, as one-hot (ConvNet-AIG, ECCV 2018).

    forward: block input [N, C, H, W] -> [N, 1, 1, 1].
    """

    def __init__(self, source_channels: int, share: float) -> None:
        super().__init__(share)
        self.conv1 = nn.Conv2d(source_channels, 16, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 2, 1)

    def forward(self, source: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(F.avg_pool2d(source, (source.shape[2], source.shape[3])))))
        if self.calibrating:
            standardise(self.conv2, self.conv2(hidden), 0.0, 1.0)
            logits = self.conv2(hidden).flatten(1)
            margin = logits[:, 1:2] - logits[:, 0:1]
            self.conv2.bias[1] -= midpoint(margin, self.share)
        logits = self.conv2(hidden).view(-1, 2)
        choice = F.one_hot(logits.argmax(dim=1), 2).to(source.dtype)
        return choice[:, 1].view(-1, 1, 1, 1)


# -- 6. clamps ----------------------------------------------------------------------------------------


class ClampGate(ChannelGate):
    """Two clamped 1x1 convs on the pooled input, multiplied onto the conv's *input* (dynamic channel pruning).

    The exact zeros come from the clamp; with ``binary`` the result is compared with one half instead.
    """

    applied: ClassVar[Place] = "input"

    def __init__(self, source_channels: int, channels: int, share: float, binary: bool = False) -> None:
        super().__init__(source_channels, channels, share)
        self.binary = binary
        self.conv1 = nn.Conv2d(source_channels, max(source_channels // 2, 4), 1)
        self.conv2 = nn.Conv2d(max(source_channels // 2, 4), channels, 1)

    def mask(self, source: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(source, 1)
        if self.calibrating:
            standardise(self.conv1, self.conv1(pooled), 0.5, 0.3, gain=2.0)
        hidden = self.conv1(pooled).clamp(0, 1)
        if self.calibrating:
            standardise(self.conv2, self.conv2(hidden), 0.0, 0.4, gain=1.0)
            offset = torch.full((self.channels,), 0.5) if self.binary else settled(self.channels, self.share, 0.7)
            self.conv2.bias.add_(offset - channel_midpoints(self.conv2(hidden).flatten(1), self.share))
        opened = torch.clamp(self.conv2(hidden), min=0.0, max=1.0)
        return (opened > 0.5).float() if self.binary else opened


class HardSigmoidGate(ClampGate):
    """The same with a hard sigmoid at the end, and on the output: exact zeros without any comparison."""

    applied: ClassVar[Place] = "activation"

    def mask(self, source: Tensor) -> Tensor:
        pooled = source.mean((2, 3), keepdim=True)
        if self.calibrating:
            standardise(self.conv1, self.conv1(pooled), 0.5, 0.3, gain=2.0)
        hidden = F.relu6(self.conv1(pooled))
        if self.calibrating:
            standardise(self.conv2, self.conv2(hidden), 0.0, 2.0, gain=1.0)
            offset = settled(self.channels, self.share, 4.0) - 3.0
            self.conv2.bias.add_(offset - channel_midpoints(self.conv2(hidden).flatten(1), self.share))
        return F.hardsigmoid(self.conv2(hidden))


# -- 7. reactive gates --------------------------------------------------------------------------------


class InstanceNormGate(ChannelGate):
    """Instance-wise sparsity: keeps the channels of a map whose own L2 norm is large enough (after IJCAI 2019).

    ``rule``: "max" or "mean" compare with ``alpha`` times the largest or mean channel norm of that image,
    "constant" with ``alpha`` itself; "topk" keeps a fixed count. ``alpha=None`` is set by calibration.
    The map is multiplied where it enters the convolution; an identity shortcut keeps the full copy.
    """

    applied: ClassVar[Place] = "input"

    def __init__(
        self, source_channels: int, channels: int, share: float, rule: str = "max", alpha: float | None = None
    ) -> None:
        super().__init__(source_channels, channels, share)
        if rule not in ("max", "mean", "constant", "topk"):
            raise ValueError(f"rule={rule!r}: expected 'max', 'mean', 'constant' or 'topk'")
        self.rule = rule
        self.fixed = alpha is not None
        self.register_buffer("alpha", torch.tensor(0.0 if alpha is None else float(alpha)))

    def mask(self, source: Tensor) -> Tensor:
        norms = source.square().sum((2, 3)).sqrt()
        if self.rule == "topk":
            winners = norms.topk(self.keep, dim=1).indices
            mask = torch.zeros(source.shape[0], self.channels, dtype=source.dtype, device=source.device)
            return mask.scatter_(1, winners, 1.0)[:, :, None, None]
        if self.rule == "max":
            reference = norms.amax(dim=1, keepdim=True)
        elif self.rule == "mean":
            reference = norms.mean(dim=1, keepdim=True)
        else:
            reference = torch.ones_like(norms[:, :1])
        if self.calibrating and not self.fixed:
            self.alpha.fill_(midpoint(norms / reference.clamp_min(1e-12), self.share))
        return (norms >= self.alpha * reference).to(source.dtype)[:, :, None, None]


# -- 10. what is not a gate; and what benchmarks use ----------------------------------------------------


class SqueezeExcite(ChannelGate):
    """Squeeze-and-excite: a sigmoid is never zero, so this scales channels and skips nothing."""

    def __init__(self, source_channels: int, channels: int, share: float) -> None:
        super().__init__(source_channels, channels, share)
        hidden = max(channels // 4, 4)
        self.fc1 = nn.Linear(source_channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def mask(self, source: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(F.adaptive_avg_pool2d(source, 1).flatten(1)))
        return torch.sigmoid(self.fc2(hidden)).unsqueeze(2).unsqueeze(3)


class RandomGate(ChannelGate):
    """The k channels with the largest random projection of the pooled source: exact share, chosen by the image."""

    def __init__(self, source_channels: int, channels: int, share: float) -> None:
        super().__init__(source_channels, channels, share)
        self.projection = nn.Linear(source_channels, channels)
        nn.init.normal_(self.projection.weight, std=source_channels**-0.5)

    def mask(self, source: Tensor) -> Tensor:
        pooled = source.mean((2, 3))
        if self.calibrating:
            standardise(self.projection, self.projection(pooled), 0.0, 1.0)
        scores = self.projection(pooled)
        winners = scores.topk(self.keep, dim=1).indices
        return torch.zeros_like(scores).scatter(1, winners, 1.0).unsqueeze(2).unsqueeze(3)


class OutputGate(ImageGate):
    """A mask on a whole block's output, after the addition and its ReLU (fire-together-wire-together, CVPR 2022).

    forward: block input [N, C, H, W] -> [N, channels, 1, 1].
    """

    def __init__(self, source_channels: int, channels: int, share: float) -> None:
        super().__init__(share)
        self.conv = nn.Conv2d(source_channels, channels, 1)

    def forward(self, source: Tensor) -> Tensor:
        pooled = F.adaptive_max_pool2d(source, 1)
        if self.calibrating:
            standardise(self.conv, self.conv(pooled), 0.0, 1.0)
            self.conv.bias.sub_(channel_midpoints(self.conv(pooled).flatten(1), self.share))
        return (torch.sigmoid(self.conv(pooled)) > 0.5).float()
