"""The operator table: what every operator accepts, what it returns and what it computes."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators.attributes import REQUIRED, Attribute
from dynprune_rt.ir.types import TensorType

Attrs = Mapping[str, Any]
Types = Sequence["TensorType | None"]
Arrays = Sequence["np.ndarray | None"]


class Channels(enum.Enum):
    """How the channels (dimension 1) of an operator's result depend on those of its operands."""

    #: Output channel c depends only on channel c of the operands, element by element.
    POINTWISE = "pointwise"
    #: Output channel c depends only on channel c of the first operand, over space (pools, spatial_reduce, interpolate).
    SPATIAL = "spatial"
    #: An output channel may depend on every channel of the operands (conv2d, linear, softmax, sort, ...).
    MIXING = "mixing"
    #: Elements are moved, repeated or dropped but not computed (reshape, cat, slice, permute, index_select, ...).
    STRUCTURAL = "structural"


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    ``arity``: fewest and most operands; ``None`` for any number. An operand beyond the fewest may
    also be ``None`` (absent).
    ``attrs``: every attribute with its check and default.
    ``infer``: operand types and canonical attributes to output types; raises ValueError.
    ``reference``: operand arrays and canonical attributes to output arrays, in plain numpy. Its
    semantics are torch's. Results are float32; sums are accumulated in float64 and rounded once.
    ``channels``: see `Channels`; the behaviour for the least favourable attributes.
    ``zero_preserving``: the result is exactly zero where all value operands are; may depend on the
    attributes. (A sign of zero is not told apart. The first operand of ``where``, indices and
    weights are not value operands.)
    ``constant_operands``: positions that must hold constants (weights, index vectors).
    """

    name: str
    arity: tuple[int, int | None]
    infer: Callable[[Types, Attrs], tuple[TensorType, ...]]
    reference: Callable[[Arrays, Attrs], tuple[np.ndarray, ...]]
    channels: Channels
    zero_preserving: bool | Callable[[Attrs], bool] = False
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    constant_operands: frozenset[int] = frozenset()

    def preserves_zero(self, attrs: Attrs) -> bool:
        """``zero_preserving`` for these attributes (canonical or not)."""
        if callable(self.zero_preserving):
            return self.zero_preserving(self.canonical_attrs(attrs))
        return self.zero_preserving

    def canonical_attrs(self, attrs: Attrs) -> dict[str, Any]:
        """Checked attributes in canonical form, defaults filled in; raises VerificationError."""
        unknown = sorted(set(attrs) - set(self.attrs))
        if unknown:
            raise VerificationError(
                f"operator {self.name} has no attribute {unknown[0]!r:.80}; it has {sorted(self.attrs) or 'none'}"
            )
        result = {}
        for name, attribute in self.attrs.items():
            if name not in attrs:
                if attribute.default is REQUIRED:
                    raise VerificationError(f"operator {self.name} needs attribute {name!r}")
                result[name] = attribute.default
                continue
            try:
                result[name] = attribute.check(attrs[name])
            except ValueError as error:
                raise VerificationError(f"operator {self.name}, attribute {name!r}: {error}") from None
        return result

    def infer_types(self, types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        """Output types for these operands and attributes; raises VerificationError if they do not fit."""
        least, most = self.arity
        if len(types) < least or (most is not None and len(types) > most):
            expected = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
            raise VerificationError(f"operator {self.name} takes {expected} operands, got {len(types)}")
        if any(t is None for t in (types if most is None else types[:least])):
            raise VerificationError(f"operator {self.name}: operand {list(types).index(None)} is missing")
        padded = types if most is None else [*types, *[None] * (most - len(types))]
        canonical = self.canonical_attrs(attrs)
        try:
            results = self.infer(padded, canonical)
            for result in results:
                result.check()
        except ValueError as error:
            operands = ", ".join("none" if t is None else str(t) for t in types)
            raise VerificationError(f"operator {self.name}({operands}): {error}") from None
        return results

    def compute(self, arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        """Run the reference on operands of the right types; absent trailing operands may be left out."""
        most = self.arity[1]
        padded = arrays if most is None else [*arrays, *[None] * (most - len(arrays))]
        with np.errstate(all="ignore"):
            return self.reference(padded, self.canonical_attrs(attrs))


#: All operators by name.
OPERATORS: dict[str, Operator] = {}


def register(operator: Operator) -> None:
    """Add a row; a name may be taken once."""
    if operator.name in OPERATORS:
        raise ValueError(f"operator {operator.name!r} is registered twice")
    OPERATORS[operator.name] = operator


def operator(name: str) -> Operator:
    """The row of this name; raises VerificationError where there is none."""
    row = OPERATORS.get(name)
    if row is None:
        raise VerificationError(f"unknown operator {name!r:.80}")
    return row
