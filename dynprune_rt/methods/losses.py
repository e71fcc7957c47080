"""Loss terms of the methods, each on plain tensors and differentiable by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dynprune_rt.methods.autograd import channel_norms

_EPS = 1e-12


def _single(x: Tensor) -> Tensor:
    """At least float32: norms and cosines of bfloat16 maps are not summed in bfloat16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(teacher || student) at temperature T, mean over the batch (Hinton et al. 2015). Both [N, K]."""
    student = F.log_softmax(logits / temperature, dim=1)
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def feature_decay(features: Sequence[Tensor]) -> Tensor:
    """Mean over images of the l2,1 norms of the maps (instance-wise sparsity's feature decay regularisation).

    Reconstruction: each map's sum over channels is divided by C sqrt(HW), so that one coefficient fits all layers.
    """
    terms = [channel_norms(f).mean() / float(f.shape[2] * f.shape[3]) ** 0.5 for f in features]
    return torch.stack(terms).sum()


def normalised_feature_decay(features: Sequence[Tensor]) -> Tensor:
    """l2,1 over l2 of each map, in (0, 1]: 1 where all channels are equally loud.

    Invariant to scale: the plain form can be paid by shrinking the batch norm's gamma without any sparsity.
    """
    terms = []
    for feature in features:
        norms = channel_norms(feature)
        terms.append((norms.sum(1) / (norms.shape[1] ** 0.5 * norms.norm(dim=1).clamp_min(_EPS))).mean())
    return torch.stack(terms).sum()


def complexity_weights(losses: Tensor, threshold: float, gamma: float = 1.0) -> Tensor:
    """ManiDP's weight of the sparsity term per image: ((C - CE)/C)^gamma where CE < C, else 0; detached.

    The published code lets the gradient through, which rewards raising the loss of easy images.
    """
    if threshold <= 0:
        return torch.zeros_like(losses)
    room = (threshold - losses.detach()) / threshold
    return torch.where(room > 0, room.clamp_min(1e-10) ** gamma, torch.zeros_like(room))


def saliency_lasso(saliencies: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Sum over layers of mean_i(w_i mean_c |pi_c(x_i)|); saliencies [N, C] per layer, weights [N]."""
    return torch.stack([(weights * s.abs().mean(1)).mean() for s in saliencies]).sum()


def cosine_gram(rows: Tensor) -> Tensor:
    """Pairwise cosines [N, N] of rows [N, D]."""
    unit = F.normalize(_single(rows), dim=1)
    return unit @ unit.T


def manifold_similarity(saliency: Tensor, features: Tensor) -> Tensor:
    """||cosGram(saliency) - cosGram(features)||_F^2 / N^2 of one layer; [N, C] and [N, D] (ManiDP)."""
    difference = cosine_gram(saliency) - cosine_gram(features)
    return difference.square().mean()


def polarisation(importance: Tensor) -> Tensor:
    """Minus the variance of the channels' importance [C] relative to its mean: low when channels part into two groups.

    Division by the mean makes uniform shrinking of a layer no way to pay the term (CWP; reconstruction).
    """
    relative = importance / importance.mean().clamp_min(_EPS)
    return -(relative - 1.0).square().mean()


def instance_weights(losses: Tensor, temperature: float = 1.0) -> Tensor:
    """CWP's complexity weights [N]: proportional to CE^(1/temperature), mean 1, detached (reconstruction)."""
    weights = losses.detach().clamp_min(1e-6) ** (1.0 / temperature)
    return weights / weights.mean()
