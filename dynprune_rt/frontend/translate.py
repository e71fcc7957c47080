"""A captured program -> IR graph: walk the nodes that feed the outputs, and hand each to its family's handler."""

from __future__ import annotations

import importlib
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from dynprune_rt.errors import ConversionError, UnsupportedOperatorError, VerificationError
from dynprune_rt.frontend import source_location
from dynprune_rt.frontend.capture import WRAPPER_PREFIX, Captured
from dynprune_rt.frontend.constant_evaluation import evaluate
from dynprune_rt.frontend.export_checks import place
from dynprune_rt.frontend.exported_graph import (
    bound_tensor,
    feeding_nodes,
    operator_name,
    output_nodes,
    reads_values,
    target_name,
    user_inputs,
)
from dynprune_rt.frontend.operands import FAILED, Known, Masked, Symbolic
from dynprune_rt.frontend.promotion import IR_DTYPES, TORCH_DTYPES, dtype_of
from dynprune_rt.frontend.registry import HANDLERS, Unsupported
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.ir.types import BATCH, TensorType

for _family in (
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "reductions",
    "selection",
    "shape",
):
    importlib.import_module(f"dynprune_rt.frontend.aten_{_family}")


@dataclass(frozen=True)
class _Refusal:
    node: Any
    operator: str
    reason: str


def translate(captured: Captured) -> tuple[Graph, dict[Any, Value]]:
    """Translate a captured program; also returns which value each fx node became, for comparisons.

    Raises UnsupportedOperatorError with every node that has no counterpart in the IR.
    """
    translation = Translation(captured.program)
    translation.run()
    return translation.graph, {n: v for n, v in translation.operands.items() if isinstance(v, Value)}


class Translation:
    """The state of one translation, and what handlers use to emit operators for the current node."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.builder = Builder()
        self.graph = self.builder.graph
        self.operands: dict[Any, Any] = {}
        image = user_inputs(program)[0]
        self.batch_symbol = image.meta["val"].shape[0].node.expr
        self._image = image
        self._node: Any = image
        self._refusals: list[_Refusal] = []
        self._constants: dict[Any, Value] = {}
        self._tensors: dict[Any, Known] = {}
        self._known_constants: dict[tuple[int, str], tuple[Known, Value]] = {}

    # -- the walk -------------------------------------------------------------------------------

    def run(self) -> None:
        """Translate every node that feeds an output, then set the graph's outputs."""
        self.operands[self._image] = self.graph.add_input(self._image.name, self._type(self._image.meta["val"]))
        for node in feeding_nodes(self.program):
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._node = node
                try:
                    self.operands[node] = self._call(node)
                except (Unsupported, VerificationError) as reason:
                    self._refusals.append(_Refusal(node, operator_name(node), str(reason)))
                    self.operands[node] = FAILED
            else:
                self._refusals.append(_Refusal(node, node.op, "control flow inside the graph"))
                self.operands[node] = FAILED
        if self._refusals:
            raise UnsupportedOperatorError(self._report())
        for i, node in enumerate(output_nodes(self.program)):
            value = self.operands[node]
            if not isinstance(value, Value):
                raise ConversionError(f"output {i} does not depend on the input; leave it out with outputs=")
            self.graph.outputs.append(value)

    def _placeholder(self, node: Any) -> None:
        if node is self._image:
            return
        tensor = bound_tensor(self.program, node)
        if tensor is not None:
            name = target_name(self.program, node).removeprefix(WRAPPER_PREFIX + ".")
            # Tied parameters come as one placeholder each and are stored once.
            storage = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            self.operands[node] = self._tensors.setdefault(storage, Known(tensor, name=name))

    def _call(self, node: Any) -> Any:
        name = operator_name(node)
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            return Symbolic(value.node.expr)
        if isinstance(value, (torch.SymFloat, torch.SymBool)):
            raise Unsupported("uses the batch size as a number")
        if not reads_values(node):
            if isinstance(value, int):
                return value
            return HANDLERS[name.partition(".")[0]](self, node)
        args, kwargs = pytree.tree_map(self._operand, (node.args, node.kwargs), is_leaf=_is_fx_node)
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda v: isinstance(v, (Value, Known)))
        if FAILED in leaves:
            if node.target is not operator.getitem and name not in HANDLERS:
                raise Unsupported("has no counterpart in the IR")
            return FAILED
        if node.target is operator.getitem:
            return args[0][args[1]]
        if any(isinstance(leaf, Masked) for leaf in leaves) and not name.startswith("index_put."):
            raise Unsupported("takes a number of elements that depends on values; use torch.where")
        if name.startswith("arange.") and any(isinstance(leaf, Symbolic) for leaf in leaves):
            return HANDLERS["arange"](self, args)
        if not any(isinstance(leaf, Value) for leaf in leaves):
            if not isinstance(node.target, torch._ops.OpOverload):
                raise Unsupported("has no counterpart")
            return evaluate(node.target, args, kwargs, self.batch_symbol, self._is_batched(value))
        handler = HANDLERS.get(name)
        if handler is None:
            raise Unsupported("has no counterpart in the IR")
        result = handler(self, *args, **kwargs)
        self._check_result(result, value)
        return result

    def _operand(self, leaf: Any) -> Any:
        return self.operands[leaf] if isinstance(leaf, torch.fx.Node) else leaf

    def _check_result(self, result: Any, expected: Any) -> None:
        """The translated type must be the one that torch inferred."""
        if isinstance(result, Value):
            wanted = self._type(expected)
            if result.type != wanted:
                raise Unsupported(f"was translated to {result.type} where torch has {wanted}")
        elif isinstance(result, (tuple, list)):
            for r, e in zip(result, expected, strict=False):
                if isinstance(r, Value):
                    self._check_result(r, e)

    def _report(self) -> str:
        lines = []
        for refusal in self._refusals:
            label = f"aten.{refusal.operator}" if "." in refusal.operator else refusal.operator
            lines.append(f"  {place(refusal.node, WRAPPER_PREFIX)}: {label}: {refusal.reason}")
        return (
            f"{len(lines)} operation{'s' if len(lines) > 1 else ''} of the model cannot be converted:\n"
            + "\n".join(lines)
            + "\nWrite these lines with supported operators; if they only serve a statistic or an auxiliary output, "
            "leave that out with outputs=."
        )

    # -- types ----------------------------------------------------------------------------------

    def _is_batched(self, value: Any) -> bool:
        first = value[0] if isinstance(value, (tuple, list)) else value
        return isinstance(first, torch.Tensor) and first.ndim > 0 and isinstance(first.shape[0], torch.SymInt)

    def _type(self, value: Any) -> TensorType:
        """IR type of a traced tensor that depends on the image; raises Unsupported where there is none."""
        dtype = IR_DTYPES.get(value.dtype)
        if dtype is None:
            raise Unsupported(f"computes in {value.dtype}; keep to float32 (.float()), int64 and bool")
        shape: list[int] = []
        for i, size in enumerate(value.shape):
            if not isinstance(size, torch.SymInt):
                shape.append(int(size))
            elif size.node.expr != self.batch_symbol:
                known = size.node.expr.free_symbols <= {self.batch_symbol}
                raise Unsupported(
                    "merges the batch with another dimension" if known else "has a shape that depends on values"
                )
            elif i != 0:
                raise Unsupported("moves the batch away from dimension 0")
            else:
                shape.append(BATCH)
        if not shape or shape[0] != BATCH:
            raise Unsupported("mixes the images of a batch: its result has no batch dimension")
        return TensorType(dtype, tuple(shape))

    @property
    def result(self) -> TensorType:
        """Type that torch inferred for the current node (the first result, if several)."""
        value = self._node.meta["val"]
        return self._type(value[0] if isinstance(value, (tuple, list)) else value)

    @property
    def name(self) -> str:
        """Layer path for the current node: of the module itself, or of the functional call inside a module."""
        path = source_location.module_path(self._node, WRAPPER_PREFIX)
        stack = list((self._node.meta.get("nn_module_stack") or {}).values())
        is_layer = bool(stack) and str(stack[-1][1]).startswith("torch.nn.modules.")
        if path and is_layer and ".container." not in str(stack[-1][1]):
            return path
        short = operator_name(self._node).partition(".")[0].strip("_")
        return f"{path}.{short}" if path else short

    # -- emitting -------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> tuple[Value, ...]:
        """Append an operator with several results, named after the current node."""
        values = self.builder.append(op, inputs, attrs, name=self.name, origin=source_location.of_node(self._node))
        producer = values[0].producer
        if producer is not None:
            producer.name = values[0].name  # unique, unlike the layer's path
        return values

    def op(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Append an operator and return its first result."""
        return self.emit(op, *inputs, **attrs)[0]

    def constant(self, array: Any, dtype: str = "f32", name: str = "") -> Value:
        """An IR constant; equal scalars share one."""
        array = np.asarray(array, {"f32": np.float32, "i64": np.int64, "bool": np.bool_}[dtype])
        if array.ndim:
            return self.graph.add_constant(name or f"{self.name}.constant", array)
        key = (dtype, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.graph.add_constant(f"const_{array.item()}", array)
        return self._constants[key]

    def value(self, operand: Any, dtype: str | None = None) -> Value:
        """Any tensor operand or Python number as an IR value, cast to ``dtype`` where that is given.

        A batched constant comes as [1, ...], which broadcasts; `batched` gives the full shape.
        """
        if isinstance(operand, Value):
            return operand if dtype in (None, operand.type.dtype) else self.op("cast", operand, dtype=dtype)
        if isinstance(operand, Known):
            dtype = dtype or dtype_of(operand)
            key = (id(operand), dtype)
            if key not in self._known_constants:
                if operand.tensor.dtype is torch.float64 and operand.tensor.ndim and not operand.name:
                    raise Unsupported("computes a constant in float64; keep to float32")
                array = operand.tensor.to(TORCH_DTYPES[dtype]).contiguous().numpy()
                # The Known is kept, so that its id is not given to another one.
                self._known_constants[key] = (operand, self.constant(array, dtype, operand.name))
            return self._known_constants[key][1]
        if isinstance(operand, (bool, int, float)):
            return self.constant(operand, dtype or dtype_of(operand))
        if isinstance(operand, Symbolic):
            raise Unsupported("uses the batch size as a number")
        raise Unsupported(f"has an operand of type {type(operand).__name__}")

    def weight(self, operand: Any, what: str) -> np.ndarray | None:
        """A constant f32 operand as an array; None stays None. Raises Unsupported for a computed one."""
        if operand is None:
            return None
        if not isinstance(operand, Known):
            raise Unsupported(f"has a {what} that is computed from the image")
        return operand.tensor.float().contiguous().numpy()  # type: ignore[no-any-return]

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """``x`` with this shape; ``x`` itself where it has it."""
        return x if x.type.shape == tuple(shape) else self.op("reshape", x, shape=tuple(shape))


def _is_fx_node(value: Any) -> bool:
    return isinstance(value, torch.fx.Node)
