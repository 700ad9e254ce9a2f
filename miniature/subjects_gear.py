"""Drawings of machines and instruments: each takes an empty drawing and five proportions in [0, 1]."""

from __future__ import annotations

import numpy as np

from miniature.drawing import (
    BODY,
    CREAM,
    GLASS,
    INK,
    STEEL,
    TYRE,
    Drawing,
    band,
    box,
    ellipse,
    line,
    rounded,
    smooth,
)
from miniature.subjects_animals import Proportions, between


def car(d: Drawing, p: Proportions) -> None:
    """A small car in side view, bonnet to the left: cabin with two windows, two wheels, a lamp."""
    roof, wheel, cabin, body = (
        between(22, 36, p[1]),
        between(11, 17, p[2]),
        between(-12, 10, p[3]),
        between(24, 36, p[4]),
    )
    half = between(54, 66, p[0])
    low, belt = -wheel * 0.8, -wheel * 0.8 - body
    d.add(
        rounded(
            [(cabin - 30, belt + 5), (cabin - 16, belt - roof), (cabin + 24, belt - roof), (cabin + 40, belt + 5)], 12
        ),
        BODY,
    )
    d.add(
        rounded(
            [
                (cabin - 20, belt - 1),
                (cabin - 11, belt - roof + 6),
                (cabin + 3, belt - roof + 6),
                (cabin + 3, belt - 1),
            ],
            4,
        ),
        GLASS,
    )
    d.add(
        rounded(
            [
                (cabin + 9, belt - 1),
                (cabin + 9, belt - roof + 6),
                (cabin + 21, belt - roof + 6),
                (cabin + 31, belt - 1),
            ],
            4,
        ),
        GLASS,
    )
    d.add(
        rounded(
            [(-half, low), (-half + 2, belt + 7), (-half + 18, belt), (half - 8, belt), (half, belt + 8), (half, low)],
            10,
        ),
        BODY,
    )
    d.add(box(-half - 4, low - 7, half + 4, low, 3), 1)
    d.add(ellipse(-half + 5, belt + 13, 5, 6, count=18), CREAM, shaded=False)
    d.add(box(half - 6, belt + 8, half + 1, belt + 17, 3), 2, shaded=False)
    for x in (-half + 25, half - 25):
        d.add(ellipse(x, -wheel, wheel, wheel), TYRE)
        d.add(ellipse(x, -wheel, wheel * 0.52, wheel * 0.52, count=20), 2)
    d.top, d.front, d.neck, d.unit = (cabin + 4, belt - roof), (4, (belt + low) / 2 - 2), (cabin + 4, belt + 4, 30), 9


def robot(d: Drawing, p: Proportions) -> None:
    """A boxy toy robot from the front: antenna, square head, jointed arms, two legs."""
    head, torso, arm, antenna = (
        between(18, 29, p[1]),
        between(36, 54, p[2]),
        between(22, 44, p[3]),
        between(8, 24, p[4]),
    )
    half = between(23, 33, p[0])
    leg = 22.0
    low, top = -leg, -leg - torso
    hy = top - 6
    d.add(line(0, hy - 28, 0, hy - 32 - antenna, 4), STEEL, shaded=False)
    d.add(ellipse(0, hy - 33 - antenna, 6, 6, count=18), 2)
    for s in (-1, 1):
        d.add(box(s * 13 - 7, low - 4, s * 13 + 7, -3, 3), STEEL)
        d.add(box(s * 14 - 12, -9, s * 14 + 12, 0, 4), 1)
        d.add(
            band(
                np.array([(s * (half - 2), top + 10), (s * (half + 12), top + 14), (s * (half + 14), top + 12 + arm)]),
                9,
            ),
            STEEL,
        )
        d.add(ellipse(s * (half + 14), top + 14 + arm, 8.5, 8.5, count=20), 1)
        d.add(box(s * head - 4, hy - 20, s * head + 4, hy - 8, 3), 2)
    d.add(box(-6, hy - 4, 6, top + 4), STEEL, shaded=False)
    d.add(box(-half, top, half, low, 7), BODY)
    d.add(box(-head, hy - 30, head, hy, 7), BODY)
    for s in (-1, 1):
        d.add(ellipse(s * head * 0.45, hy - 19, 6, 6, count=18), CREAM, shaded=False)
        d.mark(ellipse(s * head * 0.45, hy - 19, 2.6, 2.6, count=10), INK)
    d.add(box(-head * 0.5, hy - 10, head * 0.5, hy - 5, 2), CREAM, shaded=False)
    d.top, d.front, d.neck, d.unit = (0, hy - 30), (0, (top + low) / 2), (0, top + 1, half * 0.85), 9


def guitar(d: Drawing, p: Proportions) -> None:
    """An upright guitar: waisted body, sound hole, long neck with frets, a head with pegs."""
    lower, upper, neck, hole = between(28, 46, p[1]), between(18, 36, p[2]), between(20, 54, p[3]), between(5, 14, p[4])
    waist = between(15, 23, p[0])
    d.add(
        smooth(
            [
                (0, 0),
                (lower * 0.75, -4),
                (lower, -24),
                (waist, -46),
                (upper, -64),
                (upper * 0.6, -80),
                (0, -80),
                (-upper * 0.6, -80),
                (-upper, -64),
                (-waist, -46),
                (-lower, -24),
                (-lower * 0.75, -4),
            ]
        ),
        BODY,
    )
    d.add(ellipse(0, -46, hole, hole, count=24), INK, outlined=False, shaded=False)
    d.add(box(-14, -22, 14, -15, 3), 2)
    top = -76 - neck
    for s in (-1, 1):
        for y in (top - 6, top - 16):
            d.add(ellipse(s * 12, y, 4.5, 3.2, count=12), STEEL, shaded=False)
    d.add(box(-5.5, top, 5.5, -52, 2), 1)
    for i in range(4):
        y = top + 8 + i * (neck - 4) / 4
        d.mark(line(-4, y, 4, y, 1.6), CREAM)
    d.add(rounded([(-10, top - 22), (10, top - 22), (7, top + 3), (-7, top + 3)], 4), 2)
    d.mark(line(-1.8, -18, -1.8, top, 1.2), CREAM)
    d.mark(line(1.8, -18, 1.8, top, 1.2), CREAM)
    d.top, d.front, d.neck, d.unit = (0, top - 21), (0, -66), (0, -78, 12), 8.5
