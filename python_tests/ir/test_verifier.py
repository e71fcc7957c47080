from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from python_tests.ir.gated_graph import CHANNELS, gated_residual_graph


def value(graph: Graph, name: str) -> Value:
    return next(v for node in graph.nodes for v in (*node.operands(), *node.outputs) if v.name == name)


def node(graph: Graph, name: str) -> Node:
    return next(n for n in graph.nodes if n.name == name)


def test_a_good_graph_passes():
    verify(gated_residual_graph())


def test_a_mask_may_be_a_constant():
    graph = gated_residual_graph()
    value(graph, "block.conv1").live = graph.add_constant("static", np.ones((1, CHANNELS), np.bool_))
    verify(graph)


def no_outputs(graph):
    graph.outputs = []


def unbatched_input(graph):
    graph.inputs.append(Value("y", TensorType("f32", (3,))))


def masked_input(graph):
    graph.inputs[0].live = value(graph, "block.gate1.live")


def empty_name(graph):
    value(graph, "block.gate1").name = ""


def control_character(graph):
    node(graph, "head").name = "a\nb"


def reserved_name(graph):
    value(graph, "head").name = "__metadata__"


def same_name_twice(graph):
    value(graph, "block.gate2").name = "block.gate1"


def same_value_twice(graph):
    graph.nodes.append(graph.nodes[0])


def use_before_definition(graph):
    graph.nodes.insert(0, graph.nodes.pop(-1))


def mask_after_its_use(graph):
    mask = node(graph, "block.gate1.live")
    graph.nodes.remove(mask)
    graph.nodes.insert(graph.nodes.index(node(graph, "block.conv1")) + 1, mask)


def computed_mask_after_its_use(graph):
    mask = node(graph, "block.gate2.live")
    graph.nodes.remove(mask)
    graph.nodes.append(mask)


def undefined_operand(graph):
    node(graph, "block.gate1").inputs = [Value("ghost", TensorType("f32", (BATCH, CHANNELS)))]


def impostor(graph):
    node(graph, "block.gate1").inputs = [Value("x", TensorType("f32", (BATCH, CHANNELS)))]


def wrong_producer(graph):
    value(graph, "block.gate1").producer = node(graph, "block.gate2")


def undefined_output(graph):
    graph.outputs = [Value("ghost", TensorType("f32", (BATCH, 1)))]


def constant_output(graph):
    graph.outputs = [value(graph, "head.weight")]


def illegal_type(graph):
    graph.inputs[0].type = TensorType("f32", (BATCH, 0))


def batch_in_the_middle(graph):
    graph.inputs[0].type = TensorType("f32", (BATCH, BATCH))


def other_type(graph):
    value(graph, "block.gate1").type = TensorType("f32", (BATCH, CHANNELS + 1))


def extra_output(graph):
    target = node(graph, "head")
    target.outputs.append(Value("more", target.output.type, target))


def unknown_operator(graph):
    node(graph, "block.gate1").op = "gate"


def missing_operand(graph):
    node(graph, "block.conv1").inputs[1] = None


def unknown_attribute(graph):
    node(graph, "block.gate1").attrs["slope"] = 1.0


def missing_attribute(graph):
    del node(graph, "block.conv1").attrs["stride"]


def list_attribute(graph):
    node(graph, "block.conv1").attrs["stride"] = [1, 1]


def wrong_array(graph):
    graph.constants["head.weight"] = np.zeros((1, 1), np.float32)


def constant_of_an_output(graph):
    graph.constants["block.gate1"] = np.zeros(1, np.float32)


def masked_constant(graph):
    value(graph, "head.weight").live = value(graph, "block.gate1.live")


def computed_weight(graph):
    produced = node(graph, "block.gate1")
    weight = Value("w", TensorType("f32", (4, CHANNELS)), None)
    source = value(graph, "head.weight")
    made = Node("neg", "w", [source], [weight])
    weight.producer = made
    graph.nodes.insert(graph.nodes.index(produced), made)
    node(graph, "head").inputs[1] = weight


def index_out_of_range(graph):
    graph.constants["head.index"] = np.full(CHANNELS, CHANNELS)


def negative_index(graph):
    graph.constants["head.index"] = np.full(CHANNELS, -1)


def float_mask(graph):
    value(graph, "block.conv1").live = value(graph, "block.gate1")


def mask_of_other_channels(graph):
    value(graph, "head").live = value(graph, "block.gate1.live")


def mask_of_a_mask(graph):
    value(graph, "block.gate1.live").live = value(graph, "block.gate2.live")
    graph.nodes.insert(0, graph.nodes.pop(graph.nodes.index(node(graph, "block.gate2.live"))))
    graph.sort()


def computed_of_a_linear(graph):
    target = node(graph, "block.gate2.fc")
    target.computed = value(graph, "block.gate1.live")


RULES = [
    (no_outputs, "at least one input and one output"),
    (unbatched_input, "dimension 0 has to be the batch"),
    (masked_input, "may not have a producer, a mask"),
    (empty_name, "illegal name ''"),
    (control_character, "illegal name"),
    (reserved_name, "illegal name '__metadata__'"),
    (same_name_twice, "'block.gate1' is defined twice"),
    (same_value_twice, "is defined twice"),
    (use_before_definition, "not defined before it"),
    (mask_after_its_use, "'block.conv1' .* reads 'block.gate1.live', which is not defined"),
    (computed_mask_after_its_use, "'block.conv2' .* reads 'block.gate2.live', which is not defined"),
    (undefined_operand, "reads 'ghost', which is not defined"),
    (impostor, "reads 'x', which is not defined"),
    (wrong_producer, "does not name node 'block.gate1' .* as its producer"),
    (undefined_output, "output 'ghost' is not defined"),
    (constant_output, "does not depend on the input"),
    (illegal_type, "empty dimension"),
    (batch_in_the_middle, "the batch outside dimension 0"),
    (other_type, r"outputs are .*N, 7.*, inferred .*N, 6"),
    (extra_output, "outputs are"),
    (unknown_operator, "unknown operator 'gate'"),
    (missing_operand, "operand 1 is missing"),
    (unknown_attribute, "has no attribute 'slope'"),
    (missing_attribute, "'stride' is 'nothing', expected the canonical form"),
    (list_attribute, r"'stride' is \[1, 1\], expected the canonical form \(1, 1\)"),
    (wrong_array, r"'head.weight' is f32\[4, 6\], its array is float32\[1, 1\]"),
    (constant_of_an_output, "defines 'block.gate1', which is a constant"),
    (masked_constant, "constant 'head.weight' may not have a producer or a mask"),
    (computed_weight, r"operand 1 \('w'\) has to be a constant"),
    (index_out_of_range, "the index 'head.index' leaves dimension 1 of size 6"),
    (negative_index, "the index 'head.index' leaves dimension 1"),
    (float_mask, r"the mask 'block.gate1' is f32\[N, 6\], expected bool\[N, 6\]"),
    (mask_of_other_channels, r"is bool\[N, 6\], expected bool\[N, 4\]"),
    (mask_of_a_mask, "has a mask itself"),
    (computed_of_a_linear, "only convolutions may have a mask of computed channels"),
]


@pytest.mark.parametrize(("break_it", "message"), RULES, ids=lambda p: getattr(p, "__name__", ""))
def test_broken_rule(break_it, message):
    graph = gated_residual_graph()
    break_it(graph)
    with pytest.raises(VerificationError, match=message):
        verify(graph)
