"""Instance-wise sparsity without training: gates on a pretrained CIFAR ResNet.

After Liu et al., "Learning Instance-wise Sparsity for Accelerating Deep Models" (IJCAI 2019): at inference a
channel of a feature map is dropped when its norm is small beside the map's other channels. A site is one
input of a convolution inside a block. The recipe, all of it on training images:

1. per site, the coefficient of variation of its channel norms (deviation over channels / mean, averaged over
   images); the sites where it is largest are gated, since uneven norms make small ones safe to drop;
2. one threshold factor alpha for all of them: the largest of a grid with which at most ``tolerance`` of the
   images change their class against the dense network. The network knows its training images by heart, so the
   tolerance has to be strict.

The gates read the very map they mask, so only the next convolution's inputs are skipped, and without the
paper's training loss about an eighth of the multiply-accumulates is all there is to gain.

    python -m dynprune_rt.recipes.instance_wise_sparsity --weights resnet56.safetensors \
        --images data_batch_1.bin -o resnet56.dpr
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dynprune_rt import models
from dynprune_rt.demo.cifar10 import load_images, normalize
from dynprune_rt.models.gates import InstanceNormGate

#: Threshold factors that are tried, from cautious to bold.
ALPHAS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)


@dataclass(frozen=True)
class Choice:
    """What the calibration found: gated sites, threshold factor, changed classes, coefficient per site."""

    sites: list[int]
    alpha: float
    changed: float
    variation: list[float]


def build(name: str, weights: str | Path, sites: list[int] | None, alpha: float, rule: str) -> nn.Module:
    """The network with gates at these sites (None: all)."""
    return models.create(
        name, "instance_norm", weights=weights, gate_sites=sites, gate_options={"rule": rule, "alpha": alpha}
    )


def predict(model: nn.Module, images: Tensor, batch: int = 250) -> Tensor:
    """Class per image, i64[N]."""
    with torch.inference_mode():
        return torch.cat([model(part).argmax(1) for part in images.split(batch)])


def coefficients_of_variation(model: nn.Module, images: Tensor, batch: int = 250) -> list[float]:
    """Per gate, in order: deviation over mean of its source's channel norms, averaged over ``images``."""
    gates = [m for m in model.modules() if isinstance(m, InstanceNormGate)]
    sums = [0.0] * len(gates)

    def record(index: int, source: Tensor) -> None:
        norms = source.square().sum((2, 3)).sqrt()
        sums[index] += float((norms.std(1) / norms.mean(1).clamp_min(1e-12)).sum())

    hooks = [
        gate.register_forward_pre_hook(lambda module, inputs, index=i: record(index, inputs[0]))
        for i, gate in enumerate(gates)
    ]
    predict(model, images, batch)
    for hook in hooks:
        hook.remove()
    return [total / len(images) for total in sums]


def choose(
    name: str,
    weights: str | Path,
    images: Tensor,
    rule: str = "mean",
    site_share: float = 0.5,
    tolerance: float = 0.001,
) -> Choice:
    """Select sites and alpha on ``images`` f32[N, 3, 32, 32]; see the module's text."""
    open_model = build(name, weights, None, 0.0, rule)
    variation = coefficients_of_variation(open_model, images)
    ranked = sorted(range(len(variation)), key=lambda i: -variation[i])
    sites = sorted(ranked[: round(site_share * len(ranked))])
    dense = predict(open_model, images)
    best, best_changed = 0.0, 0.0
    for alpha in ALPHAS:
        changed = float((predict(build(name, weights, sites, alpha, rule), images) != dense).float().mean())
        print(f"alpha {alpha:.2f}: {changed:.2%} of the images change class", file=sys.stderr)
        if changed > tolerance:
            break
        best, best_changed = alpha, changed
    return Choice(sites, best, best_changed, variation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar_resnet56", help="zoo name (default: %(default)s)")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of the dense network")
    parser.add_argument("--images", type=Path, required=True, help="training images, never test images")
    parser.add_argument("--limit", type=int, default=2000, help="images to use (default: %(default)s)")
    parser.add_argument("--rule", choices=("mean", "max"), default="mean", help="compare with (default: %(default)s)")
    parser.add_argument("--site-share", type=float, default=0.5, help="share of sites gated (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.001, help="of changed classes (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.dpr")
    args = parser.parse_args()
    images = torch.from_numpy(normalize(load_images(args.images, args.limit)[0]))
    choice = choose(args.model, args.weights, images, args.rule, args.site_share, args.tolerance)
    print(f"alpha {choice.alpha} at sites {choice.sites}", file=sys.stderr)

    import dynprune_rt

    program = dynprune_rt.convert(build(args.model, args.weights, choice.sites, choice.alpha, args.rule), images[:2])
    program.save(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
