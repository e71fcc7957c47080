"""Making a pretrained CNN dynamic or smaller, as torch code; every result is a model for `dynprune_rt.convert`.

    from dynprune_rt import methods

    result = methods.train(model, loader, methods.FBS(target=0.5), settings=methods.Settings(epochs=20))
    program = dynprune_rt.convert(result.model, images[:2])

The vocabulary: `graph.trace` finds the *sites* of a model where a mask can stand; `attach` puts gates there, or
`removal` deletes channels; `losses`, `schedules` and `thresholds` are what methods are made of; a `Method` is called
by `train`; `measure_activity` says what it saved, and how much of that a smaller plain network would save as well.
"""

from dynprune_rt.methods.base import Method
from dynprune_rt.methods.cwp import CWP
from dynprune_rt.methods.data import Batches, ImageSet, load_cifar10
from dynprune_rt.methods.discriminant_information import DiscriminantInformation
from dynprune_rt.methods.fbs import FBS
from dynprune_rt.methods.instance_wise_sparsity import InstanceWiseSparsity
from dynprune_rt.methods.macs import Activity
from dynprune_rt.methods.manidp import ManiDP
from dynprune_rt.methods.measure import measure_activity
from dynprune_rt.methods.registry import METHODS, create
from dynprune_rt.methods.settings import Settings
from dynprune_rt.methods.training import Training, accuracy, train

__all__ = [
    "CWP",
    "FBS",
    "METHODS",
    "Activity",
    "Batches",
    "DiscriminantInformation",
    "ImageSet",
    "InstanceWiseSparsity",
    "ManiDP",
    "Method",
    "Settings",
    "Training",
    "accuracy",
    "create",
    "load_cifar10",
    "measure_activity",
    "train",
]
