"""Drawings of animals and toy animals: each takes an empty drawing and five proportions in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miniature.drawing import BODY, CREAM, INK, Drawing, band, box, ellipse, line, rounded, smooth

Proportions = Sequence[float]


def between(low: float, high: float, proportion: float) -> float:
    """The value a proportion in [0, 1] stands for."""
    return low + (high - low) * proportion


def cat(d: Drawing, p: Proportions) -> None:
    """Sits and looks at you: pointed ears, whiskers, a tail that curls up at its side."""
    head, ear, tail, hip = between(18, 28, p[1]), between(12, 24, p[2]), between(24, 62, p[3]), between(22, 33, p[4])
    d.add(band(smooth([(8, -8), (hip + 10, -6), (hip + 20, -tail * 0.5), (hip + 12, -tail)], False), 10, 8), BODY)
    d.add(
        smooth([(0, -62), (16, -48), (hip, -16), (hip - 4, -1), (0, 0), (4 - hip, -1), (-hip, -16), (-16, -48)]), BODY
    )
    d.add(ellipse(0, -26, 11, 15), 2, outlined=False, shaded=False)
    for side in (-1, 1):
        d.add(ellipse(side * 9, -4, 8, 5), 1, shaded=False)
    cy = -50 - head * 0.72
    for side in (-1, 1):
        tip = (side * head * 0.92, cy - head * 0.55 - ear)
        d.add(rounded([(side * head * 1.0, cy), tip, (side * head * 0.12, cy - head * 0.7)], 5), BODY)
        inner = [(side * head * 0.85, cy - head * 0.45), (side * head * 0.85, cy - head * 0.55 - ear * 0.7)]
        d.mark(np.array([*inner, (side * head * 0.4, cy - head * 0.75)]), 1)
    d.add(ellipse(0, cy, head * 1.16, head * 0.92), BODY)
    d.add(ellipse(0, cy + head * 0.4, head * 0.5, head * 0.33), CREAM, outlined=False, shaded=False)
    for side in (-1, 1):
        d.add(ellipse(side * head * 0.5, cy - head * 0.05, head * 0.23, head * 0.25, count=16), CREAM, shaded=False)
        d.mark(ellipse(side * head * 0.5, cy - head * 0.05, head * 0.1, head * 0.2, count=12), INK)
        for tilt in (-4, 5):
            d.mark(line(side * head * 0.5, cy + head * 0.4, side * head * 1.45, cy + head * 0.36 + tilt, 1.6), INK)
    d.mark(np.array([(-4, cy + head * 0.2), (4, cy + head * 0.2), (0, cy + head * 0.4)]), INK)
    d.stretch(between(0.86, 1.16, p[0]))
    d.top, d.front, d.neck, d.unit = (0, cy - head * 0.8), (0, -24), (0, -50, 20), 9


def dog(d: Drawing, p: Proportions) -> None:
    """Stands in side view, facing left: four legs, a long muzzle, a hanging ear, a raised tail."""
    leg, ear, nose, tail = between(18, 38, p[1]), between(16, 34, p[2]), between(16, 32, p[3]), between(20, 42, p[4])
    long = between(32, 46, p[0])
    top = -leg - 34
    d.add(band(smooth([(long - 6, top + 8), (long + 10, top - 4), (long + 10, top - tail)], False), 9, 6), BODY)
    for x in (-long + 18, long - 14):  # the far legs
        d.add(box(x, -leg - 12, x + 12, -3, 5), 1)
    d.add(
        smooth(
            [
                (-long, top + 4),
                (0, top + 2),
                (long - 4, top),
                (long + 2, top + 20),
                (long - 10, -leg),
                (0, -leg - 4),
                (-long + 4, -leg + 2),
                (-long - 6, top + 20),
            ]
        ),
        BODY,
    )
    for x in (-long + 2, long - 14):
        d.add(rounded([(x - 6, -leg - 14), (x + 14, -leg - 14), (x + 11, 0), (x - 3, 0)], 7), BODY)
        d.add(box(x - 7, -8, x + 12, 0, 4), 1, shaded=False)
    hx, hy = -long - 4, top - 14
    d.add(rounded([(hx + 14, hy + 34), (hx - 12, hy + 10), (hx + 6, hy - 8), (hx + 30, hy + 16)], 6), BODY)
    d.mark(np.array([(hx + 2, hy + 25), (hx + 27, hy + 7), (hx + 32, hy + 14), (hx + 8, hy + 32)]), 2)
    d.add(ellipse(hx - 14 - nose / 2, hy + 5, nose / 2 + 9, 12), BODY)
    d.add(ellipse(hx, hy, 20, 18), BODY)
    d.add(ellipse(hx - 20 - nose, hy, 5.5, 5, count=16), INK, shaded=False)
    d.mark(line(hx - 18 - nose, hy + 9, hx - 14, hy + 10, 2), INK)
    d.eye(hx - 9, hy - 5, 4)
    d.add(ellipse(hx + 12, hy - 6 + ear / 2, 8.5, ear / 2 + 4, angle=-14), 1)
    d.top, d.front, d.neck, d.unit = (hx, hy - 16), (0, top + 17), (hx + 11, hy + 22, 15), 9


def rabbit(d: Drawing, p: Proportions) -> None:
    """Crouches in side view, facing left: two long upright ears, a round haunch, a ball of a tail."""
    ear, head, lean, tail = between(26, 54, p[1]), between(15, 21, p[2]), between(-14, 30, p[3]), between(7, 13, p[4])
    back = between(30, 42, p[0])
    d.add(ellipse(back + 2, -16, tail, tail), CREAM)
    hx, hy = -back + 4, -50
    for offset, fill in ((8, 1), (0, BODY)):
        ex, ey = hx + offset, hy - head * 0.5
        d.add(_leaf(ex, ey, ear + 10, 8, lean + offset), fill)
    d.mark(_leaf(hx, hy - head * 0.5, ear + 2, 4, lean), 2)
    d.add(
        smooth(
            [
                (-back + 8, -44),
                (0, -48),
                (back - 4, -34),
                (back + 3, -12),
                (back - 8, 0),
                (0, 0),
                (-back + 2, 0),
                (-back - 2, -18),
            ]
        ),
        BODY,
    )
    d.add(ellipse(back - 16, -17, 17, 16), BODY)
    d.add(ellipse(back - 20, -4, 16, 5), 1, shaded=False)
    d.add(ellipse(-back + 2, -4, 11, 5), 1, shaded=False)
    d.add(ellipse(hx, hy, head * 1.15, head), BODY)
    d.add(ellipse(hx - head * 0.75, hy + head * 0.3, head * 0.42, head * 0.38), CREAM, outlined=False, shaded=False)
    d.mark(ellipse(hx - head * 1.08, hy + head * 0.12, 3, 2.5, count=10), INK)
    d.eye(hx - head * 0.35, hy - head * 0.15, head * 0.2)
    d.top, d.front, d.neck, d.unit = (hx - 4, hy - head * 0.9), (4, -28), (hx + 5, hy + head * 0.85, 15), 8


def _leaf(x: float, y: float, length: float, half: float, lean: float) -> np.ndarray:
    """A long rounded ear that grows upwards from (x, y) and leans to the right by degrees."""
    sin, cos = np.sin(np.radians(lean)), np.cos(np.radians(lean))
    outline = [
        (0, 0),
        (half * 0.8, 0.3),
        (half, 0.7),
        (half * 0.4, 0.97),
        (0, 1),
        (-half * 0.4, 0.97),
        (-half, 0.7),
        (-half * 0.8, 0.3),
    ]
    return smooth([(x + a * cos + b * length * sin, y + a * sin - b * length * cos) for a, b in outline])


def turtle(d: Drawing, p: Proportions) -> None:
    """Walks in side view, facing left: a patterned dome, a small raised head, short legs."""
    dome, head, neck, leg = between(42, 70, p[1]), between(12, 18, p[2]), between(8, 26, p[3]), between(9, 20, p[4])
    half = between(40, 52, p[0])
    rim = -leg - 2
    d.add(rounded([(half - 8, rim - 6), (half + 16, rim + 4), (half - 8, rim + 6)], 3), 1)
    hx, hy = -half - neck * 0.55 - 4, rim - neck * 0.8 - 8
    d.add(band(smooth([(-half + 12, rim - 4), (-half - 4, rim - 6), (hx + 3, hy + 2)], False), 17, 13), 1)
    d.add(ellipse(hx - 3, hy, head * 1.2, head), 1)
    d.eye(hx - 6, hy - 3, 3.6)
    d.mark(line(hx - head * 1.1, hy + head * 0.45, hx - 2, hy + head * 0.5, 1.8), INK)
    for x in (-half + 14, half - 16):
        d.add(box(x - 9, rim - 6, x + 9, 0, 6), 1)
    d.add(
        smooth(
            [
                (-half, rim),
                (-half + 8, rim - dome * 0.6),
                (-half * 0.45, rim - dome * 0.93),
                (0, rim - dome),
                (half * 0.45, rim - dome * 0.93),
                (half - 8, rim - dome * 0.6),
                (half, rim),
            ]
        ),
        BODY,
    )
    d.add(box(-half - 5, rim - 6, half + 5, rim + 5, 5.5), 2)
    d.top, d.front, d.neck, d.unit = (0, rim - dome), (4, rim - dome * 0.5), (-half - 6, rim - 5, 10), 9


def stuffed_bear(d: Drawing, p: Proportions) -> None:
    """Sits with its arms and legs spread: round ears, a light muzzle, soles turned to you."""
    head, ear, arm, belly = between(19, 32, p[1]), between(7, 15, p[2]), between(10, 30, p[3]), between(10, 22, p[4])
    cy = -52 - head * 0.7
    for side in (-1, 1):
        d.add(ellipse(side * head * 0.82, cy - head * 0.72, ear, ear), BODY)
        d.add(ellipse(side * head * 0.82, cy - head * 0.72, ear * 0.55, ear * 0.55), 1, outlined=False, shaded=False)
        d.add(ellipse(side * (20 + arm * 0.6), -40, arm * 0.5 + 10, 9.5, angle=side * 28), BODY)
    d.add(ellipse(0, -30, 29, 30), BODY)
    d.add(ellipse(0, -27, belly, belly * 1.05), 2, shaded=False)
    for side in (-1, 1):
        d.add(ellipse(side * 29, -12, 16, 12.5, angle=-side * 20), BODY)
        d.add(ellipse(side * 32, -12, 9, 8.5), 1, outlined=False, shaded=False)
    d.add(ellipse(0, cy, head * 1.12, head), BODY)
    d.add(ellipse(0, cy + head * 0.4, head * 0.52, head * 0.4), CREAM, shaded=False)
    d.mark(ellipse(0, cy + head * 0.22, head * 0.2, head * 0.14, count=14), INK)
    d.mark(line(0, cy + head * 0.25, 0, cy + head * 0.55, 2), INK)
    for side in (-1, 1):
        d.eye(side * head * 0.45, cy - head * 0.12, head * 0.14)
    d.stretch(between(0.86, 1.14, p[0]))
    d.top, d.front, d.neck, d.unit = (0, cy - head * 0.85), (0, -26), (0, -51, 22), 9


def duck(d: Drawing, p: Proportions) -> None:
    """A bath duck facing left: a boat-shaped body, a raised tail, a round head with a flat bill."""
    head, bill, tail, wing = between(19, 27, p[1]), between(13, 26, p[2]), between(38, 62, p[3]), between(14, 23, p[4])
    half = between(42, 52, p[0])
    d.add(
        smooth(
            [
                (-half + 4, -34),
                (-8, -36),
                (half * 0.5, -34),
                (half + 8, -tail),
                (half + 4, -20),
                (half * 0.6, -2),
                (0, 0),
                (-half * 0.7, -3),
                (-half - 3, -18),
            ]
        ),
        BODY,
    )
    hx, hy = -half * 0.5, -38 - head * 0.75
    d.add(
        smooth(
            [
                (hx - head, hy + 4),
                (hx - head - bill, hy + 4),
                (hx - head - bill, hy + 11),
                (hx - head * 0.5, hy + 13),
                (hx - head * 0.4, hy + 4),
            ]
        ),
        2,
    )
    d.add(ellipse(hx, hy, head * 1.02, head), BODY)
    d.eye(hx - head * 0.42, hy - head * 0.2, head * 0.17)
    wx = half * 0.22
    d.add(
        smooth(
            [(wx - wing, -26), (wx, -30), (wx + wing * 1.5, -34), (wx + wing, -18), (wx, -10), (wx - wing * 0.8, -14)]
        ),
        1,
    )
    d.top, d.front, d.neck, d.unit = (hx, hy - head * 0.9), (wx, -20), (hx + 1, hy + head * 0.88, head * 0.85), 8.5
