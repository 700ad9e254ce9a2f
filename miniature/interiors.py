"""The painters of the places under a roof: each fills a canvas and returns the height at which its ground begins."""

from __future__ import annotations

from miniature.canvas import Canvas


def _window(c: Canvas, x: float, y: float, width: float, height: float) -> None:
    frame = c.colour("#f2eee6")
    c.box((x - 0.025, y - 0.025, x + width + 0.025, y + height + 0.025), frame)
    c.sky(y + height, (x, x + width), y)
    c.box((x + width / 2 - 0.01, y, x + width / 2 + 0.01, y + height), frame)


def kitchen(c: Canvas) -> float:
    counter = c.uniform(0.58, 0.66)
    c.gradient((0, 0, 1, 1), c.colour("#dcebe6"), c.colour("#cbded8"))
    tile = c.colour("#bad2cb")
    for i in range(1, 8):
        c.box((i / 8 - 0.004, 0.2, i / 8 + 0.004, counter), tile)
    for i in range(5):
        y = 0.2 + i * (counter - 0.2) / 4
        c.box((0, y - 0.004, 1, y + 0.004), tile)
    width, height = c.uniform(0.3, 0.36), c.uniform(0.26, 0.32)
    wood, edge, knob = c.colour("#b9a58f"), c.colour("#a28d76"), c.colour("#ece3d4")
    cupboard_right = c.rng.random() < 0.5
    x = c.uniform(0.1, 0.16) if cupboard_right else 0.9 - width - c.uniform(0.0, 0.06)
    _window(c, x, 0.12, width, height)
    left, right = (x + width + 0.1, 1.0) if cupboard_right else (0.0, x - 0.1)
    middle = (left + right) / 2
    c.box((left, 0, right, 0.3), wood)
    c.box((middle - 0.005, 0, middle + 0.005, 0.3), edge)
    c.disc(middle - 0.03, 0.24, 0.012, knob)
    c.disc(middle + 0.03, 0.24, 0.012, knob)
    c.box((0, counter, 1, counter + 0.03), c.colour("#9aa8ad"))
    c.gradient((0, counter + 0.03, 1, 1), c.colour("#c9d0d2"), c.colour("#b4bdc1"))
    return counter


def bedroom(c: Canvas) -> float:
    floor = c.uniform(0.62, 0.68)
    c.gradient((0, 0, 1, floor), c.colour("#d9cfe6"), c.colour("#cdc1de"))
    c.gradient((0, floor, 1, 1), c.colour("#cdb9a8"), c.colour("#bda693"))
    right = c.rng.random() < 0.5
    x = c.uniform(0.06, 0.12) if right else c.uniform(0.64, 0.7)
    _window(c, x, 0.12, 0.24, c.uniform(0.26, 0.32))
    shift, bed, board = c.uniform(-0.05, 0.03), floor + 0.07, floor - c.uniform(0.26, 0.32)

    def part(x0: float, y0: float, x1: float, y1: float, code: str) -> None:
        """A part of the bed, by its place in a bed that stands at the right with its head to the right."""
        x0, x1 = (x0 + shift, x1 + shift) if right else (1 - x1 - shift, 1 - x0 - shift)
        c.rounded((x0, y0, x1, y1), 0.03, c.colour(code))

    part(0.9, board, 0.98, bed + 0.03, "#a58a78")
    part(0.36, floor - 0.1, 0.93, bed, "#f3eff2")
    part(0.34, floor - 0.12, 0.72, bed, "#a9b7d9")
    part(0.75, floor - 0.17, 0.91, floor - 0.08, "#fbf8f4")
    return floor


def library(c: Canvas) -> float:
    floor = c.uniform(0.64, 0.7)
    c.box((0, 0, 1, floor), c.colour("#8d6f5a"))
    tones = ["#c98f84", "#d8bd8a", "#8fa89a", "#9aa4c0", "#cfc4b2", "#b08fa0"]
    top, rows = c.uniform(-0.08, 0.0), 3
    gap = (floor - 0.04 - top) / rows
    for row in range(rows):
        low = top + gap * (row + 1)
        c.box((0, low - gap + 0.03, 1, low - 0.012), c.colour("#6f5645"))
        x = 0.015
        while x < 0.97:
            width = c.uniform(0.07, 0.105)
            c.box(
                (x, low - gap * c.uniform(0.66, 0.84), min(0.985, x + width - 0.006), low - 0.012),
                c.colour(str(c.rng.choice(tones))),
            )
            x += width
    c.gradient((0, floor, 1, 1), c.colour("#c4a888"), c.colour("#ad8f70"))
    c.box((0, floor, 1, floor + 0.025), c.colour("#5f4a3c"))
    return floor


def rug(c: Canvas) -> float:
    floor = c.uniform(0.46, 0.54)
    c.gradient((0, 0, 1, floor), c.colour("#e7ddd0"), c.colour("#dccfbf"))
    c.box((0, floor - 0.03, 1, floor), c.colour("#f6f1ea"))
    c.gradient((0, floor, 1, 1), c.colour("#b7a9a0"), c.colour("#a4968d"))
    tones = (("#c9a3b4", "#ead3dc"), ("#a9a2cf", "#d7d2ee"), ("#9cbcb8", "#d3e6e2"))[int(c.rng.integers(3))]
    main, light = c.colour(tones[0]), c.colour(tones[1])
    y, x = (floor + 1.06) / 2 + 0.02, c.uniform(0.45, 0.55)
    half = 0.96 - y if y < 0.7 else 0.22
    for scale, fill in ((1.0, main), (0.86, light), (0.74, main), (0.4, light), (0.3, main)):
        c.ellipse(x, y, 0.52 * scale, half * scale, fill)
    return floor + 0.12


def floor(c: Canvas) -> float:
    floor = c.uniform(0.46, 0.56)
    c.gradient((0, 0, 1, floor), c.colour("#d5e0ea"), c.colour("#c6d3df"))
    c.box((0, floor - 0.05, 1, floor), c.colour("#f4f4f2"))
    c.gradient((0, floor, 1, 1), c.colour("#d6a878"), c.colour("#c28f5e"))
    seam, middle = c.colour("#a9794d"), c.uniform(0.3, 0.7)
    for i in range(-5, 6):
        far, near = middle + 0.12 * i, middle + 0.3 * i
        c.polygon([(far - 0.004, floor), (far + 0.004, floor), (near + 0.009, 1), (near - 0.009, 1)], seam)
    return floor
