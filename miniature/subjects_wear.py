"""Drawings of what people wear and carry: each takes an empty drawing and five proportions in [0, 1]."""

from __future__ import annotations

import numpy as np

from miniature.drawing import (
    BODY,
    INK,
    WHITE,
    Drawing,
    band,
    box,
    line,
    rounded,
    smooth,
)
from miniature.subjects_animals import Proportions, between


def backpack(d: Drawing, p: Proportions) -> None:
    """Seen from the front: a carrying loop, shoulder straps, a front pocket, side pockets."""
    tall, pocket, flap, side = (
        between(70, 100, p[1]),
        between(24, 44, p[2]),
        between(20, 36, p[3]),
        between(6, 15, p[4]),
    )
    half = between(30, 40, p[0])
    d.add(band(smooth([(-10, -tall + 4), (-9, -tall - 9), (9, -tall - 9), (10, -tall + 4)], False), 5), 2)
    for s in (-1, 1):
        d.add(
            band(
                smooth([(s * (half - 8), -tall + 12), (s * (half + 9), -tall * 0.62), (s * (half + 2), -8)], False), 7
            ),
            2,
        )
        x0, x1 = sorted((s * (half - 4), s * (half + side)))
        d.add(box(x0, -tall * 0.4, x1, -3, 6), 1)
    d.add(rounded([(-half + 5, -tall), (half - 5, -tall), (half, 0), (-half, 0)], 20), BODY)
    d.mark(line(-half + 4, -tall + flap, half - 4, -tall + flap, 3), INK)
    d.add(box(4, -tall + flap, 9, -tall + flap + 9, 2), 2, shaded=False)
    d.add(box(-half + 8, -pocket, half - 8, -6, 9), 1)
    d.mark(line(-half + 13, -pocket + 9, half - 13, -pocket + 9, 2.4), INK)
    d.top, d.front, d.neck, d.unit = (0, -tall - 8), (0, -pocket / 2), (0, -tall + flap, half), 9


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


def umbrella(d: Drawing, p: Proportions) -> None:
    """An open umbrella: a scalloped dome over a stick with a hooked handle."""
    dome, stick, hook, scallop = (
        between(28, 66, p[1]),
        between(28, 66, p[2]),
        between(7, 16, p[3]),
        between(3, 16, p[4]),
    )
    half = between(42, 62, p[0])
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
