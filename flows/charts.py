"""Charts as inline SVG for the report; colours come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 124, 14, 34


@dataclass(frozen=True)
class Line:
    """A curve: its label, its points (x, y), and its style, a class of the page ("right", "wrong", "none", "pale").

    `marks` are short texts that stand at the points, one each; without them the points are not shown.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str
    marks: Sequence[str] = ()


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """An SVG of curves over common axes, each labelled at its end; an empty string where there is nothing to draw."""
    points = [point for line in lines for point in line.points if all(map(math.isfinite, point))]
    if not points:
        return ""
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range([y for _, y in points])
    y_ticks = _ticks(y_low, y_high, 5)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick, y_ticks)}</text>')
    x_ticks = [tick for tick in _ticks(x_low, x_high, 6) if x_low <= tick <= x_high]
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        text = _number(tick, x_ticks)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    ends: list[float] = []
    for line in sorted(lines, key=lambda line: -line.points[-1][1] if line.points else 0):
        finite = [place(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
        if not finite:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in finite)
        parts.append(f'<polyline class="{line.style}" points="{path}"><title>{escape(line.label)}</title></polyline>')
        for (x, y), mark in zip(finite, line.marks, strict=False):
            parts.append(f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
            parts.append(f'<text class="{line.style}" x="{x:.1f}" y="{y - 7:.1f}">{escape(mark)}</text>')
        if line.label:
            x, y = finite[-1]
            y = max([y, *(end + 14 for end in ends)])  # labels of curves that end together are set apart
            ends.append(y)
            parts.append(f'<text class="{line.style}" x="{x + 6:.1f}" y="{y + 4:.1f}">{escape(line.label)}</text>')
    return "".join([*parts, "</svg>"])


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at every place."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.floor(low / step)
    return [step * tick for tick in range(first, math.ceil(high / step) + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
