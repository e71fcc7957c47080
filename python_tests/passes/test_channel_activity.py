"""Published gate patterns: the optimized network computes the same and skips what it should."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.types import BATCH
from python_tests.passes.networks import Network, find, layer, mask_of, optimized


def live_share(network: Network, name: str) -> np.ndarray:
    """Which output channels [N, K] a convolution computes (all where it has no mask)."""
    node = find(network.graph, name)
    bits = mask_of(network.graph, node.computed or node.output.live)
    return np.ones((4, node.output.type.channels), bool) if bits is None else bits


def stem(net: Network, channels: int = 6) -> Value:
    return net.relu(net.conv(net.x, channels, "stem"), "stem.relu")


def head(net: Network, x: Value) -> Value:
    return net.linear(net.pooled(x), 3, "head")


def test_manidp_block_skips_outputs_by_both_gates_and_inputs_by_the_first() -> None:
    net = Network()
    x = stem(net)
    gate1 = net.saliency(x, 6, "gate1")
    t = net.mul(net.relu(net.batch_norm(net.conv(x, 6, "conv1"))), gate1)
    gate2 = net.saliency(t, 6, "gate2")
    u = net.mul(net.batch_norm(net.conv(t, 6, "conv2")), gate2)
    report = optimized(net, net.relu(net.add(u, x)))
    assert report["skips"] == {"outputs": 2, "inputs": 1, "convs": 3}
    assert layer(report, "conv1")["out_gate"] == "gate1.fc"
    assert layer(report, "conv2") == {"name": "conv2", "out_gate": "gate2.fc", "in_gate": "gate1.fc", "why": ""}
    assert "reads" in layer(report, "stem")["why"]
    assert [n.op for n in net.graph.nodes if n.op in ("affine", "relu", "mul", "add", "spatial_reduce")] == []
    conv2 = find(net.graph, "conv2")
    assert conv2.computed is not None and conv2.output.live is None  # the residual passes the others through
    assert find(net.graph, "conv1").output.live is find(net.graph, "conv2").inputs[0].live


def test_manidp_threshold_by_boolean_assignment() -> None:
    net = Network()
    x = stem(net)
    saliency = net.op("clamp", net.saliency(x, 6, "gate"), lo=-np.inf, hi=1000.0)
    below = net.compare("lt", saliency, 0.1, "gate.lt")
    kept = net.op("mul", net.op("where", below, net.const(0.0), net.const(1.0)), saliency, name="gate.mask")
    t = net.mul(net.relu(net.conv(x, 6, "conv1")), kept)
    report = optimized(net, net.relu(net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    assert layer(report, "conv2")["in_gate"] == "gate.mask"


def winners(net: Network, values: Value, count: int) -> tuple[Value, Value]:
    """(valued, binary) winner-take-all of [N, C], by topk and two scatters of one index."""
    channels = values.type.channels
    _, losers = net.op("topk", values, k=channels - count, dim=1, largest=False)
    valued = net.op("scatter", values, losers, net.const(0.0), dim=1, name="gate.values")
    binary = net.op("scatter", net.const(np.ones((1, channels))), losers, net.const(0.0), dim=1, name="gate.winners")
    return valued, binary


def test_fbs_topk_after_norm() -> None:
    net = Network()
    x = stem(net)
    valued, _ = winners(net, net.saliency(x, 6, "gate"), 3)
    t = net.relu(net.mul(net.batch_norm(net.conv(x, 6, "conv1")), valued))
    report = optimized(net, head(net, net.relu(net.conv(t, 6, "conv2"))))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    assert (live_share(net, "conv1").sum(axis=1) <= 3).all()


def test_fbs_with_a_masked_offset_has_zero_channels_where_both_are_closed() -> None:
    net = Network()
    x = stem(net)
    valued, _ = winners(net, net.saliency(x, 6, "gate"), 3)
    open_ = net.op("cast", net.compare("gt", valued, 0.0), dtype="f32")
    beta = net.op("mul", net.const(net.rng.standard_normal((1, 6))), open_)
    t = net.relu(net.add(net.mul(net.conv(x, 6, "conv1"), valued), net.as_map(beta)))
    report = optimized(net, head(net, net.relu(net.conv(t, 6, "conv2"))))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    assert layer(report, "conv2")["in_gate"] == "gate.values"  # the offset adds no mask of its own


def test_fbs_winner_mask_before_norm_and_values_after_it() -> None:
    net = Network()
    x = stem(net)
    valued, binary = winners(net, net.saliency(x, 6, "gate"), 3)
    y = net.batch_norm(net.mul(net.conv(x, 6, "conv1"), binary))
    t = net.relu(net.mul(y, valued))
    report = optimized(net, head(net, net.relu(net.conv(t, 6, "conv2"))))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    assert find(net.graph, "conv1").computed is None  # zeros of the winners are zeros of the values


def test_kthvalue_threshold() -> None:
    net = Network()
    x = stem(net)
    saliency = net.saliency(x, 6, "gate")
    kth, _ = net.op("kthvalue", saliency, k=4, dim=1, keepdim=True)
    kept = net.op("cast", net.op("ge", saliency, kth), dtype="f32", name="gate.mask")
    t = net.mul(net.relu(net.conv(x, 6, "conv1")), net.op("mul", kept, saliency))
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}


def test_dgnet_mask_after_the_depthwise_reaches_the_expanding_convolution() -> None:
    net = Network()
    x = stem(net)
    mask = net.binary(net.logits("gate", 12), "gate.mask")
    t = net.relu(net.batch_norm(net.conv(x, 12, "expand", kernel=1)))
    t = net.op("clamp", net.batch_norm(net.conv(t, 12, "depthwise", groups=12)), lo=0.0, hi=6.0)
    t = net.mul(t, mask)
    y = net.batch_norm(net.conv(t, 6, "project", kernel=1))
    report = optimized(net, net.add(x, y))
    assert [layer(report, name)["out_gate"] for name in ("expand", "depthwise", "project")] == ["gate.mask.ge"] * 2 + [
        None
    ]
    assert [layer(report, name)["in_gate"] for name in ("expand", "depthwise", "project")] == [None] + [
        "gate.mask.ge"
    ] * 2


def test_laudnet_mask_before_norm_leaves_constants_that_are_stored_but_not_computed() -> None:
    net = Network()
    x = stem(net)
    mask = net.binary(net.logits("gate", 6), "gate.mask")
    t = net.relu(net.batch_norm(net.mul(net.conv(x, 6, "conv1", bias=False), mask), shift=0.25))
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 0, "convs": 3}
    conv1 = find(net.graph, "conv1")
    assert conv1.output.live is None and conv1.computed is not None
    assert "fills" not in layer(report, "conv1")["why"]
    assert layer(report, "conv2")["why"] == "outputs not skippable: no gate before pool reads them; " + (
        "inputs dense: no gate after conv1"
    )


def test_laudnet_constants_that_relu_turns_into_zero_are_skipped_as_inputs() -> None:
    net = Network()
    x = stem(net)
    mask = net.binary(net.logits("gate", 6), "gate.mask")
    shift = np.array([-1.0, 0.5, -0.25, 0.0, 0.125, -2.0])
    t = net.relu(net.batch_norm(net.mul(net.conv(x, 6, "conv1", bias=False), mask), shift=shift))
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    stored = mask_of(net.graph, find(net.graph, "conv1").output.live)
    computed = live_share(net, "conv1")
    assert stored is not None
    np.testing.assert_array_equal(stored, computed | (shift > 0))


def test_laudnet_groups_of_channels_by_repetition() -> None:
    net = Network()
    x = stem(net)
    pair = net.binary(net.logits("gate", 3), "gate.mask")
    wide = net.op("repeat", net.op("reshape", pair, shape=(BATCH, 3, 1)), repeats=(1, 1, 2))
    mask = net.op("reshape", wide, shape=(BATCH, 6))
    t = net.mul(net.relu(net.conv(x, 6, "conv1")), mask)
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    bits = live_share(net, "conv1")
    np.testing.assert_array_equal(bits[:, 0::2], bits[:, 1::2])


def test_grouped_gate_on_a_view_with_five_dimensions() -> None:
    net = Network()
    x = stem(net)
    gate = net.op("reshape", net.binary(net.logits("gate", 2), "gate.mask"), shape=(BATCH, 2, 1, 1, 1))
    view = net.op("reshape", net.conv(x, 6, "conv1"), shape=(BATCH, 2, 3, 6, 6))
    t = net.op("reshape", net.op("mul", view, gate), shape=(BATCH, 6, 6, 6))
    report = optimized(net, head(net, net.conv(net.relu(t), 6, "conv2")))
    assert layer(report, "conv1")["out_gate"] == layer(report, "conv2")["in_gate"] == "gate.mask.ge"
    # With both groups closed nobody needs the stem either.
    np.testing.assert_array_equal(live_share(net, "stem").all(axis=1), live_share(net, "conv1").any(axis=1))


def test_closed_groups_filled_with_a_constant_are_not_computed_but_read() -> None:
    net = Network()
    x = stem(net)
    gate = net.binary(net.logits("gate", 6), "gate.mask")
    filler = net.op("mul", net.op("sub", net.const(1.0), gate), net.const(2.0))
    t = net.add(net.mul(net.conv(x, 6, "conv1"), gate), net.as_map(filler))
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 0, "convs": 3}


def test_aig_gate_on_a_whole_branch_stops_all_its_convolutions() -> None:
    net = Network()
    x = stem(net)
    gate = net.binary(net.logits("gate", 1), "gate.open")
    t = net.relu(net.batch_norm(net.conv(x, 8, "conv1")))
    t = net.op("group_norm", net.conv(t, 6, "conv2"), groups=2)
    report = optimized(net, net.relu(net.add(net.mul(t, gate), x)))
    assert report["skips"]["outputs"] == 2
    np.testing.assert_array_equal(live_share(net, "conv1").any(axis=1), live_share(net, "conv2").all(axis=1))


@pytest.mark.parametrize("upsampled", [False, True])
def test_skipnet_pair_skips_the_block_or_the_shortcut(upsampled: bool) -> None:
    net = Network()
    x = stem(net)
    hard = net.op("cast", net.compare("gt", net.logits("gate", 1), 0.0, "gate.gt"), dtype="f32")
    mask = net.as_map(hard)
    if upsampled:
        mask = net.op("interpolate", mask, size=(6, 6), mode="nearest")
        mask = net.op("expand", mask, shape=(BATCH, 6, 6, 6))
    block = net.relu(net.conv(net.relu(net.conv(x, 6, "conv1")), 6, "conv2"))
    shortcut = net.conv(x, 6, "shortcut", kernel=1)
    y = net.add(net.op("mul", block, mask), net.op("mul", shortcut, net.op("sub", net.const(1.0), mask)))
    report = optimized(net, head(net, y))
    assert [layer(report, name)["out_gate"] for name in ("conv1", "conv2", "shortcut")] == ["gate.gt"] * 3
    np.testing.assert_array_equal(live_share(net, "conv2"), ~live_share(net, "shortcut"))


def test_straight_through_gate_has_the_zeros_of_its_hard_part() -> None:
    net = Network()
    x = stem(net)
    logits = net.logits("gate", 6)
    soft = net.op("sigmoid", logits)
    hard = net.op("cast", net.compare("gt", soft, 0.5, "gate.hard"), dtype="f32")
    gate = net.op("add", net.op("sub", hard, soft), soft)
    t = net.mul(net.relu(net.conv(x, 6, "conv1")), gate)
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert layer(report, "conv2")["in_gate"] == "gate.hard"
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}


def test_input_gate_that_reads_the_map_forbids_skipping_the_outputs_before_it() -> None:
    net = Network()
    x = net.relu(net.conv(net.x, 6, "conv1"))
    gate = net.op("clamp", net.linear(net.pooled(x), 6, "gate.fc"), lo=0.0, hi=1.0, name="gate.clamp")
    report = optimized(net, head(net, net.conv(net.mul(x, gate), 6, "conv2")))
    assert report["skips"] == {"outputs": 0, "inputs": 1, "convs": 2}
    assert layer(report, "conv1")["why"].startswith("outputs not skippable: the gate gate.fc reads this map")


def test_instance_sparsity_is_reactive() -> None:
    net = Network()
    x = net.relu(net.conv(net.x, 6, "conv1"))
    norms = net.pooled(x, "l2")
    largest = net.op("reduce", norms, kind="max", dims=(1,), keepdim=True)
    kept = net.op("cast", net.op("ge", norms, net.op("mul", largest, net.const(0.7)), name="gate.ge"), dtype="f32")
    t = net.mul(x, kept)
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 0, "inputs": 1, "convs": 2}
    assert "the gate gate.ge reads this map" in layer(report, "conv1")["why"]
    assert layer(report, "conv2")["in_gate"] == "gate.ge"


def test_ftwt_gate_after_the_sum_kills_branch_and_shortcut() -> None:
    net = Network()
    x = stem(net)
    mask = net.binary(net.logits("gate", 6), "gate.mask")
    shortcut = net.conv(x, 6, "shortcut", kernel=1)
    y = net.mul(net.relu(net.add(net.conv(x, 6, "conv1"), shortcut)), mask)
    report = optimized(net, head(net, net.conv(y, 6, "conv2")))
    assert [layer(report, name)["out_gate"] for name in ("conv1", "shortcut")] == ["gate.mask.ge"] * 2
    assert layer(report, "conv2")["in_gate"] == "gate.mask.ge"


def test_dgc_masked_copies_give_every_head_of_a_grouped_convolution_its_own_inputs() -> None:
    net = Network()
    x = stem(net, 4)
    copies = [net.mul(x, net.saliency(x, 4, f"head{i}"), f"head{i}.mul") for i in range(4)]
    joined = net.op("cat", *copies, dim=1)
    report = optimized(net, head(net, net.conv(joined, 8, "conv", groups=4)))
    assert layer(report, "conv")["in_gate"] == "head0.fc, head1.fc, head2.fc, head3.fc"
    assert report["skips"] == {"outputs": 0, "inputs": 1, "convs": 2}


def test_channel_shuffle_carries_masks_both_ways() -> None:
    net = Network()
    x = stem(net)
    mask = net.binary(net.logits("gate", 6), "gate.mask")
    order = [0, 3, 1, 4, 2, 5]
    t = net.mul(net.shuffled(net.relu(net.conv(x, 6, "conv1")), order), mask)
    t = net.shuffled(t, order[::-1])
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    conv1, conv2 = live_share(net, "conv1"), find(net.graph, "conv2")
    read = mask_of(net.graph, conv2.inputs[0].live if conv2.inputs[0] is not None else None)
    assert read is not None
    np.testing.assert_array_equal(read, conv1[:, np.array(order)][:, np.array(order[::-1])])


def test_densenet_concatenation_skips_the_gated_part_only() -> None:
    net = Network()
    x = stem(net, 4)
    mask = net.binary(net.logits("gate", 3), "gate.mask")
    grown = net.mul(net.relu(net.conv(x, 3, "conv1")), mask)
    t = net.op("cat", x, grown, dim=1)
    report = optimized(net, head(net, net.conv(t, 5, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    value = find(net.graph, "conv2").inputs[0]
    bits = mask_of(net.graph, value.live if value is not None else None)
    assert bits is not None and bits[:, :4].all()
    np.testing.assert_array_equal(bits[:, 4:], live_share(net, "conv1"))


def test_two_gates_in_a_row_close_the_union_of_their_zeros() -> None:
    net = Network()
    x = stem(net)
    first = net.binary(net.logits("first", 6), "first.mask")
    second = net.op("relu", net.logits("second", 6), name="second.relu")
    t = net.mul(net.relu(net.mul(net.conv(x, 6, "conv1"), first)), second)
    report = optimized(net, head(net, net.conv(t, 6, "conv2")))
    assert layer(report, "conv1")["out_gate"] == layer(report, "conv2")["in_gate"] == "first.mask.ge, second.relu"


def test_two_readers_with_different_gates_need_the_union() -> None:
    net = Network()
    x = stem(net)
    t = net.relu(net.conv(x, 6, "conv1"))
    readers = [net.mul(t, net.binary(net.logits(f"gate{i}", 6), f"gate{i}.mask")) for i in range(2)]
    y = net.add(net.conv(readers[0], 4, "a"), net.conv(readers[1], 4, "b"))
    report = optimized(net, head(net, y))
    assert layer(report, "conv1")["out_gate"] == "gate0.mask.ge, gate1.mask.ge"
    assert [layer(report, name)["in_gate"] for name in "ab"] == ["gate0.mask.ge", "gate1.mask.ge"]


def test_a_sum_of_two_gated_branches_is_zero_where_both_are_closed() -> None:
    net = Network()
    x = stem(net)
    branches = []
    for i in range(2):
        mask = net.binary(net.logits(f"gate{i}", 6), f"gate{i}.mask")
        branches.append(net.mul(net.conv(x, 6, f"branch{i}"), mask))
    report = optimized(net, head(net, net.conv(net.relu(net.add(*branches)), 4, "after")))
    assert layer(report, "after")["in_gate"] == "gate0.mask.ge, gate1.mask.ge"
    assert report["skips"] == {"outputs": 2, "inputs": 1, "convs": 4}


def test_squeeze_excite_is_no_gate() -> None:
    net = Network()
    x = stem(net)
    t = net.conv(x, 6, "conv1")
    scale = net.op("sigmoid", net.linear(net.relu(net.linear(net.pooled(t), 3)), 6))
    report = optimized(net, head(net, net.conv(net.mul(t, scale), 4, "conv2")))
    assert report["skips"] == {"outputs": 0, "inputs": 0, "convs": 3}
    assert all(v.live is None for n in net.graph.nodes for v in n.outputs)


def test_features_that_relu_made_are_no_gate() -> None:
    net = Network()
    x = stem(net)
    report = optimized(net, head(net, net.conv(net.op("mul", net.conv(x, 6, "conv1"), x), 4, "conv2")))
    assert report["skips"] == {"outputs": 0, "inputs": 0, "convs": 3}


def test_where_with_a_condition_per_channel() -> None:
    net = Network()
    x = stem(net)
    closed = net.as_map(net.compare("lt", net.logits("gate", 6), 0.0, "gate.lt"))
    t = net.op("where", closed, net.const(0.0), net.relu(net.conv(x, 6, "conv1")))
    report = optimized(net, head(net, net.conv(t, 4, "conv2")))
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}


def test_spatial_masks_run_densely_and_are_counted() -> None:
    net = Network()
    x = stem(net)
    logits = net.op("adaptive_avg_pool2d", net.conv(x, 1, "gate.conv"), output=(3, 3))
    mask = net.op("cast", net.compare("ge", logits, 0.0), dtype="f32")
    mask = net.op("interpolate", mask, size=(6, 6), mode="nearest", name="gate.mask")
    t = net.op("mul", net.relu(net.conv(x, 6, "conv1")), mask)
    report = optimized(net, head(net, t))
    assert report["skips"] == {"outputs": 0, "inputs": 0, "convs": 3}
    (entry,) = report["spatial_masks"]
    assert entry == {"gate": "gate.mask", "shape": [1, 6, 6], "convolutions": ["conv1"], "macs": 6 * 6 * 9 * 36}


def test_an_auxiliary_output_keeps_channels_alive_and_the_note_names_it() -> None:
    def build(auxiliary: bool) -> dict[str, object]:
        net = Network()
        x = stem(net)
        t = net.relu(net.conv(x, 6, "conv1"))
        y = net.mul(t, net.binary(net.logits("gate", 6), "gate.mask"))
        outputs = [head(net, net.conv(y, 4, "conv2"))]
        report = optimized(net, *outputs, *([net.pooled(t, "mean", "average")] if auxiliary else []))
        return layer(report, "conv1")

    assert build(False)["out_gate"] == "gate.mask.ge"
    kept = build(True)
    assert kept["out_gate"] is None
    assert str(kept["why"]).startswith("outputs not skippable")


def test_a_gate_that_is_computed_later_is_moved_in_front_of_its_convolution() -> None:
    net = Network()
    x = stem(net)
    t = net.relu(net.conv(x, 6, "conv1"))
    gate = net.saliency(x, 6, "gate")  # after conv1 in the program
    report = optimized(net, head(net, net.conv(net.mul(t, gate), 4, "conv2")))
    assert layer(report, "conv1")["out_gate"] == "gate.fc"
    order = [n.name for n in net.graph.nodes]
    assert order.index("gate.fc") < order.index("conv1")


def test_a_gate_that_reads_what_another_gate_masks_first() -> None:
    """The second gate depends on the map through the first one's product: only the first can skip outputs."""
    net = Network()
    x = stem(net)
    t = net.relu(net.conv(x, 6, "conv1"))
    once = net.mul(t, net.binary(net.logits("first", 6), "first.mask"))
    second = net.saliency(once, 6, "second")
    twice = net.mul(once, second)
    report = optimized(net, head(net, net.conv(twice, 4, "conv2")))
    assert layer(report, "conv1")["out_gate"] == "first.mask.ge"
    assert layer(report, "conv2")["in_gate"] == "first.mask.ge, second.fc"


def test_masks_that_wait_for_each_other_are_not_both_granted() -> None:
    """u is masked by a gate that reads v and the other way round; one of the two has to go first."""
    net = Network()
    x = stem(net)
    u, v = net.relu(net.conv(x, 6, "u")), net.relu(net.conv(x, 6, "v"))
    base = net.binary(net.logits("base", 6), "base.mask")
    from_u = net.saliency(net.mul(u, base), 6, "from_u")
    from_v = net.saliency(net.mul(v, base), 6, "from_v")
    y = net.add(net.conv(net.mul(u, from_v), 4, "after_u"), net.conv(net.mul(v, from_u), 4, "after_v"))
    report = optimized(net, head(net, y))
    gates = {name: layer(report, name)["out_gate"] or "" for name in "uv"}
    assert ("from_v" in gates["u"]) != ("from_u" in gates["v"])
    assert [bool(layer(report, name)["in_gate"]) for name in ("after_u", "after_v")] == [True, True]


def test_masks_are_shared_between_layers() -> None:
    net = Network()
    x = stem(net)
    mask = net.binary(net.logits("gate", 6), "gate.mask")
    t = net.mul(net.conv(x, 6, "conv1"), mask)
    t = net.mul(net.relu(net.conv(net.relu(t), 6, "conv2")), mask)
    optimized(net, head(net, net.conv(t, 4, "conv3")))
    masks = {v.live for n in net.graph.nodes for v in n.outputs if v.live is not None}
    assert len(masks) == 1
    assert [n.op for n in net.graph.nodes if n.output.type.dtype == "bool"] == ["ge"]


def test_optimizing_twice_changes_nothing_more() -> None:
    net = Network()
    x = stem(net)
    t = net.mul(net.relu(net.conv(x, 6, "conv1")), net.saliency(x, 6, "gate"))
    y = head(net, net.relu(net.add(net.conv(t, 6, "conv2"), x)))
    first = optimized(net, y)
    ops = [n.op for n in net.graph.nodes]
    second = optimized(net, *net.graph.outputs)
    assert second["skips"] == first["skips"]
    assert [n.op for n in net.graph.nodes] == ops
