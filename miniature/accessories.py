"""Small accessories that fit any subject: each sits on top of it, on its front, or around its neck."""

from __future__ import annotations

import numpy as np

from miniature.drawing import CREAM, Colour, Drawing, band, box, ellipse, line, rounded, smooth

ACCESSORIES: tuple[str, ...] = ("none", "bow", "hat", "crown", "flag", "flower", "badge", "scarf")


def add_accessory(drawing: Drawing, accessory: str) -> None:
    """Add the named accessory to a finished drawing; ValueError if there is none of that name."""
    if accessory not in ACCESSORIES:
        raise ValueError(f"unknown accessory {accessory!r}; choose one of {', '.join(ACCESSORIES)}")
    x, y = drawing.top
    s = drawing.unit
    if accessory == "bow":
        for side in (-1, 1):
            wing = [(x, y - 0.3 * s), (x + side * 1.3 * s, y - 1.1 * s), (x + side * 1.3 * s, y + 0.6 * s)]
            drawing.add(rounded(wing, 0.4 * s), 2)
        drawing.add(ellipse(x, y - 0.25 * s, 0.42 * s, 0.45 * s, count=16), 2)
    elif accessory == "hat":
        drawing.add(box(x - 0.85 * s, y - 1.7 * s, x + 0.85 * s, y + 0.1 * s, 0.25 * s), 2)
        drawing.add(box(x - 0.85 * s, y - 0.5 * s, x + 0.85 * s, y, 0.0), 1, outlined=False, shaded=False)
        drawing.add(box(x - 1.5 * s, y - 0.1 * s, x + 1.5 * s, y + 0.4 * s, 0.25 * s), 2)
    elif accessory == "crown":
        corners = [(-1.2, 0.3), (-1.35, -1.3), (-0.65, -0.6), (0, -1.6), (0.65, -0.6), (1.35, -1.3), (1.2, 0.3)]
        drawing.add(np.array([(x + s * cx, y + s * cy) for cx, cy in corners]), 2)
    elif accessory == "flag":
        drawing.add(line(x, y + 0.3 * s, x, y - 2.6 * s, 0.3 * s), CREAM, shaded=False)
        drawing.add(np.array([(x, y - 2.7 * s), (x + 2.0 * s, y - 2.0 * s), (x, y - 1.2 * s)]), 2)
    elif accessory == "flower":
        _flower(drawing, x, y - 0.3 * s, 0.55 * s, 2)
    elif accessory == "badge":
        fx, fy = drawing.front
        _badge(drawing, fx, fy, 1.05 * s)
    elif accessory == "scarf":
        nx, ny, half = drawing.neck
        knot = nx + 0.45 * half
        path = smooth([(knot, ny + 0.2 * s), (knot + 0.25 * s, ny + 1.2 * s), (knot + 0.15 * s, ny + 2.3 * s)], False)
        drawing.add(band(path, 0.85 * s, 1.1 * s), 2)
        path = smooth([(nx - half, ny - 0.15 * s), (nx, ny + 0.35 * s), (nx + half, ny - 0.15 * s)], closed=False)
        drawing.add(band(path, 0.95 * s), 2)


def _flower(drawing: Drawing, x: float, y: float, r: float, fill: int | Colour) -> None:
    for turn in np.arange(5) * (2 * np.pi / 5) - np.pi / 2:
        petal = ellipse(x + 1.1 * r * np.cos(turn), y + 1.1 * r * np.sin(turn), 0.85 * r, 0.85 * r, count=14)
        drawing.add(petal, fill, shaded=False)
    drawing.add(ellipse(x, y, 0.75 * r, 0.75 * r, count=14), CREAM, shaded=False)


def _badge(drawing: Drawing, x: float, y: float, r: float) -> None:
    drawing.add(ellipse(x, y, r, r, count=24), 2)
    t = np.arange(10) * (np.pi / 5) - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 0.72, 0.32)[:, None] * r
    drawing.mark(np.array([x, y]) + radius * np.stack([np.cos(t), np.sin(t)], axis=1), CREAM)
