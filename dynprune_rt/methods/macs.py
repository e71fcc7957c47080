"""Multiply-accumulates left by masks: per image, by width, and the part that static removal would give as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynprune_rt.methods.graph import LayerCost

#: A channel live in a smaller share of the images counts as never live (in a larger one than 1 - this, as always).
NEVER_LIVE = 0.01


def macs_at_widths(
    layers: list[LayerCost], widths: Mapping[str, float], rates: Mapping[str, float] | None = None
) -> float:
    """Cost of one image when the sites in ``widths`` have that many channels and all others their full width.

    ``rates`` weighs each layer's MACs (milliseconds per MAC, say) and makes the result a latency estimate.
    """
    full: dict[str, int] = {layer.input_site: layer.inputs for layer in layers if layer.input_site is not None}
    full.update({layer.output_site: layer.outputs for layer in layers if layer.output_site is not None})
    total = 0.0
    for layer in layers:
        share = 1.0
        for site in {layer.input_site, layer.output_site} - {None}:
            assert site is not None
            if site in widths:
                share *= widths[site] / full[site]
        total += layer.macs * share * (1.0 if rates is None else rates.get(layer.module, 0.0))
    return total


def macs_of_masks(layers: list[LayerCost], live: Mapping[str, Tensor]) -> Tensor:
    """MACs per image f64[N]: live inputs times live outputs of every layer. ``live``: bool [N, C] per masked site."""
    images = next(iter(live.values())).shape[0]
    shares = {site: mask.double().mean(1) for site, mask in live.items()}
    total = torch.zeros(images, dtype=torch.float64)
    for layer in layers:
        share = torch.ones(images, dtype=torch.float64)
        for site in {layer.input_site, layer.output_site} - {None}:
            assert site is not None
            if site in shares:
                share = share * shares[site]
        total += layer.macs * share
    return total


@dataclass(frozen=True)
class Activity:
    """What masks leave of a network, over many images.

    ``macs_left`` is the mean share of the dense MACs still executed, gates' own cost included; ``static_cut`` the
    share that deleting the never-live channels once would remove (what a plain, smaller network gets as well), and
    ``static_share`` its part of the whole cut. ``never``, ``always``, ``varying`` are shares of all masked channels.
    """

    macs_left: float
    macs_left_std: float
    static_cut: float
    static_share: float
    never: float
    always: float
    varying: float
    live: dict[str, float]

    def within(self, share: float) -> Activity:
        """The same masks on a network that was first made smaller for good, to ``share`` of the dense MACs."""
        left, static_cut = self.macs_left * share, 1.0 - (1.0 - self.static_cut) * share
        cut = 1.0 - left
        return replace(
            self,
            macs_left=left,
            macs_left_std=self.macs_left_std * share,
            static_cut=static_cut,
            static_share=min(1.0, static_cut / cut) if cut > 0 else 0.0,
        )


def static_activity(dense: int, left: int) -> Activity:
    """Of a network that was made smaller for good."""
    share = left / dense
    return Activity(share, 0.0, 1.0 - share, 1.0, 0.0, 1.0, 0.0, {})


def activity(layers: list[LayerCost], live: Mapping[str, Tensor], gate_macs: int = 0) -> Activity:
    """Summarise masks, bool [N, C] per site, of N images."""
    dense = sum(layer.macs for layer in layers)
    per_image = (macs_of_masks(layers, live) + gate_macs) / dense
    frequency = torch.cat([mask.double().mean(0) for mask in live.values()])
    widths = {site: float((mask.double().mean(0) >= NEVER_LIVE).sum()) for site, mask in live.items()}
    static_cut = 1.0 - macs_at_widths(layers, widths) / dense
    cut = 1.0 - float(per_image.mean())
    never = float((frequency < NEVER_LIVE).double().mean())
    always = float((frequency > 1.0 - NEVER_LIVE).double().mean())
    return Activity(
        macs_left=float(per_image.mean()),
        macs_left_std=float(per_image.std(unbiased=False)),
        static_cut=static_cut,
        static_share=min(1.0, static_cut / cut) if cut > 0 else 0.0,
        never=never,
        always=always,
        varying=1.0 - never - always,
        live={site: float(mask.double().mean()) for site, mask in live.items()},
    )
