"""Finding what can be gated or removed in a model, by its torch.fx graph.

A *site* is the output of one convolution with its batch norm and activation, where a per-channel mask may
stand: ``inner`` sites feed other convolutions (or the classifier) only, so their channels can also be removed
for good; ``residual`` sites end a branch before an addition, where a mask can skip work but the width must stay.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from dynprune_rt.errors import TrainingError

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.GELU)
_PER_CHANNEL = (
    *_ACTIVATIONS, nn.BatchNorm2d, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_ACTIVATION_CALLS = {F.relu, F.relu6, F.silu, F.hardswish, F.leaky_relu, F.gelu, torch.relu}
_PER_CHANNEL_CALLS = {
    *_ACTIVATION_CALLS, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip
_ADDITIONS = {"add", "add_", "iadd"}


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a site's channels. ``block``: columns per channel (more than 1 after a flatten)."""

    module: str
    block: int = 1


@dataclass(frozen=True)
class Site:
    """One maskable convolution output; all names are qualified module names, or node names of the traced graph.

    ``feature`` is the node a mask multiplies, ``source`` the convolution's input node. ``followers`` are the batch
    norms and depthwise convolutions that carry the same channels on, ``consumers`` the layers that end them.
    """

    conv: str
    norm: str | None
    feature: str
    source: str
    channels: int
    inner: bool
    followers: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()


@dataclass(frozen=True)
class LayerCost:
    """MACs of one convolution or linear layer per image, and the sites that mask its inputs and outputs."""

    module: str
    macs: int
    inputs: int
    outputs: int
    input_site: str | None
    output_site: str | None


@dataclass
class TracedModel:
    """A model as a graph module of its own, its sites in order of execution, and every layer's cost."""

    module: fx.GraphModule
    sites: list[Site] = field(default_factory=list)
    layers: list[LayerCost] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, dense."""
        return sum(layer.macs for layer in self.layers)

    def inner_sites(self) -> list[Site]:
        return [site for site in self.sites if site.inner]


def trace(model: nn.Module, example: Tensor) -> TracedModel:
    """Copy ``model``, trace it with torch.fx and find its sites.

    ``example``: f32 [N, C, H, W]. Sites leave out convolutions that read the network's input, depthwise and grouped
    ones, and projections on a shortcut. Raises TrainingError when the model cannot be traced or has no site.
    """
    training = model.training
    copied = copy.deepcopy(model).eval()
    try:
        module = fx.symbolic_trace(copied)
    except Exception as error:
        raise TrainingError(
            f"torch.fx cannot trace {type(model).__name__}: {type(error).__name__}: {error}; the methods need a "
            "forward without data-dependent control flow"
        ) from error
    with torch.no_grad():
        ShapeProp(module).propagate(example)
    traced = TracedModel(module)
    modules = dict(module.named_modules())
    for node in module.graph.nodes:
        site = _site(node, modules)
        if site is not None:
            traced.sites.append(site)
    if not traced.sites:
        raise TrainingError(
            f"{type(model).__name__} has nothing to gate or remove: it needs a convolution (not the first one, not "
            "depthwise) whose output goes through batch norm and activation to another layer or to an addition"
        )
    traced.layers = _costs(module, modules, traced.sites)
    module.train(training)
    return traced


def first_readers(traced: TracedModel, site: Site) -> tuple[Consumer, ...]:
    """Layers with weights that read the site's feature directly, or through pooling, flattening, relu and the like.

    What lies between commutes with a positive factor per channel. Raises TrainingError where something does not.
    """
    modules = dict(traced.module.named_modules())
    start = next(node for node in traced.module.graph.nodes if node.name == site.feature)
    found: list[Consumer] = []
    pending = [(start, 1)]
    while pending:
        node, block = pending.pop()
        for user in node.users:
            module = _module(user, modules)
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                found.append(Consumer(str(user.target), block))
            elif isinstance(module, _ACTIVATIONS) and not isinstance(module, (nn.ReLU, nn.LeakyReLU)):
                raise TrainingError(f"a factor on {site.conv} cannot move past the {type(module).__name__} after it")
            elif isinstance(module, nn.Flatten) or _called(user, {torch.flatten}, "flatten"):
                pending.append((user, _shape(user)[1] // site.channels))
            else:
                pending.append((user, block))
    return tuple(found)


def require_inner(traced: TracedModel) -> list[Site]:
    """Sites whose channels can be removed. Raises TrainingError when there is none."""
    sites = traced.inner_sites()
    if not sites:
        raise TrainingError(
            "no channel can be removed: every convolution's output reaches an addition or a concatenation"
        )
    return sites


# -- reading the graph ----------------------------------------------------------------------------------


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def _called(node: fx.Node, functions: set[object], method: str = "") -> bool:
    if node.op == "call_function":
        return node.target in functions
    return node.op == "call_method" and bool(method) and node.target == method


def _is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return isinstance(_module(node, modules), _ACTIVATIONS) or _called(node, set(_ACTIVATION_CALLS), "relu")


def _is_addition(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", str(node.target))
    return node.op in ("call_function", "call_method") and name in _ADDITIONS and len(node.all_input_nodes) == 2


def _is_depthwise(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _site(node: fx.Node, modules: dict[str, nn.Module]) -> Site | None:
    conv = _module(node, modules)
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
        return None
    source = node.all_input_nodes[0]
    if source.op == "placeholder":
        return None
    feature, norm = node, None
    user = _only_user(node)
    while user is not None and isinstance(_module(user, modules), (nn.BatchNorm2d, nn.Identity)):
        if isinstance(_module(user, modules), nn.BatchNorm2d):
            norm = str(user.target)
        feature, user = user, _only_user(user)
    if user is not None and _is_addition(user):
        if _is_shortcut(node, user, modules):
            return None
        return Site(str(node.target), norm, feature.name, source.name, conv.out_channels, False)
    if user is not None and _is_activation(user, modules):
        feature = user
    found = _consumers(feature, modules, conv.out_channels)
    if found is None:
        return None
    followers, consumers = found
    own = (norm,) if norm is not None else ()
    return Site(str(node.target), norm, feature.name, source.name, conv.out_channels, True, own + followers, consumers)


def _consumers(
    start: fx.Node, modules: dict[str, nn.Module], channels: int
) -> tuple[tuple[str, ...], tuple[Consumer, ...]] | None:
    """Layers that carry the channels of ``start`` on and those that end them; None if anything else reads them."""
    followers: list[str] = []
    consumers: list[Consumer] = []
    pending = [(start, 1)]
    while pending:
        node, block = pending.pop()
        for user in node.users:
            module = _module(user, modules)
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                consumers.append(Consumer(str(user.target)))
            elif isinstance(module, nn.Linear):
                if len(_shape(node)) != 2:
                    return None
                consumers.append(Consumer(str(user.target), block))
            elif _is_depthwise(module) or isinstance(module, nn.BatchNorm2d):
                followers.append(str(user.target))
                pending.append((user, block))
            elif isinstance(module, _PER_CHANNEL) or _called(user, set(_PER_CHANNEL_CALLS), "relu"):
                pending.append((user, block))
            elif isinstance(module, nn.Flatten) or _called(user, {torch.flatten}, "flatten"):
                shape = _shape(user)
                if len(shape) != 2 or shape[1] % channels:
                    return None
                pending.append((user, shape[1] // channels))
            elif _called(user, {torch.mean}, "mean") and _reduces_space(user):
                pending.append((user, block))
            else:
                return None
    return (tuple(followers), tuple(consumers)) if consumers else None


def _reduces_space(node: fx.Node) -> bool:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    wanted = {2, 3}
    return isinstance(dims, (tuple, list)) and {int(str(d)) % 4 for d in dims} == wanted


def _branch_conv(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The convolution that ends the branch at ``node``, through batch norm and identity."""
    while isinstance(_module(node, modules), (nn.BatchNorm2d, nn.Identity)):
        node = node.all_input_nodes[0]
    return node if isinstance(_module(node, modules), nn.Conv2d) else None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            pending.extend(current.all_input_nodes)
    return seen


def _is_shortcut(conv: fx.Node, addition: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """True if the other operand of ``addition`` was computed, through further layers, from this conv's own input."""
    own_source = conv.all_input_nodes[0]
    for operand in addition.all_input_nodes:
        other = _branch_conv(operand, modules)
        if other is not None and other is not conv:
            source = other.all_input_nodes[0]
            return source is not own_source and own_source in _ancestors(source)
    return False


def _costs(module: fx.GraphModule, modules: dict[str, nn.Module], sites: list[Site]) -> list[LayerCost]:
    output_site = {site.conv: site.conv for site in sites}
    input_site = {consumer.module: site.conv for site in sites for consumer in site.consumers}
    for site in sites:  # a depthwise follower works on the site's channels alone
        for name in site.followers:
            if isinstance(modules[name], nn.Conv2d):
                output_site[name] = site.conv
    layers = []
    for node in module.graph.nodes:
        layer = _module(node, modules)
        name, shape = str(node.target), _shape(node)
        if isinstance(layer, nn.Conv2d):
            window = layer.kernel_size[0] * layer.kernel_size[1]
            macs = shape[1] * shape[2] * shape[3] * window * (layer.in_channels // layer.groups)
            inputs, outputs = layer.in_channels, layer.out_channels
        elif isinstance(layer, nn.Linear):
            macs, inputs, outputs = layer.in_features * layer.out_features, layer.in_features, layer.out_features
        else:
            continue
        layers.append(LayerCost(name, macs, inputs, outputs, input_site.get(name), output_site.get(name)))
    return layers
