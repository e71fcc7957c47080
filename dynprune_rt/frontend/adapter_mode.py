"""The mode under which a model is run and traced: makes published code traceable without changing its meaning.

Three habits of published models stop torch.export: reading ``tensor.data``, calling ``.cuda()``, and turning the
value of a buffer into a Python number (``if int(self.count[0]) > 0``). The first two are answered by ``detach()``
and by the tensor itself. The third is answered with the real value where that value is *provably* the same for
every input: an eager run records every such read together with whether anything derived from the input flowed
into it (`InputDependence`); tracing replays the independent ones and refuses branches on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dynprune_rt.errors import ConversionError
from dynprune_rt.frontend import source_location

_SCALAR_READS = {"item", "tolist", "equal", "allclose", "is_nonzero", "__int__", "__float__", "__bool__", "__index__"}
_BRANCH_READS = {"__bool__", "equal", "allclose", "is_nonzero"}


@dataclass(frozen=True)
class ScalarRead:
    """One conversion of a tensor to a Python value, in execution order."""

    function: str
    site: str
    value: Any
    depends_on_input: bool


class InputDependence(TorchDispatchMode):
    """Follows, by storage, which tensors depend on the given inputs while a model runs eagerly."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        # Weak references keep a storage's identity from being reused without keeping its memory.
        self._dependent = {StorageWeakRef(t.untyped_storage()) for t in inputs}

    def depends(self, values: Any) -> bool:
        """True if any tensor among ``values`` depends on the inputs."""
        return any(
            StorageWeakRef(leaf.untyped_storage()) in self._dependent
            for leaf in pytree.tree_leaves(values)
            if isinstance(leaf, torch.Tensor)
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.depends((args, kwargs)):
            written = [
                args[i] if i < len(args) else kwargs.get(a.name)
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            for leaf in pytree.tree_leaves((result, written)):
                if isinstance(leaf, torch.Tensor):
                    self._dependent.add(StorageWeakRef(leaf.untyped_storage()))
        return result


class AdapterMode(TorchFunctionMode):
    """Answers ``.data``, ``.cuda()`` and reads of constant scalars; see the module's text.

    ``reads`` is the record of an earlier eager run, for tracing; with ``dependence`` the mode makes that record
    (in ``self.reads``). ``error`` keeps a refusal, because torch.export may wrap or replace what is raised inside it.
    """

    def __init__(self, *, dependence: InputDependence | None = None, reads: Sequence[ScalarRead] | None = None) -> None:
        super().__init__()
        self.reads: list[ScalarRead] = []
        self.error: ConversionError | None = None
        self._dependence = dependence
        self._replay = None if reads is None else list(reads)
        self._position = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # By owner and name: torch hands out a new getter object on every access.
        if name == "__get__" and getattr(func, "__self__", None) is torch.Tensor.data:
            return args[0].detach()
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            args, kwargs = _without_cuda(args, kwargs)
            if len(args) == 1 and not kwargs:
                return args[0]
        if name in _SCALAR_READS and (name != "tolist" or self._replay is None):
            return self._read_scalar(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _read_scalar(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        site = source_location.of_caller()
        if self._replay is None:
            value = func(*args, **kwargs)
            depends = self._dependence is not None and self._dependence.depends((args, kwargs))
            # Traced tensors implement tolist() by item() on every element.
            single = pytree.tree_leaves(value) if name == "tolist" else [value]
            function = "item" if name == "tolist" else name
            self.reads.extend(ScalarRead(function, site, v, depends) for v in single)
            return value
        read = self._replay[self._position] if self._position < len(self._replay) else None
        self._position += 1
        if read is None or (read.function, read.site) != (name, site):
            self._replay = []  # a different path than in eager: nothing recorded can be trusted from here on
            read = None
        if read is not None and not read.depends_on_input:
            return read.value
        if name in _BRANCH_READS:
            self.error = ConversionError(
                f"{site or 'the model'}: a Python branch depends on the values of the images, so one traced program "
                "cannot stand for every input. Rewrite the branch with torch.where, or make the model always take "
                "its general path at inference."
            )
            raise self.error
        return func(*args, **kwargs)


def _without_cuda(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``Tensor.to`` without a CUDA device."""

    def names_cuda(value: Any) -> bool:
        return (isinstance(value, str) and value.startswith("cuda")) or (
            isinstance(value, torch.device) and value.type == "cuda"
        )

    kept = (args[0], *(a for a in args[1:] if not names_cuda(a)))
    kept_kwargs = {k: v for k, v in kwargs.items() if not names_cuda(v)}
    if len(kept) < len(args) or len(kept_kwargs) < len(kwargs):
        kept_kwargs.pop("non_blocking", None)
    return kept, kept_kwargs
