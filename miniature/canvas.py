"""A small vector canvas in unit coordinates, on which the places of the drawn world are painted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 3

# What the light does to every colour that is not the sky's.
LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.80, 0.70),
    "night": (0.46, 0.53, 0.74),
}
SKY: dict[str, tuple[str, str]] = {
    "day": ("#9fcdec", "#e3f1f6"),
    "sunset": ("#a583b8", "#ffc58c"),
    "night": ("#141b3c", "#3a4675"),
}
OVERCAST: dict[str, float] = {"clear": 0.0, "rain": 0.6, "snowfall": 0.45, "fog": 0.5}


def parse_colour(code: str) -> Colour:
    """The (red, green, blue) bytes of a "#rrggbb" code."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


class Canvas:
    """An RGB picture painted at three times its size; x and y run from 0 to 1, y downwards."""

    def __init__(self, rng: np.random.Generator, size: int, time: str, weather: str) -> None:
        self.rng = rng
        self.size = size
        self.time = time
        self.weather = weather
        self.pixels = size * SUPERSAMPLING
        self.image = Image.new("RGB", (self.pixels, self.pixels))
        self.draw = ImageDraw.Draw(self.image)

    def finish(self) -> Image.Image:
        """The painted picture at its own size, anti-aliased."""
        return self.image.reduce(SUPERSAMPLING)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def colour(self, code: str) -> Colour:
        """`code` with a mild random change, as the light of this hour shows it."""
        gain = self.uniform(0.965, 1.035)
        shift = self.rng.uniform(-4.0, 4.0, 3)
        bytes_ = [
            (value * gain + float(change)) * light
            for value, change, light in zip(parse_colour(code), shift, LIGHT[self.time], strict=True)
        ]
        red, green, blue = (int(min(255, max(0, value))) for value in bytes_)
        return red, green, blue

    def sky_colours(self) -> tuple[Colour, Colour]:
        """The sky's colours at the zenith and at the horizon, greyer under weather."""
        grey = {"day": 205.0, "sunset": 190.0, "night": 66.0}[self.time]
        mix = OVERCAST[self.weather]
        shift = self.rng.uniform(-5.0, 5.0, 3)
        colours: list[Colour] = []
        for code in SKY[self.time]:
            channels = [
                (value + float(change)) * (1 - mix) + grey * mix
                for value, change in zip(parse_colour(code), shift, strict=True)
            ]
            red, green, blue = (int(min(255, max(0, value))) for value in channels)
            colours.append((red, green, blue))
        return colours[0], colours[1]

    def gradient(self, box: tuple[float, float, float, float], top: Colour, bottom: Colour) -> None:
        """Fill `box` (x0, y0, x1, y1) from the colour `top` down to `bottom`."""
        x0, y0, x1, y1 = (round(value * self.pixels) for value in box)
        height, width = y1 - y0, x1 - x0
        if height <= 0 or width <= 0:
            return
        steps = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
        column = np.asarray(top, np.float32) * (1 - steps) + np.asarray(bottom, np.float32) * steps
        strip = Image.fromarray(column.round().astype(np.uint8)[:, None, :])
        self.image.paste(strip.resize((width, height), Image.Resampling.NEAREST), (x0, y0))

    def sky(self, horizon: float, box: tuple[float, float] = (0.0, 1.0), top: float = 0.0) -> None:
        """The sky above `horizon`: a sun low at sunset, a moon and stars at night, clouds by day."""
        zenith, low = self.sky_colours()
        x0, x1 = box
        self.gradient((x0, top, x1, horizon), zenith, low)
        if box == (0.0, 1.0):  # A ground that waves may begin a little lower.
            self.gradient((x0, horizon, x1, horizon + 0.05), low, low)
        width, height = x1 - x0, horizon - top
        x, overcast = x0 + width * self.uniform(0.15, 0.85), OVERCAST[self.weather] > 0
        if self.time == "night":
            for _ in range(int(18 * width * height * 2)):
                self.disc(
                    x0 + width * self.uniform(0.03, 0.97),
                    top + height * self.uniform(0.03, 0.9),
                    self.uniform(0.003, 0.007),
                    (226, 226, 205),
                )
            if not overcast:
                self.disc(x, top + height * self.uniform(0.25, 0.45), 0.05 * min(1.0, width + 0.3), (240, 236, 205))
        elif self.time == "sunset":
            self.disc(x, horizon - height * self.uniform(0.12, 0.3), 0.09 * min(1.0, width + 0.3), (255, 226, 150))
        elif width > 0.9:
            for _ in range(int(self.rng.integers(1, 4))):
                self.cloud(self.uniform(0.05, 0.95), top + height * self.uniform(0.12, 0.55), self.uniform(0.05, 0.09))

    def cloud(self, x: float, y: float, radius: float) -> None:
        fill = (246, 248, 249) if self.weather == "clear" else (222, 226, 230)
        for offset, scale in ((-1.3, 0.65), (0.0, 1.0), (1.2, 0.75)):
            self.disc(x + offset * radius, y - 0.3 * scale * radius, radius * scale * 0.75, fill)
        self.rounded((x - 2.0 * radius, y - 0.25 * radius, x + 2.0 * radius, y + 0.3 * radius), 0.25 * radius, fill)

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        self.ellipse(x, y, radius, radius, fill)

    def ellipse(self, x: float, y: float, across: float, down: float, fill: Colour) -> None:
        """An ellipse by its centre and its half axes."""
        n = self.pixels
        self.draw.ellipse(((x - across) * n, (y - down) * n, (x + across) * n, (y + down) * n), fill=fill)

    def box(self, box: tuple[float, float, float, float], fill: Colour) -> None:
        x0, y0, x1, y1 = (round(value * self.pixels) for value in box)
        if x1 > x0 and y1 > y0:
            self.draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=fill)

    def rounded(self, box: tuple[float, float, float, float], radius: float, fill: Colour) -> None:
        x0, y0, x1, y1 = (value * self.pixels for value in box)
        self.draw.rounded_rectangle((x0, y0, x1, y1), radius * self.pixels, fill=fill)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        n = self.pixels
        self.draw.polygon([(x * n, y * n) for x, y in points], fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        n = self.pixels
        self.draw.line([(x * n, y * n) for x, y in points], fill=fill, width=max(1, round(width * n)), joint="curve")

    def hill(self, y: float, amplitude: float, fill: Colour, waves: float = 1.2) -> None:
        """Everything below a soft wave around the height `y`."""
        phase, second = self.uniform(0, math.tau), self.uniform(0, math.tau)
        points = [(0.0, 1.0)]
        for step in range(33):
            x = step / 32
            wave = math.sin(phase + math.tau * waves * x) + 0.4 * math.sin(second + math.tau * 2.1 * waves * x)
            points.append((x, y + amplitude * wave / 1.4))
        self.polygon([*points, (1.0, 1.0)], fill)

    def ground(self, y: float, amplitude: float, top: str, bottom: str) -> None:
        """A ground with a softly waving upper edge around `y`, shaded from `top` to `bottom`."""
        far, near = self.colour(top), self.colour(bottom)
        if amplitude > 0:
            self.hill(y, amplitude, far)
        self.gradient((0.0, y + amplitude, 1.0, 1.0), far, near)

    def pine(
        self, x: float, base: float, height: float, fill: Colour, trunk: Colour, snow: Colour | None = None
    ) -> None:
        self.box((x - 0.03 * height, base - 0.2 * height, x + 0.03 * height, base), trunk)
        for low, high, half in ((0.12, 0.55, 0.27), (0.36, 0.78, 0.21), (0.6, 1.0, 0.15)):
            tip, left, right = (x, base - high * height), x - half * height, x + half * height
            self.polygon([tip, (left, base - low * height), (right, base - low * height)], fill)
            if snow is not None:
                middle = base - (0.55 * high + 0.45 * low) * height
                self.polygon([tip, (x - 0.45 * half * height, middle), (x + 0.45 * half * height, middle)], snow)

    def tree(self, x: float, base: float, height: float, fill: Colour, trunk: Colour) -> None:
        self.box((x - 0.045 * height, base - 0.5 * height, x + 0.045 * height, base), trunk)
        for dx, dy, radius in ((-0.17, 0.58, 0.2), (0.17, 0.58, 0.2), (0.0, 0.76, 0.24)):
            self.disc(x + dx * height, base - dy * height, radius * height, fill)

    def leaf(self, x: float, y: float, length: float, angle: float, fill: Colour, slim: float = 0.22) -> None:
        """A pointed leaf from (x, y) in the direction `angle` (radians, 0 to the right, growing downwards)."""
        along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
        points = []
        for t, side in ((0, 0), (0.25, 0.8), (0.5, 1), (0.8, 0.6), (1, 0), (0.8, -0.6), (0.5, -1), (0.25, -0.8)):
            points.append(
                (
                    x + length * (t * along[0] + slim * side * across[0]),
                    y + length * (t * along[1] + slim * side * across[1]),
                )
            )
        self.polygon(points, fill)

    def scatter(self, count: int, y0: float, y1: float) -> list[Point]:
        """`count` points spread evenly over x, at random heights from `y0` to `y1`, far ones first."""
        points = [((i + self.uniform(0.1, 0.9)) / count, self.uniform(y0, y1)) for i in range(count)]
        return sorted(points, key=lambda point: point[1])
