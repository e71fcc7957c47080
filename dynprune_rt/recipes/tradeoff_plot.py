"""Accuracy against cost as a small SVG: dynamic networks as circles, static ones as squares, and the static front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 460, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 28, 44
_DYNAMIC, _STATIC, _INK = "#0b6e99", "#c2571a", "#333"


@dataclass(frozen=True)
class Point:
    """One network: cost, accuracy in [0, 1], a label, and whether its masks differ per image."""

    cost: float
    accuracy: float
    label: str
    dynamic: bool


@dataclass(frozen=True)
class Panel:
    """``title`` of the x axis; ``fronts``: lines through (cost, accuracy); ``caption``: what the marks mean."""

    title: str
    points: Sequence[Point]
    fronts: Sequence[Sequence[tuple[float, float]]] = ()
    caption: str = "test accuracy; circles: per image, squares: static, line: static front"


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    width = _WIDTH * len(panels)
    body = "".join(f'<g transform="translate({i * _WIDTH},0)">{_content(panel)}</g>' for i, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="{_INK}"><rect width="100%" height="100%" fill="white"/>'
        f"{body}</svg>\n"
    )


def _content(panel: Panel) -> str:
    title, points = panel.title, panel.points
    on_fronts = [corner for front in panel.fronts for corner in front]
    x_low, x_high = _range([p.cost for p in points] + [x for x, _ in on_fronts])
    y_low, y_high = _range([p.accuracy for p in points] + [y for _, y in on_fronts])

    def place(cost: float, accuracy: float) -> tuple[float, float]:
        x = _LEFT + (cost - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (accuracy - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return x, y

    parts = []
    for k in range(5):
        x, y = place(x_low + k / 4 * (x_high - x_low), y_low + k / 4 * (y_high - y_low))
        cost, accuracy = x_low + k / 4 * (x_high - x_low), y_low + k / 4 * (y_high - y_low)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{accuracy:.1%}</text>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{cost:.3g}</text>')
    for front in panel.fronts:
        path = "L".join("{:.1f} {:.1f}".format(*place(*corner)) for corner in front)
        if path:
            parts.append(f'<path d="M{path}" stroke="{_STATIC}" fill="none" stroke-dasharray="4 3"/>')
    for point in points:
        x, y = place(point.cost, point.accuracy)
        if point.dynamic:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_DYNAMIC}"/>')
        else:
            parts.append(f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{_STATIC}"/>')
        right = x > _WIDTH * 0.6
        anchor, shift = ("end", -8) if right else ("start", 8)
        parts.append(f'<text x="{x + shift:.1f}" y="{y - 7:.1f}" text-anchor="{anchor}">{escape(point.label)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(title)}</text>')
    parts.append(f'<text x="{_LEFT}" y="16">{escape(panel.caption)}</text>')
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Low and high with a margin; never empty."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.15 * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - margin, high + margin
