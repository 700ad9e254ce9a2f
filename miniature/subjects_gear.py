"""Drawings of shoes, vehicles, instruments and the like: each takes an empty drawing and five proportions in [0, 1]."""

from __future__ import annotations

import numpy as np

from miniature.drawing import (
    BODY,
    CREAM,
    GLASS,
    INK,
    STEEL,
    TYRE,
    WHITE,
    Drawing,
    band,
    box,
    ellipse,
    line,
    rounded,
    smooth,
)
from miniature.subjects_animals import Proportions, between


def sneaker(d: Drawing, p: Proportions) -> None:
    """A low sports shoe, toe to the left: thick sole, toe cap, laces, a heel tab."""
    sole, ankle, toe, cap = between(9, 20, p[1]), between(36, 54, p[2]), between(20, 36, p[3]), between(12, 26, p[4])
    length = between(52, 64, p[0])
    base = -sole + 4
    d.add(
        smooth(
            [
                (-length + 2, base - 12),
                (-length + toe, base - 22),
                (-10, base - 34),
                (6, base - ankle),
                (22, base - ankle + 7),
                (38, base - ankle - 4),
                (46, base - ankle + 8),
                (48, base - 14),
                (45, base + 3),
                (-length + 8, base + 3),
            ]
        ),
        BODY,
    )
    d.add(
        smooth(
            [
                (-length + 2, base - 11),
                (-length + 4 + cap * 0.7, base - 20),
                (-length + 4 + cap, base - 9),
                (-length + 2 + cap, base + 2),
                (-length + 8, base + 2),
            ]
        ),
        2,
    )
    d.add(rounded([(36, base - ankle * 0.75), (48, base - ankle * 0.75), (50, base), (36, base)], 4), 2)
    for i in range(3):
        x, y = -length + toe + 8 + i * 12, base - 21 - i * (ankle - 30) * 0.4 - i * 4
        d.mark(line(x - 2, y - 4, x + 10, y + 7, 5), WHITE)
    d.add(rounded([(-length - 4, -sole), (52, -sole), (50, 0), (-length, 0)], 6), 1)
    d.top, d.front, d.neck, d.unit = (4, base - ankle + 3), (20, base - 17), (26, base - ankle + 13, 18), 8


def boot(d: Drawing, p: Proportions) -> None:
    """A tall boot, toe to the left: straight shaft, cuff, sole and heel."""
    shaft, sole, cuff, heel = between(60, 96, p[1]), between(3, 9, p[2]), between(10, 26, p[3]), between(3, 9, p[4])
    wide = between(17, 24, p[0])
    base = -heel
    top = base - shaft
    d.add(
        smooth(
            [
                (-6, top),
                (wide * 2 - 2, top),
                (wide * 2 - 3, base - 36),
                (wide + 22, base - 14),
                (wide + 18, base - 1),
                (0, base),
                (-36, base),
                (-42, base - 12),
                (-32, base - 23),
                (-8, base - 32),
                (-5, base - 50),
            ]
        ),
        BODY,
    )
    d.add(
        rounded(
            [
                (-45, base - sole),
                (wide + 24, base - sole),
                (wide + 24, 0),
                (6, 0),
                (3, base),
                (-9, base),
                (-14, 0),
                (-42, 0),
            ],
            3,
        ),
        2,
    )
    d.add(rounded([(-10, top - 4), (wide * 2 + 3, top - 4), (wide * 2 + 2, top + cuff), (-9, top + cuff)], 5), 1)
    d.add(box(wide - 6, top - 12, wide + 2, top - 2, 4), 1, shaded=False)
    cx = wide - 3.5
    d.top, d.front, d.neck, d.unit = (cx, top - 4), (cx, top + cuff + 18), (cx, base - 34, wide), 8.5


def sunglasses(d: Drawing, p: Proportions) -> None:
    """Seen from the front: two large lenses with a glare, a bridge, folded temples above."""
    tall, corner, rim, lift = between(40, 64, p[1]), between(6, 26, p[2]), between(5, 9, p[3]), between(-6, 12, p[4])
    wide = between(48, 60, p[0])
    top = -tall
    d.add(band(smooth([(-8, top + 14), (0, top + 8), (8, top + 14)], False), 8), 2)
    for s in (-1, 1):
        d.add(
            rounded(
                [
                    (s * (wide + 4), top + 2 - lift),
                    (s * (wide + 14), top + 2 - lift),
                    (s * (wide + 13), top + 17),
                    (s * (wide - 2), top + 17),
                ],
                4,
            ),
            1,
        )
        outer = [
            (s * 5, top + 2),
            (s * (wide + 8), top - lift),
            (s * (wide + 2), -tall * 0.3),
            (s * (wide - 8), 0),
            (s * 14, 0),
            (s * 6, -tall * 0.3),
        ]
        d.add(rounded(outer, corner), 2)
        centre = np.array([s * (wide + 5) / 2, top / 2 - lift * 0.2])
        inner = (np.array(outer) - centre) * (1 - rim * 2 / wide, 1 - rim * 2 / tall) + centre
        d.add(rounded([(float(x), float(y)) for x, y in inner], corner * 0.75), BODY)
        x, y = float(centre[0]), float(centre[1])
        d.mark(np.array([(x - 15, y - 1), (x - 7, y - 12), (x - 2, y - 12), (x - 10, y - 1)]), WHITE)
    d.top, d.front, d.neck, d.unit = (0, top + 8), (wide * 0.7, top * 0.45), (0, top + 14, 10), 8


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


def umbrella(d: Drawing, p: Proportions) -> None:
    """An open umbrella: a scalloped dome over a stick with a hooked handle."""
    dome, stick, hook, scallop = (
        between(34, 60, p[1]),
        between(34, 60, p[2]),
        between(8, 14, p[3]),
        between(5, 13, p[4]),
    )
    half = between(48, 60, p[0])
    rim = -stick - 6
    d.add(line(0, rim - dome, 0, rim - dome - 9, 4), 2)
    turn = np.linspace(0, np.pi, 9)
    path = np.concatenate(
        [[(0.0, rim - 6), (0.0, -hook - 8)], np.stack([hook - hook * np.cos(turn), -hook - 3 + hook * np.sin(turn)], 1)]
    )
    d.add(band(path, 6), 2)
    t = np.linspace(np.pi, 0, 20)
    arch = np.stack([half * np.cos(t), rim - dome * np.sin(t)], axis=1)
    x = np.linspace(half, -half, 33)
    hem = np.stack([x, rim - scallop * np.abs(np.sin(np.linspace(0, 4 * np.pi, 33)))], axis=1)
    d.add(np.concatenate([arch, hem]), BODY)
    for s in (-1, 1):
        rib = smooth([(0, rim - dome), (s * half * 0.36, rim - dome * 0.62), (s * half * 0.5, rim)], closed=False)
        d.mark(band(rib, 1.8), INK)
    d.top, d.front, d.neck, d.unit = (0, rim - dome - 6), (0, rim - dome * 0.55), (0, rim + 14, 9), 9


def guitar(d: Drawing, p: Proportions) -> None:
    """An upright guitar: waisted body, sound hole, long neck with frets, a head with pegs."""
    lower, upper, neck, hole = between(32, 44, p[1]), between(22, 34, p[2]), between(24, 48, p[3]), between(7, 13, p[4])
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
