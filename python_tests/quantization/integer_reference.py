"""Every integer map of a program against the plain integer reference."""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph
from dynprune_rt.program import Program
from dynprune_rt.session import Session
from python_tests.backends.cpu.plan_checks import execute


def check_integer_maps(graph: Graph, x: np.ndarray) -> None:
    """Bit for bit, with skipping and poisoned memory; the reference computes only what the masks ask for."""
    nodes = [n for n in graph.nodes if n.output.type.dtype in ("u8", "s8") and n.op != "quantize"]
    assert nodes
    builder_graph = Graph(list(graph.inputs), [], list(graph.nodes), dict(graph.constants))
    builder = Builder(builder_graph, fold=False)
    shown = []
    for index, node in enumerate(nodes):
        value = builder.append("dequantize", [node.output], {"scale": 1.0}, name=f"shown{index}")[0]
        value.live = node.output.live
        shown.append(value)
    reference = interpreter.trace(graph, {graph.inputs[0].name: x}, honour_live=True)
    for start in range(0, len(shown), 30):
        builder_graph.outputs = shown[start : start + 30]
        got = execute(Session(Program(builder_graph), threads=1), [x], poison=True)
        for node, have in zip(nodes[start:], got, strict=False):
            want = reference[node.output.name].astype(np.float32)
            if node.output.live is not None:
                live = np.broadcast_to(reference[node.output.live.name], want.shape[:2])
                want = np.where(live[:, :, None, None], want, 0)
            np.testing.assert_array_equal(have, want, err_msg=node.name)
