"""The demo: two gated ResNets on CIFAR-10 test images, without torch and without a network connection."""

from dynprune_rt.demo.gallery import IMAGES, MODELS, DemoModel
from dynprune_rt.demo.trial import Trial, try_model

__all__ = ["IMAGES", "MODELS", "DemoModel", "Trial", "try_model"]
