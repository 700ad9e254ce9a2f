"""Drawings of household things: each takes an empty drawing and five proportions in [0, 1]."""

from __future__ import annotations

import numpy as np

from miniature.drawing import BODY, CREAM, INK, STEEL, Drawing, band, box, ellipse, line, profile, rounded, smooth
from miniature.subjects_animals import Proportions, between


def bowl(d: Drawing, p: Proportions) -> None:
    """A wide open bowl on a foot, with something heaped in it."""
    deep, foot, rim, heap = between(34, 56, p[1]), between(14, 28, p[2]), between(7, 15, p[3]), between(0, 26, p[4])
    half = between(48, 60, p[0])
    d.add(box(-foot, -8, foot, 0, 3), 1)
    d.add(
        smooth(
            [
                (-half, -deep - 4),
                (-half + 5, -deep * 0.62),
                (-half * 0.55, -12),
                (0, -5),
                (half * 0.55, -12),
                (half - 5, -deep * 0.62),
                (half, -deep - 4),
            ]
        ),
        BODY,
    )
    d.add(ellipse(0, -deep - 4, half, rim), 1)
    if heap > 5:
        top = -deep - 4 - heap
        d.add(
            smooth(
                [
                    (-half * 0.78, -deep - 2),
                    (-half * 0.42, top + heap * 0.25),
                    (0, top),
                    (half * 0.42, top + heap * 0.25),
                    (half * 0.78, -deep - 2),
                    (0, -deep + rim * 0.5),
                ]
            ),
            2,
        )
    d.top, d.front, d.neck, d.unit = (0, -deep - 4 - heap), (0, -deep * 0.5), (0, -deep * 0.85 + 4, half - 4), 8.5


def can(d: Drawing, p: Proportions) -> None:
    """A drinks can: steel ends, a ring-pull, a printed wall with a coloured band."""
    tall, lid, where, wide = (
        between(70, 104, p[1]),
        between(5, 10, p[2]),
        between(0.1, 0.75, p[3]),
        between(8, 22, p[4]),
    )
    half = between(23, 33, p[0])
    d.add(box(-half + 4, -12, half - 4, 0, 4), STEEL)
    d.add(
        rounded(
            [
                (-half + 5, -tall - 2),
                (half - 5, -tall - 2),
                (half, -tall + 10),
                (half, -9),
                (half - 5, -3),
                (-half + 5, -3),
                (-half, -9),
                (-half, -tall + 10),
            ],
            4,
        ),
        BODY,
    )
    y = -tall + 14 + where * (tall - 26 - wide)
    d.add(rounded([(-half, y), (0, y + 5), (half, y), (half, y + wide), (0, y + wide + 5), (-half, y + wide)], 4), 2)
    d.add(ellipse(0, -tall - 1, half - 5, lid), STEEL)
    d.add(ellipse(2, -tall - 2, lid * 1.1, lid * 0.4, count=18), 1, shaded=False)
    d.top, d.front, d.neck, d.unit = (0, -tall - lid), (0, -tall * 0.5), (0, -tall + 14, half), 8.5


def candle(d: Drawing, p: Proportions) -> None:
    """A burning candle in a dish with a ring handle."""
    tall, thick, flame, dish = (
        between(44, 80, p[1]),
        between(15, 26, p[2]),
        between(20, 34, p[3]),
        between(32, 44, p[4]),
    )
    d.add(band(ellipse(dish + 6, -12, 10, 9)[:-2], 5), 1)
    top = -tall - 10
    d.add(line(0, top - 1, 0, top - 10, 3), INK, outlined=False, shaded=False)
    fy = top - 6 - flame * 0.5
    d.add(
        smooth(
            [
                (0, fy - flame * 0.75),
                (flame * 0.3, fy - 1),
                (flame * 0.26, fy + flame * 0.36),
                (0, fy + flame * 0.5),
                (-flame * 0.26, fy + flame * 0.36),
                (-flame * 0.3, fy - 1),
            ]
        ),
        (255, 178, 56),
        shaded=False,
    )
    d.mark(ellipse(0, fy + flame * 0.18, flame * 0.14, flame * 0.25, count=16), (255, 244, 190))
    d.add(box(-thick, top, thick, -6, 5), BODY)
    d.add(ellipse(0, top + 1, thick, thick * 0.28), CREAM)
    d.add(
        smooth(
            [(thick, top + 2), (thick + 3, top + 14), (thick - 3, top + 20), (thick - 7, top + 8), (thick - 8, top + 3)]
        ),
        CREAM,
        shaded=False,
    )
    d.add(rounded([(-dish, -15), (dish, -15), (dish * 0.7, 0), (-dish * 0.7, 0)], 6), 1)
    d.add(box(-dish - 3, -17, dish + 3, -11, 3), 2, shaded=False)
    d.stretch(between(0.85, 1.15, p[0]))
    d.top, d.front, d.neck, d.unit = (4 - dish, -16), (0, -tall * 0.5 - 6), (0, top + 24, thick), 8.5


def clock(d: Drawing, p: Proportions) -> None:
    """An alarm clock: two bells, a round patterned case, a light face with hands, two feet."""
    face, bell, hour, foot = between(21, 29, p[1]), between(9, 16, p[2]), between(-150, 150, p[3]), between(6, 15, p[4])
    cy = -foot - 36
    for side in (-1, 1):
        d.add(line(side * 22, cy + 26, side * 32, -3, 8), 2)
        d.add(ellipse(side * 24, cy - 38, bell * 1.15, bell * 0.85, angle=side * 32), 1)
    d.add(line(0, cy - 36, 0, cy - 47, 5), 2)
    d.add(ellipse(0, cy, 41, 41, count=48), BODY)
    d.add(ellipse(0, cy, face, face), CREAM)
    for turn in np.arange(4) * np.pi / 2:
        x, y = np.cos(turn) * (face - 5), cy + np.sin(turn) * (face - 5)
        d.mark(ellipse(float(x), float(y), 2.2, 2.2, count=10), INK)
    angle = np.radians(hour - 90)
    d.mark(line(0, cy, float(np.cos(angle) * face * 0.55), cy + float(np.sin(angle) * face * 0.55), 4.5), INK)
    d.mark(line(0, cy, 0, cy - face * 0.75, 3.5), 2)
    d.stretch(between(0.88, 1.2, p[0]))
    d.top, d.front, d.neck, d.unit = (0, cy - 46), (0, cy + 34), (0, cy + 37, 24), 8.5


def lamp(d: Drawing, p: Proportions) -> None:
    """A table lamp: a wide patterned shade, a thin stem, a round base."""
    shade, top, stem, base = between(36, 56, p[1]), between(14, 30, p[2]), between(24, 54, p[3]), between(18, 32, p[4])
    half = between(38, 50, p[0])
    d.add(line(0, -6, 0, -stem - 14, 7), 2)
    d.add(ellipse(0, -10 - stem * 0.4, 9, stem * 0.24), 1)
    d.add(smooth([(-base, -2), (-base * 0.5, -9), (0, -11), (base * 0.5, -9), (base, -2), (0, 0)]), 1)
    low = -stem - 8
    d.add(line(half * 0.5, low, half * 0.5, low + 12, 2.4), 2, shaded=False)
    d.add(rounded([(-top, low - shade), (top, low - shade), (half, low), (-half, low)], 4), BODY)
    d.add(box(-half, low - 5, half, low + 2, 3), 1, shaded=False)
    d.top, d.front, d.neck, d.unit = (0, low - shade), (0, low - shade * 0.5), (0, low - shade + 9, top + 4), 8.5


def teapot(d: Drawing, p: Proportions) -> None:
    """A round pot with its spout to the left, its handle to the right and a knobbed lid."""
    tall, spout, grip, lid = between(50, 76, p[1]), between(13, 27, p[2]), between(12, 23, p[3]), between(6, 18, p[4])
    half = between(36, 48, p[0])
    my = -tall * 0.5 - 4
    d.add(
        band(
            smooth(
                [
                    (half - 6, my - tall * 0.24),
                    (half + grip, my - tall * 0.3),
                    (half + grip, my + 4),
                    (half - 6, my + tall * 0.26),
                ],
                False,
            ),
            8,
        ),
        1,
    )
    d.add(
        band(
            smooth(
                [(-half + 8, my + tall * 0.25), (-half - spout * 0.55, my + 2), (-half - spout, my - tall * 0.42)],
                False,
            ),
            20,
            9,
        ),
        1,
    )
    d.add(box(-half * 0.5, -8, half * 0.5, 0, 3), 2)
    d.add(
        smooth(
            [
                (-half * 0.5, -tall - 2),
                (-half, my - 4),
                (-half * 0.85, my + tall * 0.3),
                (-half * 0.45, -4),
                (half * 0.45, -4),
                (half * 0.85, my + tall * 0.3),
                (half, my - 4),
                (half * 0.5, -tall - 2),
            ]
        ),
        BODY,
    )
    d.add(ellipse(0, -tall - 2 - lid - 5, 6, 5.5, count=20), 2)
    d.add(
        smooth(
            [
                (-half * 0.62, -tall),
                (-half * 0.4, -tall - lid * 0.8),
                (0, -tall - 2 - lid),
                (half * 0.4, -tall - lid * 0.8),
                (half * 0.62, -tall),
                (0, -tall + 3),
            ]
        ),
        1,
    )
    d.top, d.front, d.neck, d.unit = (0, -tall - lid - 10), (0, my), (0, -tall + 8, half * 0.72), 8.5


def vase(d: Drawing, p: Proportions) -> None:
    """A tall turned vase: lip, narrow neck, belly, foot."""
    neck, belly, lip, foot = between(8, 17, p[1]), between(26, 58, p[2]), between(16, 27, p[3]), between(12, 22, p[4])
    half = between(28, 40, p[0])
    tall = 108.0
    d.add(
        profile(
            [
                (lip * 0.9, -tall),
                (neck + 1, -tall + 14),
                (neck, -belly - 36),
                (half, -belly),
                (half * 0.8, -belly * 0.42),
                (foot, -4),
                (foot, -1),
            ]
        ),
        BODY,
    )
    d.add(ellipse(0, -tall, lip, 6), 1)
    d.add(ellipse(0, -tall, lip * 0.68, 3.2), INK, outlined=False, shaded=False)
    d.add(box(-neck - 3, -belly - 42, neck + 3, -belly - 33, 4), 2)
    d.add(box(-foot - 5, -8, foot + 5, 0, 4), 1)
    d.top, d.front, d.neck, d.unit = (0, -tall - 4), (0, -belly + 4), (0, -belly - 37, neck + 4), 9
