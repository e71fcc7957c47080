"""Discriminant information of channels (Hou & Kung, "A Feature-map Discriminant Perspective for Pruning Deep Neural
Networks", arXiv 2005.13796, 2020).

For features X [B, D] and one-hot labels Y [B, K] of a batch, both column-centred, and rho > 0,

    DI(X) = tr[(X X' + rho I)^-1 X X' Y Y'] = tr(Y'Y) - (loss of the best ridge regression from X to Y),

so adding features never lowers it. The importance of channel c is the derivative of
J = tr[Y Y' (X_m X_m' + rho I)^-1] to a scalar m_c on its columns X_c: with A = (X X' + rho I)^-1 Y it is
|dJ/dm_c| = 2 ||X_c' A||_F^2, and dDI/dm_c = rho times that. One Cholesky solve gives all channels; no autograd.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.errors import DataError, TrainingError

#: Ridge parameter of the authors' code.
RHO = 0.1

# Elements of the features converted to float64 at a time.
_CHUNK = 1 << 23


def discriminant_information(features: Tensor, labels: Tensor, classes: int, rho: float = RHO) -> float:
    """DI of features [B, ...] for labels i64[B], in float64."""
    gram, targets = _gram(features), _centred_targets(labels, classes)
    solution = torch.linalg.solve(gram + rho * torch.eye(len(gram), dtype=gram.dtype), targets)
    return float((solution * (gram @ targets)).sum())


def discriminant_scores(features: Tensor, labels: Tensor, classes: int, rho: float = RHO) -> Tensor:
    """|dJ/dm_c| per channel, f64[C], of features [B, C, ...] for labels i64[B].

    Raises TrainingError for rho <= 0 or features that are not finite, DataError for labels out of range.
    """
    if rho <= 0:
        raise TrainingError(f"rho={rho}: the ridge parameter must be above 0")
    gram, targets = _gram(features), _centred_targets(labels, classes)
    if not bool(torch.isfinite(gram).all()):
        raise TrainingError("features are not finite; the network has diverged or its input is not normalised")
    factor = torch.linalg.cholesky(gram + rho * torch.eye(len(gram), dtype=gram.dtype))
    solution = torch.cholesky_solve(targets, factor)
    scores = [
        2.0 * torch.einsum("bcp,bk->cpk", part, solution).square().sum((1, 2)) for part in _centred_parts(features)
    ]
    return torch.cat(scores)


def score_sites(
    model: nn.Module, sites: Iterable[str], batches: Iterable[tuple[Tensor, Tensor]], classes: int, rho: float = RHO
) -> dict[str, Tensor]:
    """Scores of the convolutions named in ``sites``, on their outputs (before batch norm), summed over ``batches``.

    ``batches``: (images f32[B, ...], labels i64[B]), from training data; class-balanced and of 100 images or more.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    totals: dict[str, Tensor] = {}
    labels = torch.empty(0, dtype=torch.long)

    def record(name: str, output: Tensor) -> None:
        scores = discriminant_scores(output.detach().float().cpu(), labels, classes, rho)
        totals[name] = totals[name] + scores if name in totals else scores

    def hook_of(name: str) -> Any:
        return lambda module, inputs, output: record(name, output)

    handles = [modules[name].register_forward_hook(hook_of(name)) for name in sites]
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for images, batch_labels in batches:
                labels = batch_labels.cpu()
                model(images.to(device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not totals:
        raise DataError("no batches to score channels with")
    return totals


def _centred_targets(labels: Tensor, classes: int) -> Tensor:
    if labels.numel() == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"labels must lie in 0..{classes - 1}")
    targets = F.one_hot(labels, classes).double()
    return targets - targets.mean(0)


def _centred_parts(features: Tensor) -> Iterable[Tensor]:
    """[B, c, P] in float64, column-centred, a few channels at a time."""
    flat = features.flatten(2) if features.dim() > 2 else features.unsqueeze(2)
    step = max(1, _CHUNK // max(1, flat.shape[0] * flat.shape[2]))
    for part in flat.split(step, dim=1):
        part = part.double()
        yield part - part.mean(0)


def _gram(features: Tensor) -> Tensor:
    gram = torch.zeros(len(features), len(features), dtype=torch.float64)
    for part in _centred_parts(features):
        flat = part.flatten(1)
        gram += flat @ flat.T
    return gram
