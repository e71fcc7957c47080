"""The model zoo: plain torch definitions of common CNNs, dense or with any published gate pattern.

    from dynprune_rt import models
    model = models.create("cifar_resnet56", gate="manidp", seed=0)      # eval mode, masks mixed
    models.available()

Needs torch; the runtime does not import this package.
"""

from dynprune_rt.models.images import synthetic_images
from dynprune_rt.models.placement import GATES
from dynprune_rt.models.registry import available, create, entry

__all__ = ["GATES", "available", "create", "entry", "synthetic_images"]
