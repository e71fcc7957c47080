"""Random gated networks: chains and joins of maps, with gates of every kind at every place.

The generator asks ``choose(n)`` for every decision, so that hypothesis can shrink a failure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.types import BATCH
from python_tests.passes.networks import Network

Choose = Callable[[int], int]

#: Bound on channels: concatenations grow fast.
MAX_CHANNELS = 16


class RandomNetwork:
    """Grows a network step by step; every map made so far may be read again."""

    def __init__(self, choose: Choose, seed: int) -> None:
        self.choose = choose
        self.net = Network(channels=4, size=5, seed=seed)
        self.maps: list[Value] = [self.net.x]
        self.decisions: list[Value] = []  # logits and pooled features that gates are made from
        self.gates: list[Value] = []  # [N, C] f32
        self.conditions: list[Value] = []  # bool [N, C]

    def pick(self, values: list[Value]) -> Value:
        # The latest values are the likeliest, so that chains grow.
        n = len(values)
        return values[-1 - min(self.choose(n), self.choose(n), self.choose(n))]

    def build(self, steps: int) -> list[Value]:
        """Grow, and return the outputs."""
        makers = [
            self._convolution,
            self._convolution,
            self._gating,
            self._gating,
            self._gating,
            self._unary,
            self._affine,
            self._join,
            self._rearrange,
            self._spatial,
            self._grouped_view,
            self._static,
        ]
        for _ in range(steps):
            made = makers[self.choose(len(makers))]()
            if made is not None and made.type.channels <= MAX_CHANNELS:
                self.maps.append(made)
        return self._outputs()

    def _outputs(self) -> list[Value]:
        net, last = self.net, self.maps[-1]
        outputs = [last]
        if self.choose(2):
            outputs = [net.linear(net.pooled(last, "mean"), 3, "head")]
        if self.choose(4) == 0:
            extra = self.pick(self.maps)
            outputs.append(net.pooled(extra, "max") if self.choose(2) else net.relu(extra))
        return [net.relu(v) if v.producer is None else v for v in outputs]

    # -- steps --------------------------------------------------------------------------------------

    def _convolution(self) -> Value:
        net, x = self.net, self.pick(self.maps)
        channels = x.type.channels
        kernel = (1, 3)[self.choose(2)]
        kind = self.choose(5)
        name = f"conv{len(self.maps)}"
        if kind == 0:
            return net.conv(x, channels, name, kernel, groups=channels, bias=bool(self.choose(2)))
        if kind == 1 and channels % 2 == 0:
            return net.conv(x, (2, 4, 6)[self.choose(3)], name, kernel, groups=2, bias=bool(self.choose(2)))
        out = (channels, 2, 3, 5)[self.choose(4)]
        return net.conv(x, out, name, kernel, stride=1 + (self.choose(6) == 0), bias=self.choose(3) > 0)

    def _unary(self) -> Value:
        net, x = self.net, self.pick(self.maps)
        ops = ["relu", "relu", "leaky_relu", "sigmoid", "hardswish", "neg", "abs", "tanh", "exp", "reciprocal", "clamp"]
        op = ops[self.choose(len(ops))]
        attrs: dict[str, float] = {"leaky_relu": {"slope": 0.1}, "clamp": {"lo": -1.0, "hi": 6.0}}.get(op, {})
        if op == "clamp" and self.choose(2):
            attrs = {"lo": 0.0, "hi": 6.0}
        result: Value = net.op(op, x, **attrs)
        return result

    def _affine(self) -> Value:
        net, x = self.net, self.pick(self.maps)
        if self.choose(2):
            return net.batch_norm(x)
        array = net.rng.uniform(0.5, 1.5, (x.type.channels, 1, 1))
        result: Value = net.op(("add", "sub", "mul", "div")[self.choose(4)], x, net.const(array))
        return result

    def _static(self) -> Value:
        """Channels that are closed for every image."""
        net, x = self.net, self.pick(self.maps)
        channels = x.type.channels
        bits = (net.rng.random(channels) < 0.6).astype(np.float32)
        kind = self.choose(4)
        if kind == 0:
            return net.mul(x, net.const(bits.reshape(1, channels, 1, 1)))
        if kind == 1:
            shift = bits * net.rng.standard_normal(channels) * self.choose(2)
            result: Value = net.op("affine", x, net.const(bits), net.const(shift))
            return result
        weight = net.weights(channels, channels, 1, 1) * bits[:, None, None, None]
        if kind == 2:
            weight *= bits[None, ::-1, None, None]
        bias = net.const(bits * net.rng.standard_normal(channels)) if self.choose(2) else None
        conv: Value = net.op("conv2d", x, net.const(weight), bias, name=f"static{len(self.maps)}")
        return conv

    def _join(self) -> Value:
        net, a = self.net, self.pick(self.maps)
        same = [v for v in self.maps if v.type == a.type]
        size = [v for v in self.maps if v.type.shape[2:] == a.type.shape[2:]]
        kind = self.choose(6)
        if kind < 3:
            return net.add(a, self.pick(same))
        if kind == 3:
            result: Value = net.op(("sub", "mul", "maximum")[self.choose(3)], a, self.pick(same))
            return result
        joined: Value = net.op("cat", *[self.pick(size) for _ in range(1 + self.choose(3))], dim=1)
        return joined

    def _rearrange(self) -> Value:
        net, x = self.net, self.pick(self.maps)
        channels = x.type.channels
        kind = self.choose(5)
        result: Value
        if kind == 0:
            return net.shuffled(x, net.rng.permutation(channels))
        if kind == 1:
            return net.shuffled(x, net.rng.integers(0, channels, min(channels + 1, MAX_CHANNELS)))
        if kind == 2 and channels > 2:
            result = net.op("slice", x, dim=1, start=1, stop=channels)
        elif kind == 3:
            low, high = (0, 1 + self.choose(2), 0, 0), (0, self.choose(2), self.choose(2), 0)
            result = net.op("pad", x, low=low, high=high, value=float(self.choose(2)))
        else:
            result = net.op("permute", x, dims=(0, 1, 3, 2))
        return result

    def _spatial(self) -> Value:
        net, x = self.net, self.pick(self.maps)
        kind = self.choose(6)
        result: Value
        if kind == 0:
            result = net.op("interpolate", x, size=(4, 6), mode=("nearest", "bilinear")[self.choose(2)])
        elif kind == 1:
            result = net.op("adaptive_avg_pool2d", x, output=(3, 2))
        elif kind == 2:
            result = net.op("group_norm", x, groups=1)
        elif kind == 3:
            mask = net.op("cast", net.compare("gt", net.conv(x, 1, "spatial", 1), 0.0), dtype="f32")
            result = net.op("mul", x, mask)
        else:
            op, more = [("max_pool2d", {}), ("avg_pool2d", {"count_include_pad": bool(self.choose(2))})][self.choose(2)]
            if min(x.type.shape[2:]) < 2:
                return x
            result = net.op(op, x, kernel=(2, 2), stride=(1, 1), padding=(1, 0, 0, 1), **more)
        return result

    def _grouped_view(self) -> Value | None:
        """A gate per group of channels, on a view with five dimensions or by repetition."""
        net, x = self.net, self.pick(self.maps)
        channels, (height, width) = x.type.channels, x.type.shape[2:]
        if channels % 2:
            return None
        gate = self._gate(2)
        result: Value
        if self.choose(2):
            view = net.op("reshape", x, shape=(BATCH, 2, channels // 2, height, width))
            masked = net.op("mul", view, net.op("reshape", gate, shape=(BATCH, 2, 1, 1, 1)))
            if self.choose(3) == 0:
                filler = net.op("mul", net.op("sub", net.const(1.0), gate), net.const(2.0))
                masked = net.op("add", masked, net.op("reshape", filler, shape=(BATCH, 2, 1, 1, 1)))
            result = net.op("reshape", masked, shape=(BATCH, channels, height, width))
        else:
            wide = net.op("reshape", gate, shape=(BATCH, 2, 1))
            wide = net.op("expand", wide, shape=(BATCH, 2, channels // 2))
            result = net.mul(x, net.op("reshape", wide, shape=(BATCH, channels)))
        return result

    # -- gates --------------------------------------------------------------------------------------

    def _gating(self) -> Value:
        net, x = self.net, self.pick(self.maps)
        channels = x.type.channels
        if self.choose(4) == 0:
            gate = self._gate(1)  # a whole branch
            shape = (BATCH, channels, *x.type.shape[2:])
            wide = net.as_map(gate)
            if self.choose(2):
                wide = net.op("expand", wide, shape=shape)
            elif self.choose(2):
                wide = net.op("interpolate", wide, size=x.type.shape[2:], mode="nearest")
            masked = net.mul(x, wide)
            same = [v for v in self.maps if v.type == x.type]
            if self.choose(2):
                other = net.mul(self.pick(same), net.op("sub", net.const(1.0), gate))
                return net.add(masked, other)
            return masked
        if self.choose(5) == 0:
            condition = net.as_map(self._condition(channels))
            branches = [x, net.const((0.0, 0.5)[self.choose(2)])]
            if self.choose(2):
                branches.reverse()
            result: Value = net.op("where", condition, *branches)
            return result
        return net.mul(x, self._gate(channels))

    def _decision(self, channels: int) -> Value:
        """Logits [N, channels], from an input or from a map."""
        known = [v for v in self.decisions if v.type.channels == channels]
        kind = self.choose(4)
        if known and kind == 0:
            return self.pick(known)
        if kind == 1:
            source = self.pick(self.maps)
            kinds = ("mean", "max", "l2")
            made = self.net.linear(self.net.pooled(source, kinds[self.choose(3)]), channels, f"fc{len(self.decisions)}")
        elif kind == 2 and any(v.type.channels == channels for v in self.maps):  # reads the very channels
            source = self.pick([v for v in self.maps if v.type.channels == channels])
            made = self.net.op("sub", self.net.pooled(source, "mean_abs"), self.net.const(0.3))
        else:
            made = self.net.logits(f"logits{len(self.decisions)}", channels)
        self.decisions.append(made)
        return made

    def _condition(self, channels: int) -> Value:
        known = [v for v in self.conditions if v.type.channels == channels]
        if known and self.choose(2):
            found = self.pick(known)
            if self.choose(3) == 0:
                found = self.net.op("logical_not", found)
            return found
        made = self.net.compare(("ge", "lt", "gt")[self.choose(3)], self._decision(channels), 0.0)
        self.conditions.append(made)
        return made

    def _gate(self, channels: int) -> Value:
        """A gate [N, channels] that may be exactly zero (or, rarely, never is)."""
        net = self.net
        known = [v for v in self.gates if v.type.channels == channels]
        kind = self.choose(11)
        made: Value
        if known and kind == 0:
            return self.pick(known)
        if known and kind == 1:
            made = net.op("mul", self.pick(known), self.pick(known))
        elif kind == 2:
            made = net.op("relu", self._decision(channels))
        elif kind == 3:
            made = net.op("clamp", self._decision(channels), lo=0.0, hi=1.0)
        elif kind == 4 and channels > 1:
            values = net.op("relu", self._decision(channels))
            _, index = net.op("topk", values, k=1 + self.choose(channels - 1), dim=1, largest=False)
            ones = net.const(np.ones((1, channels)))
            base = values if self.choose(2) else ones
            made = net.op("scatter", base, index, net.const(0.0), dim=1)
            if self.choose(2):
                self.gates.append(net.op("scatter", ones, index, net.const(0.0), dim=1))
        elif kind == 5:
            hard = net.op("cast", self._condition(channels), dtype="f32")
            soft = net.op("sigmoid", self._decision(channels))
            made = net.op("add", net.op("sub", hard, soft), soft)
        elif kind == 6:
            made = net.op(
                "where", self._condition(channels), net.const(0.0), net.op("sigmoid", self._decision(channels))
            )
        elif kind == 7:
            hard = net.op("cast", self._condition(channels), dtype="f32")
            made = net.op("sub", net.const(1.0), hard)
        elif kind == 8:
            made = net.op("sigmoid", self._decision(channels))
        elif kind == 9:
            made = net.op("logical_and", self._condition(channels), self._condition(channels))
            made = net.op("cast", made, dtype="f32")
        else:
            made = net.op("cast", self._condition(channels), dtype="f32")
        self.gates.append(made)
        return made
