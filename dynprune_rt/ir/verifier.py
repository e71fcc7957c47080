"""The rules every IR graph keeps. A backend may rely on them without checking."""

from __future__ import annotations

from collections.abc import Iterator

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import operator
from dynprune_rt.ir.types import DTYPES, TensorType

#: Longest name of a value or a node.
MAX_NAME = 1024


def verify(graph: Graph) -> None:
    """Raise VerificationError at the first broken rule.

    - Names are printable and unique; every value has one definition, which comes before its readers.
    - Types are legal and equal to the inferred ones; attributes are complete and canonical.
    - Graph inputs and outputs are batched; the batch stands in dimension 0 and nowhere else.
    - Constants have arrays of their type; weights and index vectors are constants.
    - Masks are bool [N, C] or constant [1, C], fit their value's channels, and exist before the node that obeys them.
    """
    defined: dict[str, Value] = {}
    ranges: dict[str, tuple[int, int]] = {}

    def define(value: Value, what: str) -> None:
        _check_name(value.name, what)
        if value.name in defined:
            raise VerificationError(f"{what} {value.name!r} is defined twice")
        try:
            value.type.check()
        except ValueError as error:
            raise VerificationError(f"{what} {value.name!r}: {error}") from None
        defined[value.name] = value

    if not graph.inputs or not graph.outputs:
        raise VerificationError("a graph needs at least one input and one output")
    for value in graph.inputs:
        define(value, "input")
        if not value.type.batched:
            raise VerificationError(f"input {value.name!r} is {value.type}; dimension 0 has to be the batch")
        if value.producer is not None or value.live is not None or graph.is_constant(value):
            raise VerificationError(f"input {value.name!r} may not have a producer, a mask or a constant value")

    for node in graph.nodes:
        _check_name(node.name, "node")
        where = f"node {node.name!r} ({node.op})"
        for value in node.operands():
            if graph.is_constant(value) and value.name not in defined:
                define(value, "constant")
                _check_constant(graph, value)
            if defined.get(value.name) is not value:
                raise VerificationError(f"{where} reads {value.name!r}, which is not defined before it")
        _check_node(graph, node, where)
        if node.op == "index_select":
            _check_index(graph, node, ranges, where)
        for value in node.outputs:
            define(value, "value")
            if graph.is_constant(value):
                raise VerificationError(f"{where} defines {value.name!r}, which is a constant")
            if value.producer is not node:
                raise VerificationError(f"value {value.name!r} does not name {where} as its producer")

    for value in graph.outputs:
        if defined.get(value.name) is not value:
            raise VerificationError(f"output {value.name!r} is not defined")
        if not value.type.batched:
            raise VerificationError(f"output {value.name!r} is {value.type}; it does not depend on the input")


def _check_name(name: str, what: str) -> None:
    if not name or len(name) > MAX_NAME or not name.isprintable() or name == "__metadata__":
        raise VerificationError(f"{what} has an illegal name {name!r:.80}")


def _check_constant(graph: Graph, value: Value) -> None:
    array = graph.constant(value)
    if array.dtype != DTYPES[value.type.dtype] or array.shape != value.type.shape:
        raise VerificationError(
            f"constant {value.name!r} is {value.type}, its array is {array.dtype}{list(array.shape)}"
        )
    if value.producer is not None or value.live is not None:
        raise VerificationError(f"constant {value.name!r} may not have a producer or a mask")


def _check_node(graph: Graph, node: Node, where: str) -> None:
    row = operator(node.op)
    try:
        canonical = row.canonical_attrs(node.attrs)
        types = row.infer_types([None if v is None else v.type for v in node.inputs], canonical)
    except VerificationError as error:
        raise VerificationError(f"{where}: {error}") from None
    for name, value in canonical.items():
        found = node.attrs.get(name, "nothing")
        if found != value or type(found) is not type(value):
            raise VerificationError(
                f"{where}: attribute {name!r} is {found!r:.80}, expected the canonical form {value!r:.80}"
            )
    if [v.type for v in node.outputs] != list(types):
        found = [str(v.type) for v in node.outputs]
        raise VerificationError(f"{where}: outputs are {found}, inferred {[str(t) for t in types]}")
    fixed = set(row.constant_operands)
    if node.op == "conv2d" and len(node.inputs) > 4 and node.inputs[4] is not None and not node.inputs[4].type.batched:
        fixed.add(4)  # a shift is a constant, or one vector per image
    for position in sorted(fixed):
        operand = node.inputs[position] if position < len(node.inputs) else None
        if operand is not None and not graph.is_constant(operand):
            raise VerificationError(f"{where}: operand {position} ({operand.name!r}) has to be a constant")
    for mask, value, what in _masks(node):
        _check_mask(mask, value, f"{where}: {what} {mask.name!r}")
    if node.computed is not None and node.op not in ("conv2d", "quantized_conv2d"):
        raise VerificationError(f"{where}: only convolutions may have a mask of computed channels")


def _check_index(graph: Graph, node: Node, ranges: dict[str, tuple[int, int]], where: str) -> None:
    """The index stays inside; ``ranges`` remembers what each index vector holds."""
    x, index = node.inputs
    assert x is not None and index is not None
    if index.name not in ranges:
        positions = graph.constant(index)
        ranges[index.name] = int(positions.min()), int(positions.max())
    low, high = ranges[index.name]
    size = x.type.shape[node.attrs["dim"]]
    if low < 0 or high >= size:
        raise VerificationError(
            f"{where}: the index {index.name!r} leaves dimension {node.attrs['dim']} of size {size}"
        )


def _masks(node: Node) -> Iterator[tuple[Value, Value, str]]:
    """(mask, value it describes, what it is)."""
    for value in node.outputs:
        if value.live is not None:
            yield value.live, value, "the mask"
    if node.computed is not None:
        yield node.computed, node.output, "the mask of computed channels"


def _check_mask(mask: Value, value: Value, what: str) -> None:
    if not value.type.batched or value.type.rank < 2:
        raise VerificationError(f"{what} describes {value.type}, which has no channels")
    expected = TensorType("bool", value.type.shape[:2])
    same_for_all = TensorType("bool", (1, value.type.shape[1]))  # a constant
    if mask.type not in (expected, same_for_all):
        raise VerificationError(f"{what} is {mask.type}, expected {expected} or {same_for_all}")
    if mask.live is not None:
        raise VerificationError(f"{what} has a mask itself")
