"""The painters of the places outdoors: each fills a canvas and returns the height at which its ground begins."""

from __future__ import annotations

import math

from miniature.canvas import Canvas


def beach(c: Canvas) -> float:
    horizon = c.uniform(0.36, 0.46)
    shore = horizon + c.uniform(0.13, 0.18)
    c.sky(horizon)
    c.gradient((0, horizon, 1, 1), c.colour("#6db7cc"), c.colour("#a5dcdc"))
    c.hill(shore - 0.015, 0.02, c.colour("#f3f6ee"))
    c.ground(shore + 0.01, 0.02, "#f0e0b8", "#e2c994")
    if c.rng.random() < 0.5:
        x, lean = c.rng.choice([0.1, 0.9]) + c.uniform(-0.04, 0.04), c.uniform(-0.06, 0.06)
        top, base = c.uniform(0.16, 0.24), shore + 0.09
        c.line([(x, base), (x + 0.4 * lean, (top + base) / 2), (x + lean, top)], 0.03, c.colour("#a98a67"))
        green = c.colour("#7aa883")
        for angle in (0.5, 0.0, -0.6, math.pi + 0.6, math.pi, math.pi - 0.5):
            c.leaf(x + lean, top, 0.2, angle, green, 0.14)
    else:
        x, base = c.rng.choice([0.14, 0.86]) + c.uniform(-0.05, 0.05), shore + 0.1
        top = base - 0.3
        c.line([(x, base), (x, top)], 0.014, c.colour("#c8b596"))
        n = c.pixels
        box = ((x - 0.17) * n, (top - 0.02) * n, (x + 0.17) * n, (top + 0.24) * n)
        light, dark = c.colour("#f5ebe0"), c.colour("#d99a8f")
        for i in range(4):
            c.draw.pieslice(box, 180 + 45 * i, 225 + 45 * i, fill=dark if i % 2 else light)
    return shore


def forest(c: Canvas) -> float:
    horizon = c.uniform(0.5, 0.58)
    c.sky(horizon)
    c.hill(horizon - 0.22, 0.03, c.colour("#a9c6a8"), 2)
    c.ground(horizon, 0.015, "#9dbb84", "#7f9f6c")
    trunk = c.colour("#8a7460")
    for x, base in c.scatter(6, horizon, horizon + 0.09):
        c.pine(x, base, c.uniform(0.38, 0.56), c.colour("#6f9778"), trunk)
    return horizon


def snow(c: Canvas) -> float:
    horizon = c.uniform(0.48, 0.56)
    c.sky(horizon + 0.04)
    c.hill(horizon - 0.06, 0.03, c.colour("#d3e0ea"), 1.6)
    c.ground(horizon, 0.025, "#f5f8fb", "#dfe9f2")
    trunk = c.colour("#94897f")
    for x, base in c.scatter(int(c.rng.integers(3, 5)), horizon, horizon + 0.06):
        c.pine(x, base, c.uniform(0.26, 0.38), c.colour("#8fb0ac"), trunk, c.colour("#f8fafc"))
    return horizon


def desert(c: Canvas) -> float:
    horizon = c.uniform(0.46, 0.54)
    c.sky(horizon + 0.05)
    c.hill(horizon - 0.04, 0.05, c.colour("#e6bd8e"), 0.8)
    c.ground(horizon + 0.04, 0.035, "#e9b97f", "#d99f63")
    green = c.colour("#7d9c74")
    for x, base in c.scatter(int(c.rng.integers(2, 4)), horizon + 0.02, horizon + 0.1):
        height = c.uniform(0.22, 0.32)
        wide = 0.085 * height / 0.3
        c.rounded((x - wide / 2, base - height, x + wide / 2, base), wide / 2, green)
        for side, low in ((-1, 0.45), (1, 0.6)):
            arm, y = x + side * 1.7 * wide, base - low * height
            c.rounded((min(x, arm), y, max(x, arm), y + 0.65 * wide), 0.3 * wide, green)
            c.rounded((arm - 0.33 * wide, y - 0.26 * height, arm + 0.33 * wide, y + 0.6 * wide), 0.33 * wide, green)
    return horizon + 0.04


def city(c: Canvas) -> float:
    horizon = c.uniform(0.6, 0.66)
    c.sky(horizon)
    far = c.colour("#b9c2cf")
    x = -0.05
    while x < 1:
        width = c.uniform(0.1, 0.17)
        c.box((x, horizon - c.uniform(0.3, 0.52), x + width, horizon), far)
        x += width
    lit = (250, 222, 140) if c.time == "night" else c.colour("#dfe7ec")
    x = c.uniform(-0.1, 0.0)
    while x < 1:
        width, height = c.uniform(0.15, 0.21), c.uniform(0.2, 0.42)
        c.box((x, horizon - height, x + width, horizon), c.colour(str(c.rng.choice(["#8d9ab0", "#a3939e", "#93a3a8"]))))
        for row in range(int(height / 0.085)):
            for column in (0.22, 0.6):
                left, top = x + column * width, horizon - height + 0.035 + 0.085 * row
                c.box((left, top, left + 0.035, top + 0.04), lit)
        x += width + c.uniform(0.0, 0.09)
    c.box((0, horizon, 1, horizon + 0.06), c.colour("#c9c6c1"))
    c.gradient((0, horizon + 0.06, 1, 1), c.colour("#8c9097"), c.colour("#7c8088"))
    y, start = horizon + 0.06 + 0.45 * (0.94 - horizon), c.uniform(-0.2, 0.0)
    for i in range(5):
        left = start + 0.28 * i
        c.polygon(
            [(left, y), (left + 0.15, y), (left + 0.14, y + 0.025), (left - 0.01, y + 0.025)], c.colour("#e5e2d6")
        )
    return horizon


def mountain(c: Canvas) -> float:
    horizon = c.uniform(0.58, 0.66)
    c.sky(horizon)
    for count, low, high, code in ((2, 0.32, 0.4, "#aeb7cb"), (2, 0.42, 0.56, "#8693ae")):
        for x, _ in c.scatter(count, 0, 1):
            height = c.uniform(low, high) * 0.95
            half, fill = height * c.uniform(0.75, 0.95), c.colour(code)
            peak = horizon - height
            c.polygon([(x, peak), (x - half, horizon + 0.02), (x + half, horizon + 0.02)], fill)
            cap, white = 0.32, c.colour("#f4f6f9")
            c.polygon(
                [
                    (x, peak),
                    (x - cap * half, peak + cap * height),
                    (x - 0.4 * cap * half, peak + 0.8 * cap * height),
                    (x, peak + 1.15 * cap * height),
                    (x + 0.4 * cap * half, peak + 0.8 * cap * height),
                    (x + cap * half, peak + cap * height),
                ],
                white,
            )
    c.ground(horizon, 0.02, "#b5cf96", "#98b87b")
    return horizon


def jungle(c: Canvas) -> float:
    horizon = c.uniform(0.6, 0.68)
    c.gradient((0, 0, 1, horizon + 0.03), c.colour("#b9d98f"), c.colour("#5f9a72"))
    for x, _ in c.scatter(4, 0, 1):
        wide = c.uniform(0.03, 0.05)
        c.box((x - wide, 0, x + wide, horizon + 0.02), c.colour("#5a8a68"))
    c.ground(horizon, 0.02, "#6a8c58", "#587a4c")
    for side in (0.0, 1.0):
        for y in (c.uniform(0.5, 0.6), c.uniform(0.66, 0.76)):
            for turn in (-1.15, -0.6, -0.1):
                angle = turn if side == 0 else math.pi - turn
                c.leaf(side, y, c.uniform(0.26, 0.36), angle, c.colour("#3f7d5a"), 0.2)
    for i in range(7):
        c.leaf(
            (i + c.uniform(0.2, 0.8)) / 7,
            -0.04,
            c.uniform(0.22, 0.34),
            math.pi / 2 + c.uniform(-0.5, 0.5),
            c.colour("#4a8b5c"),
            0.24,
        )
    return horizon


def lake(c: Canvas) -> float:
    horizon = c.uniform(0.36, 0.44)
    c.sky(horizon)
    c.hill(horizon - 0.07, 0.035, c.colour("#a8c7b4"), 1.7)
    trunk = c.colour("#86776a")
    for x, _ in c.scatter(4, 0, 1):
        c.tree(x, horizon + 0.01, c.uniform(0.13, 0.19), c.colour("#88ab8c"), trunk)
    c.gradient((0, horizon, 1, 1), c.colour("#b4d4e6"), c.colour("#6a9dc4"))
    for x, y in c.scatter(7, horizon + 0.06, 0.97):
        half = 0.05 + 0.1 * (y - horizon)
        c.ellipse(x, y, half, 0.008, c.colour("#d5e8f2"))
    return horizon + 0.1


def garden(c: Canvas) -> float:
    horizon = c.uniform(0.48, 0.56)
    c.sky(horizon)
    for x, _ in c.scatter(4, 0, 1):
        c.disc(x, horizon, c.uniform(0.12, 0.17), c.colour("#a3c48f"))
    fence = c.colour("#f3efe6")
    for i in range(9):
        x = (i + 0.5) / 9
        c.polygon(
            [
                (x - 0.03, horizon + 0.06),
                (x - 0.03, horizon - 0.12),
                (x, horizon - 0.16),
                (x + 0.03, horizon - 0.12),
                (x + 0.03, horizon + 0.06),
            ],
            fence,
        )
    for y in (horizon - 0.08, horizon):
        c.box((0, y, 1, y + 0.025), fence)
    c.ground(horizon + 0.045, 0.0, "#b3d490", "#93bb74")
    for x, y in c.scatter(9, horizon + 0.12, 0.97):
        radius, petal = 0.016 + 0.022 * (y - horizon), c.colour(str(c.rng.choice(["#efb3c0", "#f3dc9b", "#d3b8e6"])))
        c.line([(x, y), (x, y + 2.6 * radius)], 0.01, c.colour("#7fa466"))
        for k in range(5):
            c.disc(
                x + radius * math.cos(k * math.tau / 5), y + radius * math.sin(k * math.tau / 5), 0.75 * radius, petal
            )
        c.disc(x, y, 0.55 * radius, c.colour("#f6edc9"))
    return horizon + 0.06


def moon(c: Canvas) -> float:
    horizon = c.uniform(0.5, 0.58)
    c.gradient((0, 0, 1, horizon + 0.05), (16, 16, 30), (34, 33, 56) if c.time != "sunset" else (92, 58, 62))
    for _ in range(22):
        c.disc(c.uniform(0, 1), c.uniform(0, horizon), c.uniform(0.003, 0.008), (235, 235, 225))
    x, y, radius = c.uniform(0.15, 0.85), c.uniform(0.14, 0.24), c.uniform(0.09, 0.12)
    c.disc(x, y, radius, c.colour("#7fb2d9"))
    c.ellipse(x - 0.3 * radius, y - 0.2 * radius, 0.45 * radius, 0.35 * radius, c.colour("#9cc795"))
    c.ellipse(x + 0.4 * radius, y + 0.35 * radius, 0.35 * radius, 0.25 * radius, c.colour("#9cc795"))
    c.ground(horizon, 0.02, "#c9c9cf", "#aeaeb8")
    for x, y in c.scatter(6, horizon + 0.07, 0.97):
        half = 0.04 + 0.12 * (y - horizon)
        c.ellipse(x, y, half, 0.38 * half, c.colour("#9b9ba7"))
        c.ellipse(x, y + 0.08 * half, 0.82 * half, 0.28 * half, c.colour("#b6b6c0"))
    return horizon


def farm(c: Canvas) -> float:
    horizon = c.uniform(0.5, 0.58)
    c.sky(horizon)
    c.ground(horizon, 0.015, "#ecd58c", "#d9b964")
    stripe = c.colour("#d2b25c")
    middle = c.uniform(0.3, 0.7)
    for i in range(-6, 8):
        x, far = middle + 0.28 * i, middle + 0.1 * i
        c.polygon([(far - 0.008, horizon + 0.04), (far + 0.008, horizon + 0.04), (x + 0.03, 1), (x - 0.03, 1)], stripe)
    x, base = c.rng.choice([0.2, 0.8]) + c.uniform(-0.06, 0.06), horizon + 0.03
    wall, white = c.colour("#c27f74"), c.colour("#f1ebe3")
    c.polygon(
        [
            (x - 0.17, base),
            (x - 0.17, base - 0.2),
            (x - 0.1, base - 0.3),
            (x, base - 0.35),
            (x + 0.1, base - 0.3),
            (x + 0.17, base - 0.2),
            (x + 0.17, base),
        ],
        wall,
    )
    c.line(
        [
            (x - 0.19, base - 0.19),
            (x - 0.11, base - 0.3),
            (x, base - 0.36),
            (x + 0.11, base - 0.3),
            (x + 0.19, base - 0.19),
        ],
        0.022,
        c.colour("#8b7f80"),
    )
    c.box((x - 0.07, base - 0.14, x + 0.07, base), white)
    c.line([(x - 0.06, base - 0.13), (x + 0.06, base - 0.01)], 0.014, wall)
    c.line([(x + 0.06, base - 0.13), (x - 0.06, base - 0.01)], 0.014, wall)
    return horizon


def underwater(c: Canvas) -> float:
    bed = c.uniform(0.74, 0.8)
    c.gradient((0, 0, 1, bed + 0.03), c.colour("#86d3d6"), c.colour("#3f86ab"))
    ray = c.colour("#9adcdc")
    for x, _ in c.scatter(3, 0, 1):
        lean = c.uniform(0.05, 0.15)
        c.polygon([(x - 0.03, 0), (x + 0.03, 0), (x - lean + 0.05, 0.3), (x - lean - 0.05, 0.3)], ray)
    c.ground(bed, 0.02, "#c9c79c", "#aeb08c")
    for x, base in c.scatter(5, bed + 0.01, bed + 0.06):
        height, phase, green = c.uniform(0.22, 0.4), c.uniform(0, math.tau), c.colour("#4f9c8c")
        c.line([(x + 0.025 * math.sin(phase + 7 * t / 8), base - height * t / 8) for t in range(9)], 0.035, green)
    for x, y in c.scatter(5, 0.08, 0.6):
        c.disc(x, y, c.uniform(0.012, 0.024), c.colour("#c5ecec"))
    return bed


def park(c: Canvas) -> float:
    horizon = c.uniform(0.52, 0.6)
    c.sky(horizon)
    c.hill(horizon - 0.1, 0.03, c.colour("#dcb896"), 2)
    c.ground(horizon, 0.015, "#d2ba80", "#bfa368")
    trunk, leaves = c.colour("#84695a"), ("#e0975f", "#d9765b", "#e9bb62")
    for x, base in c.scatter(4, horizon, horizon + 0.06):
        c.tree(x, base, c.uniform(0.42, 0.52), c.colour(str(c.rng.choice(leaves))), trunk)
    for x, y in c.scatter(12, horizon + 0.1, 0.98):
        size = 0.012 + 0.03 * (y - horizon)
        c.ellipse(x, y, 1.6 * size, 0.7 * size, c.colour(str(c.rng.choice(leaves))))
    return horizon
