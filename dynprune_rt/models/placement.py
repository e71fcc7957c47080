"""Which gate goes where: the table of gate patterns, and their placement in the blocks of a network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from dynprune_rt.errors import DynpruneError
from dynprune_rt.models import gates


@dataclass(frozen=True)
class GateStyle:
    """One gate pattern.

    ``convs``: "all" gates every convolution of a block, "inner" all but the one before the addition,
    "branch" the whole residual branch with one decision, "output" the block's result after the addition.
    ``reads_block``: the gate reads the block's input instead of the convolution's, and one mask serves the block.
    """

    about: str
    build: Callable[..., nn.Module]
    convs: Literal["all", "inner", "branch", "output"] = "all"
    reads_block: bool = False


#: Gate patterns by the name that ``models.create(gate=...)`` takes.
GATES: dict[str, GateStyle] = {
    "manidp": GateStyle("pooled perceptron, valued, stored threshold (ManiDP)", gates.ManiDPGate),
    "fbs": GateStyle("topk + scatter, saliency replaces the BN scale (FBS)", gates.FBSGate),
    "fbs_threshold": GateStyle("(k+1)-th value as threshold (FBS, TensorFlow form)", gates.FBSThresholdGate),
    "fbs_before_norm": GateStyle("mask before and after BN (FBS, a PyTorch port)", gates.FBSBeforeNormGate),
    "kth": GateStyle("compared with the k-th largest, by kthvalue", gates.KthGate),
    "kth_sort": GateStyle("compared with the k-th largest, by sort", partial(gates.KthGate, form="sort")),
    "kth_topk": GateStyle("compared with the k-th largest, by topk", partial(gates.KthGate, form="topk")),
    "dgnet": GateStyle("pooled conv-BN-ReLU-conv, logit >= 0 (DGNet)", gates.DGNetGate, convs="inner"),
    "batch_shaping": GateStyle("the same, sigmoid > 0.5 (batch-shaping)", gates.BatchShapedGate, convs="inner"),
    "laudnet": GateStyle("two logits per channel, before BN (LAUDNet)", gates.LAUDNetGate, "inner", True),
    "laudnet_groups": GateStyle(
        "two logits per pair of channels, before BN (LAUDNet)",
        partial(gates.LAUDNetGate, granularity=2),
        "inner",
        True,
    ),
    "aig": GateStyle("argmax of two logits on the residual branch (ConvNet-AIG)", gates.BranchGate, convs="branch"),
    "ftwt": GateStyle("sigmoid > 0.5 on the block's output, after the addition (FTWT)", gates.OutputGate, "output"),
    "dcp": GateStyle("clamp(0, 1) on the conv's input (dynamic channel pruning)", gates.ClampGate),
    "dcp_binary": GateStyle("clamp > 0.5 on the conv's input", partial(gates.ClampGate, binary=True)),
    "hardsigmoid": GateStyle("hard sigmoid on the output, no comparison", gates.HardSigmoidGate),
    "instance_norm": GateStyle("own channel norm against the map's largest (IS)", gates.InstanceNormGate),
    "instance_norm_mean": GateStyle(
        "own channel norm against the map's mean (IS)", partial(gates.InstanceNormGate, rule="mean")
    ),
    "instance_norm_topk": GateStyle("topk of the own channel norms (IS)", partial(gates.InstanceNormGate, rule="topk")),
    "se": GateStyle("squeeze-and-excite: looks like a gate, is never zero", gates.SqueezeExcite, convs="inner"),
    "random": GateStyle("topk of a random projection of the pooled input: exact share", gates.RandomGate),
}


class GateFactory:
    """Makes the gates of one network, block by block, in the order of execution.

    ``only`` selects gate sites by their running number (counted from 0), for methods that gate some
    layers only. ``sites`` is the number of sites met so far.
    """

    def __init__(self, gate: str | None, share: float, only: Collection[int] | None = None, **options: Any) -> None:
        if gate is not None and gate not in GATES:
            raise DynpruneError(f"unknown gate {gate!r}; known gates: {', '.join(sorted(GATES))}")
        if not 0.0 < share <= 1.0:
            raise DynpruneError(f"share={share}: the share of live channels must be in (0, 1]")
        if gate is None and (options or only is not None):
            raise DynpruneError(f"options {sorted(options)} need a gate; pass gate=...")
        self.name = gate
        self.style = GATES[gate] if gate is not None else None
        self.share = share
        self.only = None if only is None else frozenset(only)
        self.options = options
        self.sites = 0

    def chain(self, convs: Sequence[tuple[int, int]], residual: bool = True) -> list[gates.ChannelGate | None]:
        """Gates for the consecutive convolutions (input, output channels) of one block.

        With ``residual`` the last convolution stands before the block's addition (or, in a network
        without additions, ends the block).
        """
        result: list[gates.ChannelGate | None] = [None] * len(convs)
        if self.style is None or self.style.convs in ("branch", "output"):
            return result
        shared: gates.ChannelGate | None = None
        for i, (inputs, outputs) in enumerate(convs):
            if self.style.convs == "inner" and residual and i == len(convs) - 1:
                continue
            if self.style.reads_block and shared is not None and shared.channels == outputs:
                result[i] = shared
                continue
            source = convs[0][0] if self.style.reads_block else inputs
            result[i] = shared = self._site(source, outputs)
        return result

    def over_depthwise(self, block_input: int, hidden: int) -> gates.ChannelGate | None:
        """A gate applied after a depthwise convolution, reading the input of the 1x1 expansion before it.

        Being per channel, the depthwise convolution hands the mask on: the expansion's channels die too.
        """
        if self.style is None or self.style.convs in ("branch", "output") or self.gates_inputs:
            return None
        gate = self._site(block_input, hidden)
        if gate is not None:
            gate.reads_block = True
        return gate

    def on_input(self, channels: int, outputs: int) -> gates.ChannelGate | None:
        """A gate on the input of the projection after a depthwise convolution, for input-gating styles only."""
        return self._site(channels, outputs) if self.gates_inputs else None

    def branch(self, channels: int) -> gates.BranchGate | None:
        """A gate for a residual branch as a whole."""
        if self.style is None or self.style.convs != "branch":
            return None
        gate = self._build(channels)
        assert gate is None or isinstance(gate, gates.BranchGate)
        return gate

    def output(self, inputs: int, outputs: int) -> gates.OutputGate | None:
        """A gate for a block's output after the addition."""
        if self.style is None or self.style.convs != "output":
            return None
        gate = self._build(inputs, outputs)
        assert gate is None or isinstance(gate, gates.OutputGate)
        return gate

    @property
    def gates_inputs(self) -> bool:
        """True for styles that mask what enters the convolution."""
        if self.style is None:
            return False
        build = self.style.build
        return getattr(build.func if isinstance(build, partial) else build, "applied", "") == "input"

    def _site(self, source: int, outputs: int) -> gates.ChannelGate | None:
        gate = self._build(source, source if self.gates_inputs else outputs)
        assert gate is None or isinstance(gate, gates.ChannelGate)
        if gate is not None and self.style is not None:
            gate.reads_block = self.style.reads_block
        return gate

    def _build(self, *channels: int) -> nn.Module | None:
        assert self.style is not None
        site = self.sites
        self.sites += 1
        if self.only is not None and site not in self.only:
            return None
        try:
            return self.style.build(*channels, share=self.share, **self.options)
        except TypeError as error:
            raise DynpruneError(
                f"gate {self.name!r} does not take the options {sorted(self.options)}: {error}"
            ) from None
        except ValueError as error:
            raise DynpruneError(f"gate {self.name!r}: {error}") from None
