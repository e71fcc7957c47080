"""The published ways to write a gate, rebuilt from their maths: each becomes the canonical IR and keeps its values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dynprune_rt.ir.graph import Graph, Node
from python_tests.frontend.equivalence import Model, assert_close, assert_equivalent, ops, run, to_graph

C = 8
IMAGE = torch.randn(2, 3, 6, 6)


def layers(**more: nn.Module) -> dict[str, nn.Module]:
    """A stem and a gated convolution, with batch norms that do something."""
    torch.manual_seed(1)
    modules = {"stem": nn.Conv2d(3, C, 3), "conv": nn.Conv2d(C, C, 3, padding=1), "bn": nn.BatchNorm2d(C), **more}
    for module in modules.values():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return modules


def node(graph: Graph, op: str) -> Node:
    (found,) = [n for n in graph.nodes if n.op == op]
    return found


def multiplied_maps(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op == "mul" and n.output.type.is_map]


class Threshold(torch.autograd.Function):
    """Binary in forward, straight-through in backward (DCP, FTWT, CGNet)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[x <= 0] = 0
        y[x > 0] = 1
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def test_manidp_buffer_threshold_and_boolean_assignment() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        x = m.stem(x)
        g = F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)
        g = torch.clamp(F.relu(m.fc2(F.relu(m.fc1(g)))), max=2)
        mask = torch.ones_like(g)
        mask[g.data < m.threshold] = 0
        g = g * mask
        y = F.relu(m.bn(m.conv(x))) * g.unsqueeze(-1).unsqueeze(-1)
        return y, {"mask": g, "features": y.mean((2, 3))}

    fc = {"fc1": nn.Linear(C, 4, bias=False), "fc2": nn.Linear(4, C)}
    graph = assert_equivalent(Model(forward, **layers(**fc), threshold=torch.tensor([0.1])), IMAGE)
    assert ops(graph).count("where") == 1
    assert ops(graph).count("affine") == 1
    assert node(graph, "clamp").attrs == {"lo": 0.0, "hi": 2.0}
    (product,) = multiplied_maps(graph)
    assert any(v is not None and v.type.shape == (-1, C, 1, 1) for v in product.inputs)


def test_fbs_topk_with_relu_saliency_and_normalisation() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        g = F.relu(m.fc(x.abs().mean((2, 3))))
        inactive = (-g).topk(3, 1)[1]
        g = g.scatter(1, inactive, 0)
        g = g / g.sum(1, keepdim=True) * C
        return F.relu(m.bn(m.conv(x)) * g.unsqueeze(2).unsqueeze(3))

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, C))), IMAGE)
    assert node(graph, "spatial_reduce").attrs["kind"] == "mean_abs"
    assert {"topk", "scatter", "div"} <= set(ops(graph))


def test_fbs_mask_before_norm_and_beta_by_the_same_indices() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        g = F.relu(m.fc(x.mean((2, 3))) + 3)  # away from 0, where equal values would make the choice arbitrary
        inactive = g.topk(3, 1, largest=False)[1]
        ones = torch.ones_like(g).scatter_(1, inactive, 0)
        beta = m.beta.repeat(x.shape[0], 1).scatter(1, inactive, 0)
        y = m.bn(m.conv(x) * ones[:, :, None, None]) * g.scatter(1, inactive, 0)[:, :, None, None]
        return F.relu(y + beta[:, :, None, None])

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, C)), beta=torch.randn(C)), IMAGE)
    assert ops(graph).count("scatter") == 3
    assert ops(graph).count("topk") == 1


def test_kth_value_and_sort_forms() -> None:
    def kth(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        s = m.fc(x.mean((2, 3))).sigmoid()
        return m.conv(x) * (s >= s.kthvalue(4, 1, keepdim=True)[0])[:, :, None, None]

    def sort(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        s = m.fc(x.mean((2, 3))).sigmoid()
        threshold = s.sort(1, descending=True)[0][:, 3:4]
        return m.conv(x) * (s > threshold).float().view(-1, C, 1, 1)

    for function, op in ((kth, "kthvalue"), (sort, "sort")):
        graph = assert_equivalent(Model(function, **layers(fc=nn.Linear(C, C))), IMAGE)
        assert op in ops(graph)


def test_dgnet_convolutional_gate_is_a_vector_program() -> None:
    """Shapes stay [N, C, 1, 1] in the model; the graph works on [N, C] up to the multiplication."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        logits = m.c2(F.relu(m.gate_bn(m.c1(F.adaptive_avg_pool2d(x, 1)))))
        return F.relu(m.bn(m.conv(x))) * (logits >= 0).float()

    gate = {"c1": nn.Conv2d(C, 4, 1), "gate_bn": nn.BatchNorm2d(4), "c2": nn.Conv2d(4, C, 1)}
    graph = assert_equivalent(Model(forward, **layers(**gate)), IMAGE)
    assert ops(graph).count("linear") == 2
    assert ops(graph).count("reshape") == 1
    assert node(graph, "ge").output.type.shape == (-1, C)


def test_dgnet_channel_and_spatial_masks_in_sequence() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        channels = (m.fc(x.mean((2, 3))) >= 0).float()[:, :, None, None]
        where = (m.c1(F.adaptive_avg_pool2d(x, 2)) >= 0).float()
        return F.relu(m.bn(m.conv(x))) * channels * F.interpolate(where, size=x.shape[2:])

    gate = {"fc": nn.Linear(C, C), "c1": nn.Conv2d(C, 1, 3, padding=1)}
    graph = assert_equivalent(Model(forward, **layers(**gate)), IMAGE)
    assert node(graph, "interpolate").attrs["mode"] == "nearest"
    assert len(multiplied_maps(graph)) == 2


def test_laudnet_groups_repeat_the_mask_over_channels() -> None:
    """view [N, 2, g], compare the two, then repeat, view, transpose, reshape to C."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        logits = m.fc(x.mean((2, 3))).view(-1, 2, 4)
        mask = (logits[:, 0] >= logits[:, 1]).float()
        mask = mask.repeat(1, 2).view(-1, 2, 4).transpose(1, 2).reshape(-1, C)
        return F.relu(m.bn(m.conv(x) * mask.view(-1, C, 1, 1)))

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, 8))), IMAGE)
    index = node(graph, "index_select").inputs[1]
    assert graph.constant(index).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not {"repeat", "permute"} & set(ops(graph))


def test_laudnet_layer_mask_hidden_in_an_upsampling_of_one_pixel() -> None:
    """[N, 1, 1, 1] nearest-upsampled to the map is an instance mask."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        mask = (m.c1(F.adaptive_avg_pool2d(x, 1)) > 0).float()
        return m.conv(x) * F.interpolate(mask, size=x.shape[2:]) + x

    graph = assert_equivalent(Model(forward, **layers(c1=nn.Conv2d(C, 1, 1))), IMAGE)
    assert "interpolate" not in ops(graph)
    assert "expand" not in ops(graph)


def test_aig_gumbel_softmax_by_arg_max_and_straight_through_sum() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        soft = F.softmax(m.c1(F.avg_pool2d(x, x.size(2))), 1)
        hard = torch.zeros_like(soft).scatter_(1, soft.data.max(1, keepdim=True)[1], 1.0)
        gate = hard - soft.detach() + soft
        return m.bn(m.conv(x)) * gate[:, 1].unsqueeze(1) + x

    graph = assert_equivalent(Model(forward, **layers(c1=nn.Conv2d(C, 2, 1))), IMAGE)
    assert {"argmax", "scatter", "sub", "add"} <= set(ops(graph))


def test_skipnet_complementary_pair() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        soft = m.c1(x).mean((2, 3), keepdim=True).squeeze().softmax(1)[:, 1]
        gate = ((soft > 0.5).float().detach() - soft.detach() + soft).view(-1, 1, 1, 1)
        y = F.relu(m.bn(m.conv(x)))
        return y * gate.expand_as(y) + x * (1 - gate).expand_as(x)

    model = Model(forward, **layers(c1=nn.Conv2d(C, 2, 1)))
    graph = to_graph(model, IMAGE)
    x = torch.randn(3, 3, 6, 6)
    with torch.no_grad():  # eager fails at batch 1: squeeze() takes the batch away
        assert_close(run(graph, x)[0], model(x))
    assert "expand" not in ops(graph)


def test_dcp_clamp_on_the_input() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        g = m.c2(m.c1(x.mean((2, 3), keepdim=True)).clamp(0, 1)).clamp(0, 1)
        return m.conv(x * g) + m.bn(m.conv(x * (g > 0.5).float()))

    graph = assert_equivalent(Model(forward, **layers(c1=nn.Conv2d(C, 4, 1), c2=nn.Conv2d(4, C, 1))), IMAGE)
    assert ops(graph).count("clamp") == 2
    assert ops(graph).count("conv2d") == 3


def test_ftwt_binary_by_an_autograd_function() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        x = m.stem(x)
        mask = Threshold.apply(m.c1(F.adaptive_max_pool2d(x, 1)).sigmoid() - 0.5)
        y = F.relu(m.bn(m.conv(x)) + x)
        return y * mask, y

    graph = assert_equivalent(Model(forward, **layers(c1=nn.Conv2d(C, C, 1))), IMAGE)
    assert ops(graph).count("where") == 2
    assert node(graph, "spatial_reduce").attrs["kind"] == "max"


def test_instance_norm_type_gates() -> None:
    """Norm, mean-relative threshold; the gate reads the very map that it masks."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.bn(m.conv(m.stem(x))))
        s = y.pow(2).sum((2, 3)).sqrt()
        y = y * (s >= 0.8 * s.mean(1, keepdim=True)).float()[:, :, None, None]
        s = y.flatten(2).norm(dim=2)
        return y * (s > 0.1 * s.amax(1, keepdim=True))[..., None, None]

    graph = assert_equivalent(Model(forward, **layers()), IMAGE)
    assert [n.attrs["kind"] for n in graph.nodes if n.op == "spatial_reduce"] == ["l2", "l2"]


def test_cgnet_own_partial_sum() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        partial = F.conv2d(x, m.conv.weight * m.part, padding=1)
        d = Threshold.apply(torch.sigmoid(2 * (m.gate_bn(partial) - m.threshold)) - 0.5)
        full = m.conv(x)
        return m.bn(full) * d + m.bn(partial) * (torch.ones_like(d) - d)

    part = (torch.rand(C, C, 1, 1) > 0.5).float()
    members = {"part": part, "threshold": torch.randn(1, C, 1, 1)}
    graph = assert_equivalent(Model(forward, **layers(gate_bn=nn.BatchNorm2d(C, affine=False)), **members), IMAGE)
    # The weight times its mask is a constant.
    assert ops(graph).count("conv2d") == 3


def test_dgc_heads_cat_masked_copies() -> None:
    """Masked copies concatenated for a grouped convolution whose weight is a cat of parameters."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        copies = []
        for i in range(2):
            g = F.relu(m.fc(x.mean((2, 3)))) + i
            threshold = g.topk(3, 1, largest=False)[0].max(1, keepdim=True)[0]
            mask = torch.ones_like(g)
            mask[g <= threshold] = 0
            copies.append(x * mask.view(-1, C, 1, 1).expand_as(x))
        weight = torch.cat([m.conv.weight, m.conv.weight * 2], 0)
        return F.conv2d(torch.cat(copies, 1), weight, groups=2)

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, C))), IMAGE)
    assert [n.attrs["groups"] for n in graph.nodes if n.op == "conv2d"] == [1, 2]
    assert ops(graph).count("cat") == 1


def test_grouped_five_dimensional_multiplication() -> None:
    """x.view(N, G, K, H, W) * w + 2 * (1 - w): becomes a multiplication and an addition on the map."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        n, c, h, w = x.shape
        gate = (m.fc(x.mean((2, 3))) > 0).float().view(n, 4, 1, 1, 1)
        y = m.conv(x).view(n, 4, 2, h, w) * gate + 2 * (1 - gate)
        return F.relu(y.view(n, c, h, w))

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, 4))), IMAGE)
    assert all(n.output.type.rank <= 4 for n in graph.nodes)
    assert len(multiplied_maps(graph)) == 1
    assert {tuple(graph.constant(n.inputs[1])) for n in graph.nodes if n.op == "index_select"} == {
        (0, 0, 1, 1, 2, 2, 3, 3)
    }


def test_a_flattened_map_times_a_vector() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        mask = m.fc(x.mean((2, 3))).relu()
        return m.conv((x.flatten(2) * mask[:, :, None]).view_as(x))

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, C))), IMAGE)
    assert len(multiplied_maps(graph)) == 1
    assert all(n.output.type.rank in (2, 4) for n in graph.nodes)


def test_two_equal_masks_become_one() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        first = (m.fc(x.mean((2, 3))) > 0).float().view(-1, C, 1, 1)
        second = (m.fc(x.mean((2, 3))) > 0).float().view(-1, C, 1, 1)
        return m.conv(x * first) * second

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, C))), IMAGE)
    assert ops(graph).count("gt") == 1


def test_a_sigmoid_squeeze_excite_stays_a_scale() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.conv(x) * m.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]

    graph = assert_equivalent(Model(forward, **layers(fc=nn.Linear(C, C))), IMAGE)
    assert sorted(ops(graph)) == ["conv2d", "conv2d", "linear", "mul", "reshape", "sigmoid", "spatial_reduce"]


def test_names_and_origins() -> None:
    """Layers have their path, functional calls the path of the module around them; origins hold no directory."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.conv(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), nn.Conv2d(4, 3, 1), nn.ReLU())
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(self.blocks(x)) * 2

    graph = assert_equivalent(Net(), IMAGE)
    names = [n.name for n in graph.nodes]
    assert names[:4] == ["blocks.0.conv", "blocks.0.relu", "blocks.1", "blocks.2"]
    assert len(set(names)) == len(names)
    assert graph.nodes[1].origin.startswith("test_gates.py:")
    assert all("/" not in n.origin for n in graph.nodes)
    assert graph.nodes[0].inputs[1].name == "blocks.0.conv.weight"


def test_tied_weights_are_stored_once() -> None:
    modules = layers()
    second = nn.Conv2d(C, C, 3, padding=1)
    second.weight = modules["conv"].weight
    graph = assert_equivalent(Model(lambda m, x: m.second(m.conv(m.stem(x)).relu()), second=second, **modules), IMAGE)
    _, first, other = (n for n in graph.nodes if n.op == "conv2d")
    assert first.inputs[1] is other.inputs[1]
