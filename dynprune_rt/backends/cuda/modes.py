"""How each convolution may be executed, and what decides its bits.

The bits of an image's result never depend on the batch it travels in. So what decides the order of additions is chosen
once per program and GPU: which maps are stored packed, and into how many segments the sums of a layer are cut. The rest
(which outputs are gathered, whether segments are spread over blocks) may differ from batch to batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dynprune_rt.backends.cuda.execution import stored_as_map
from dynprune_rt.backends.cuda.maps import BY_INPUT, BY_OUTPUT, DENSE, TWO_SIDED, ConvMode
from dynprune_rt.ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class ConvProblem:
    """What the time of a convolution depends on, but for the batch and the channels that are live.

    ``packed``: the input is stored packed; ``gated``: only some outputs are wanted. ``geometry``: kernel, stride,
    top and left padding, dilation. ``reduced``: the output is also reduced to one number per channel, for a gate.
    """

    channels: int
    outputs: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    geometry: tuple[int, ...]
    packed: bool
    gated: bool
    residual: bool
    reduced: bool = False

    @property
    def key(self) -> str:
        """Names the problem in the cache of measured times."""
        sizes = "x".join(map(str, (*self.in_size, *self.out_size)))
        flags = (self.packed, self.gated, self.residual, self.reduced)
        letters = "".join("pgrs"[i] for i, on in enumerate(flags) if on)
        return f"{self.channels}-{self.outputs} {sizes} {','.join(map(str, self.geometry))} {letters}"

    def layouts(self) -> tuple[int, ...]:
        """Layouts that give the same bits; the first is the one without measurements."""
        if self.packed:
            return (TWO_SIDED, BY_INPUT) if self.gated else (BY_INPUT,)
        return (BY_OUTPUT, BY_INPUT, DENSE) if self.gated else (DENSE,)


def is_gemm(node: Node) -> bool:
    """True for convolutions that run as products on tensor cores."""
    return node.op == "conv2d" and node.attrs["groups"] == 1 and not is_vector_conv(node)


def is_vector_conv(node: Node) -> bool:
    """True for 1x1 convolutions of 1x1 maps, which are linear layers in fp32."""
    x, weight, attrs = node.inputs[0], node.inputs[1], node.attrs
    assert x is not None and weight is not None
    one_pixel = x.type.shape[2:] == (1, 1) and weight.type.shape[2:] == (1, 1)
    return one_pixel and not any(attrs["padding"]) and attrs["groups"] == 1


def output_mask(node: Node) -> Value | None:
    """Which outputs of a convolution are wanted; None = all."""
    return node.computed if node.computed is not None else node.output.live


@dataclass
class Choices:
    """What a plan executes. ``packed``: maps stored packed. ``segments``: of layers by name, where not 1.

    ``measured``: the fastest mode of a problem for a batch, or None where nothing is known.
    """

    packed: frozenset[Value]
    segments: dict[str, int]
    skip: bool
    measured: Callable[[ConvProblem, int, int], ConvMode | None]

    def problem(self, node: Node) -> ConvProblem:
        """The convolution as it has to be executed when maps are stored like this."""
        return conv_problem(node, self.packed, self.skip)

    def mode(self, node: Node, batch: int) -> ConvMode:
        problem, segments = self.problem(node), self.segments.get(node.name, 1)
        return self.measured(problem, segments, batch) or ConvMode(problem.layouts()[0], segments)


def conv_problem(node: Node, packed: frozenset[Value], skip: bool) -> ConvProblem:
    """A convolution's problem where the maps of ``packed`` are stored packed; without ``skip`` it computes all."""
    x, weight, out = node.inputs[0], node.inputs[1], node.output
    assert x is not None and weight is not None
    attrs = node.attrs
    # An output that is live in parts but not stored packed is computed whole: what is not live must not be garbage.
    gated = skip and output_mask(node) is not None
    if out.live is not None and stored_as_map(out) and out not in packed:
        gated = False
    return ConvProblem(
        channels=x.type.channels,
        outputs=out.type.channels,
        in_size=(x.type.shape[2], x.type.shape[3]),
        out_size=(out.type.shape[2], out.type.shape[3]),
        geometry=(*weight.type.shape[2:], *attrs["stride"], *attrs["padding"][:2], *attrs["dilation"]),
        packed=x in packed,
        gated=gated,
        residual=len(node.inputs) > 5 and node.inputs[5] is not None,
        reduced=bool(attrs["pools"]),
    )


def packable(graph: Graph) -> frozenset[Value]:
    """Maps of which only some channels are live."""
    values = (*graph.inputs, *(v for node in graph.nodes for v in node.outputs))
    return frozenset(v for v in values if v.live is not None and stored_as_map(v))


def unmeasured(graph: Graph, skip: bool) -> Choices:
    """Choices without measurements: everything that can be skipped is; without ``skip``, nothing."""
    return Choices(packable(graph) if skip else frozenset(), {}, skip, lambda problem, segments, batch: None)


def spread_modes(problem: ConvProblem, segments: int) -> list[ConvMode]:
    """Every mode that gives the same bits as the problem's first one with these segments."""
    modes = [ConvMode(layout, segments) for layout in problem.layouts()]
    return modes + ([replace(mode, spread=True) for mode in modes] if segments > 1 else [])
