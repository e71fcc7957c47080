"""Terms that ask for masks which differ between images; without them gates tend to come out nearly static."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def soft_decisions(scores: Tensor, limit: Tensor, softness: float = 0.5) -> Tensor:
    """How surely a channel is kept: sigmoid((scores - limit) / (softness sd)) [N, C], sd that of the layer's scores.

    scores [N, C]; limit broadcasts. Neither the limit nor the deviation has a gradient.
    """
    scale = softness * scores.detach().std(unbiased=False).clamp_min(1e-6)
    return torch.sigmoid((scores - limit.detach()) / scale)


def live_balance(decisions: Tensor, keep: float, slack: float = 0.0) -> Tensor:
    """Mean over channels of max(|f_c - keep| - slack, 0)^2, f_c the mean of decisions [N, C] over the batch.

    Charges channels that are live in (nearly) all or no images. As the load balancing of mixtures of experts; its use
    on channel gates is a reconstruction.
    """
    return ((decisions.mean(0) - keep).abs() - slack).clamp_min(0.0).square().mean()


def batch_shaping(decisions: Tensor, a: float, b: float) -> Tensor:
    """Batch-shaping (Ehteshami Bejnordi et al., ICLR 2020): (F_emp - F_prior)^2 summed over the batch, channel mean.

    Sorted along the batch, a channel's decisions [N, C] in (0, 1) are compared with the prior's distribution function.
    The prior is Kumaraswamy's, F(x) = 1 - (1 - x^a)^b, for the published Beta: alike in shape, its F is elementary.
    """
    count = decisions.shape[0]
    ordered = decisions.sort(0).values.clamp(1e-6, 1 - 1e-6)
    empirical = torch.arange(1, count + 1, device=ordered.device, dtype=ordered.dtype) / (count + 1)
    prior = 1.0 - (1.0 - ordered**a) ** b
    return (empirical[:, None] - prior).square().sum(0).mean()


def shaping_prior(keep: float) -> tuple[float, float]:
    """Parameters (a, b) of a Kumaraswamy distribution of mean ``keep``: the larger is 0.6, so it is high near 0 and 1.

    Its mean is b B(1 + 1/a, b), growing with a and falling with b; the smaller parameter is found by bisection.
    """

    def mean(a: float, b: float) -> float:
        return b * math.exp(math.lgamma(1 + 1 / a) + math.lgamma(b) - math.lgamma(1 + 1 / a + b))

    lower_a = mean(0.6, 0.6) > keep
    low, high = 0.02, 0.6
    for _ in range(40):
        middle = (low + high) / 2
        too_small = mean(middle, 0.6) < keep if lower_a else mean(0.6, middle) > keep
        low, high = (middle, high) if too_small else (low, middle)
    return (low, 0.6) if lower_a else (0.6, low)
