"""The methods by name, as the command line and recipes ask for them."""

from __future__ import annotations

import inspect
from typing import Any

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.base import Method
from dynprune_rt.methods.cwp import CWP
from dynprune_rt.methods.discriminant_information import DiscriminantInformation
from dynprune_rt.methods.fbs import FBS
from dynprune_rt.methods.instance_wise_sparsity import InstanceWiseSparsity
from dynprune_rt.methods.manidp import ManiDP

#: Name -> class; every constructor takes ``target``, the share of the dense MACs to leave.
METHODS: dict[str, type[Method]] = {
    method.name: method for method in (InstanceWiseSparsity, DiscriminantInformation, ManiDP, CWP, FBS)
}


def create(name: str, target: float | None = None, **options: Any) -> Method:
    """The method ``name`` with its own default target or the given one.

    Raises TrainingError for an unknown name or option, or a value out of range.
    """
    if name not in METHODS:
        raise TrainingError(f"unknown method {name!r}; known methods: {', '.join(METHODS)}")
    known = inspect.signature(METHODS[name]).parameters
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise TrainingError(f"method {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return METHODS[name](**({} if target is None else {"target": target}), **options)
