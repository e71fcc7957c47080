"""Makes the files of ``dynprune demo``: two gated programs, their dense networks as ONNX, test images.

    python -m dynprune_rt.recipes.demo --resnet20 resnet20.safetensors --resnet56 resnet56.safetensors \
        --resnet20-fbs resnet20_fbs.safetensors --train data_batch_1.bin --test test_batch.bin
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import dynprune_rt
from dynprune_rt import models
from dynprune_rt.benchmark.case import export_onnx
from dynprune_rt.demo import IMAGES, MODELS
from dynprune_rt.demo.cifar10 import load_images, normalize
from dynprune_rt.errors import DynpruneError
from dynprune_rt.recipes.instance_wise_sparsity import build, choose


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resnet20", type=Path, required=True, help="dense weights, safetensors")
    parser.add_argument("--resnet56", type=Path, required=True, help="dense weights, safetensors")
    parser.add_argument("--resnet20-fbs", type=Path, required=True, help="gated weights, safetensors")
    parser.add_argument("--train", type=Path, required=True, help="training images, for calibration")
    parser.add_argument("--test", type=Path, required=True, help="test images, to be shown")
    parser.add_argument("--count", type=int, default=400, help="test images to keep (default: %(default)s)")
    args = parser.parse_args()
    train = torch.from_numpy(normalize(load_images(args.train, 2000)[0]))
    boosted, sparse = MODELS

    gated = models.create("cifar_resnet20", "kth", share=0.6, weights=args.resnet20_fbs)
    dynprune_rt.convert(gated, train[:2]).save(boosted.program)
    choice = choose("cifar_resnet56", args.resnet56, train)
    print(f"ResNet-56: alpha {choice.alpha} at {len(choice.sites)} of {len(choice.variation)} sites", file=sys.stderr)
    gated = build("cifar_resnet56", args.resnet56, choice.sites, choice.alpha, "mean")
    dynprune_rt.convert(gated, train[:2]).save(sparse.program)

    for name, weights, model in (("20", args.resnet20, boosted), ("56", args.resnet56, sparse)):
        exported = export_onnx(models.create(f"cifar_resnet{name}", weights=weights), train[:1])
        if exported is None:
            raise DynpruneError("the onnx package is needed to export the dense networks: pip install onnx")
        model.dense_onnx.write_bytes(exported)

    images, labels = load_images(args.test, args.count)
    np.savez_compressed(IMAGES, images=images, labels=labels.astype(np.uint8))
    return 0


if __name__ == "__main__":
    sys.exit(main())
