"""Inserting gates into a traced model, reading their masks, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor, fx, nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.gates import ChannelMask, TrainableGate
from dynprune_rt.methods.graph import Site, TracedModel

Keeps: TypeAlias = Literal["", "pooled", "feature"]


def attach_gates(
    traced: TracedModel, sites: Iterable[Site], build: Callable[[Site, int], TrainableGate], keeps: Keeps = ""
) -> fx.GraphModule:
    """Multiply the feature of every site by its gate's mask, in the graph of ``traced.module``.

    build: (site, channels of the convolution's input) -> gate. Gates come to lie in ``gates.<site>``, multiplications
    in ``masks.<site>``, dots replaced by underscores; a gate sees its input already masked by earlier gates.
    keeps: see `ChannelMask`.
    """
    module = traced.module
    nodes = {node.name: node for node in module.graph.nodes}
    masked: dict[str, fx.Node] = {}
    modules = dict(module.named_modules())
    for site in sites:
        conv = modules[site.conv]
        assert isinstance(conv, nn.Conv2d)
        feature = nodes[site.feature]
        source = masked.get(site.source, nodes[site.source])
        added = _insert(module, gate_key(site.conv), build(site, conv.in_channels), keeps, source, feature)
        feature.replace_all_uses_with(added[1], delete_user_cb=lambda user, own=added: user not in own)
        masked[site.feature] = added[1]
    return _finished(module, bool(masked))


def attach_input_gates(
    traced: TracedModel, build: Callable[[int], TrainableGate], only: Collection[str] | None, keeps: Keeps = ""
) -> dict[str, str]:
    """Mask what convolutions read, by gates that look at that very map; other readers keep the whole map.

    Convolutions that share an input share the gate. The network's own input and depthwise convolutions are left out.
    build: channels -> gate. only: keys of the gates to attach (default all). Returns convolution -> key of its gate.
    """
    module = traced.module
    modules = dict(module.named_modules())
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in module.graph.nodes:
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and conv.groups == 1 and node.all_input_nodes[0].op != "placeholder":
            readers.setdefault(node.all_input_nodes[0], []).append(node)
    keys: dict[str, str] = {}
    for source, convs in readers.items():
        key = gate_key(str(convs[0].target))
        if only is not None and key not in only:
            continue
        conv = modules[str(convs[0].target)]
        assert isinstance(conv, nn.Conv2d)
        added = _insert(module, key, build(conv.in_channels), keeps, source, source)
        for reader in convs:
            reader.replace_input_with(source, added[1])
            keys[str(reader.target)] = key
    _finished(module, bool(keys))
    return keys


def _insert(
    module: fx.GraphModule, key: str, gate: TrainableGate, keeps: Keeps, source: fx.Node, feature: fx.Node
) -> tuple[fx.Node, fx.Node]:
    module.add_submodule(f"gates.{key}", gate)
    module.add_submodule(f"masks.{key}", ChannelMask(keeps))
    with module.graph.inserting_after(feature):
        mask = module.graph.call_module(f"gates.{key}", (source,))
    with module.graph.inserting_after(mask):
        product = module.graph.call_module(f"masks.{key}", (feature, mask))
    return mask, product


def _finished(module: fx.GraphModule, any_gate: bool) -> fx.GraphModule:
    if not any_gate:
        raise TrainingError("no site to gate was selected")
    module.graph.lint()
    module.recompile()
    return module


def gate_key(site: str) -> str:
    return site.replace(".", "_")


def gates_of(model: nn.Module) -> dict[str, TrainableGate]:
    """Gates by key, in order of execution."""
    return {name.removeprefix("gates."): m for name, m in model.named_modules() if isinstance(m, TrainableGate)}


def masks_of(model: nn.Module) -> dict[str, ChannelMask]:
    """Multiplications by the same keys."""
    return {name.removeprefix("masks."): m for name, m in model.named_modules() if isinstance(m, ChannelMask)}


def total_gate_macs(model: nn.Module) -> int:
    """MACs of all gates, per image."""
    return sum(gate.macs() for gate in gates_of(model).values())


def recorded_masks(model: nn.Module, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """bool [N, C] by gate key: where the mask is not 0, on all batches in ``images``, in eval mode."""
    found: dict[str, list[Tensor]] = {}

    def collect(key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        target = found.setdefault(key, [])
        return lambda module, inputs, mask: target.append((mask != 0).cpu())

    handles = [gate.register_forward_hook(collect(key)) for key, gate in gates_of(model).items()]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in images:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return {key: torch.cat(parts) for key, parts in found.items()}


def site_records(
    model: nn.Module, traced: TracedModel, sites: Iterable[Site], batches: Iterable[Tensor]
) -> Iterator[tuple[Site, Tensor, Tensor]]:
    """Per site: pooled input of its convolution [N, C_in] and mean magnitude of its feature's channels [N, C]."""
    wanted = list(sites)
    nodes = {node.name: node for node in traced.module.graph.nodes}
    needed = {nodes[s.source] for s in wanted} | {nodes[s.feature] for s in wanted}
    pooled: dict[str, list[Tensor]] = {node.name: [] for node in needed}
    sources = {s.source for s in wanted}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n in needed:
                pooled[n.name].append(torch.stack([value.mean((2, 3)), value.abs().mean((2, 3))]))
            return value

    training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            Recorder(traced.module).run(batch)
    model.train(training)
    joined = {name: torch.cat(parts, dim=1) for name, parts in pooled.items()}
    assert sources <= joined.keys()
    for site in wanted:
        yield site, joined[site.source][0], joined[site.feature][1]
