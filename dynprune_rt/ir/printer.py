"""A graph as text."""

from __future__ import annotations

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import OPERATORS


def format_graph(graph: Graph) -> str:
    """One line per constant and node::

        graph(%x: f32[N, 3, 8, 8])
          constant %w: f32[4, 3, 3, 3]
          %y: f32[N, 4, 6, 6] live %m = conv2d(%x, %w, none, %g) outer=(0.0, inf)  # layer1.0, model.py:7
              note: skips output channels by layer1.0.gate
          return %y

    Attributes that have their default are left out.
    """
    lines = [f"graph({', '.join(repr(v) for v in graph.inputs)})"]
    seen: set[str] = set()
    for node in graph.nodes:
        for value in node.operands():
            if graph.is_constant(value) and value.name not in seen:
                seen.add(value.name)
                lines.append(f"  constant {value!r}")
    for node in graph.nodes:
        lines.append("  " + format_node(node))
        if node.note:
            lines.append(f"      note: {node.note}")
    lines.append(f"  return {', '.join(f'%{v.name}' for v in graph.outputs)}")
    return "\n".join(lines) + "\n"


def format_node(node: Node) -> str:
    """One node on one line, without its note."""
    left = ", ".join(_definition(v) for v in node.outputs)
    operands = ", ".join("none" if v is None else f"%{v.name}" for v in node.inputs)
    text = f"{left} = {node.op}({operands})"
    row = OPERATORS.get(node.op)
    for name, value in node.attrs.items():
        if row is None or name not in row.attrs or row.attrs[name].default != value:
            text += f" {name}={value}"
    if node.computed is not None:
        text += f" computed %{node.computed.name}"
    about = ", ".join(part for part in (node.name, node.origin) if part)
    return f"{text}  # {about}" if about else text


def _definition(value: Value) -> str:
    return repr(value) if value.live is None else f"{value!r} live %{value.live.name}"
