"""A study of ablations as one picture: every line's differences from its table's default, with intervals, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dreamcache.dreambooth.findings import shown
from flows.score_tables import METRIC_NAMES

SHOWN = ("dino", "clip_i", "clip_t")
LABELS, PANEL, GAP, LINE, TOP = 232, 190, 26, 20, 56
# Of a picture that stands alone, such as in a README, by day and by night.
STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff } text { fill: #1f2328 } .soft { fill: #6e7781 }
.title { font-weight: 600 } .axis { stroke: #d0d7de } .none { stroke: #8c959f; fill: #8c959f }
.up { stroke: #0969da; fill: #0969da } .down { stroke: #bc4c00; fill: #bc4c00 }
.paper { fill: none; stroke: #6e7781; stroke-width: 1.2 }
@media (prefers-color-scheme: dark) {
svg { background: #0d1117 } text { fill: #e6edf3 } .soft { fill: #8d96a0 } .axis { stroke: #30363d }
.up { stroke: #4493f8; fill: #4493f8 } .down { stroke: #f0883e; fill: #f0883e } }
"""


def ablation_chart(tables: Sequence[Mapping[str, Any]]) -> str:
    """The tables of `tables.json` as an SVG: a line each, a panel a metric, the paper's differences as diamonds.

    A difference is blue where it is shown to lie above 0, orange where below, else grey.
    """
    lines = [line for table in tables for line in table["lines"] if line["scores"]]
    height = TOP + LINE * (len(lines) + 2 * len(tables)) + 8
    width = LABELS + len(SHOWN) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>Ablations: differences from the default</title><style>{STYLE}</style>",
    ]
    for number, text in enumerate(("differences from the default,", "95% intervals; ◇ the paper's")):
        parts.append(f'<text class="soft" x="8" y="{18 * (number + 1)}">{text}</text>')
    reaches = {metric: _reach(tables, metric) for metric in SHOWN}
    for number, metric in enumerate(SHOWN):
        middle = _middle(number)
        parts.append(f'<text class="title" x="{middle}" y="18" text-anchor="middle">{METRIC_NAMES[metric]}</text>')
        ends = (f"-{reaches[metric]:.2f}", "default", f"+{reaches[metric]:.2f}")
        for side, text, anchor in zip((-1, 0, 1), ends, ("start", "middle", "end"), strict=True):
            x = middle + side * PANEL / 2
            parts.append(f'<text class="soft" x="{x}" y="36" text-anchor="{anchor}">{text}</text>')
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="42" y2="{height - 8}"/>')
    y = TOP
    for table in tables:
        y += LINE
        parts.append(f'<text class="title" x="8" y="{y}">{escape(table["title"])}</text>')
        y += LINE
        for line in table["lines"]:
            if line["scores"]:
                parts.append(f'<text x="20" y="{y}">{escape(line["label"])}</text>')
                for number, metric in enumerate(SHOWN):
                    parts += _entry(table, line, metric, _middle(number), PANEL / 2 / reaches[metric], y - 4)
                y += LINE
    return "\n".join([*parts, "</svg>", ""])


def _entry(
    table: Mapping[str, Any], line: Mapping[str, Any], metric: str, middle: float, scale: float, y: float
) -> list[str]:
    """One line's marks in one panel: the default's own score, or a difference with its interval and the paper's."""
    if line["name"] == table["baseline"]:
        score = line["scores"][metric]["mean"]
        return [f'<text class="soft" x="{middle + 6}" y="{y + 4}">{score:.3f}</text>']
    found, parts = line["difference"].get(metric), []
    if found and found["low"] is not None:
        style = {1: "up", -1: "down", 0: "none"}[shown(found)]
        low, mean, high = (middle + scale * found[bound] for bound in ("low", "mean", "high"))
        parts.append(f'<line class="{style}" stroke-width="2" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{style}" cx="{mean:.1f}" cy="{y}" r="4"/>')
    published = _published(table, line, metric)
    if published is not None:
        x = middle + scale * published
        parts.append(f'<path class="paper" d="M{x - 5:.1f} {y} l5 -5 l5 5 l-5 5 z"/>')
    return parts


def _middle(number: int) -> float:
    return LABELS + number * (PANEL + GAP) + PANEL / 2 + GAP / 2


def _published(table: Mapping[str, Any], line: Mapping[str, Any], metric: str) -> float | None:
    """How far the paper's score of a line is from its score of the table's default, or None where it has none."""
    default = next(one for one in table["lines"] if one["name"] == table["baseline"])
    scores = [one["paper"].get(metric) for one in (line, default)]
    return None if None in scores else scores[0] - scores[1]


def _reach(tables: Sequence[Mapping[str, Any]], metric: str) -> float:
    """What a panel shows on either side of 0: the widest interval and the paper's differences, to whole hundredths."""
    seen = [0.01]
    for table in tables:
        for line in table["lines"]:
            if line["scores"]:
                found = line["difference"].get(metric, {})
                bounds = (found.get("low"), found.get("high"), _published(table, line, metric))
                seen += [abs(one) for one in bounds if one is not None]
    return -int(-100 * max(seen) // 1) / 100
