"""Vector drawings: outlined, softly shaded parts that are rasterised with anti-aliased alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = np.ndarray  # (N, 2) float, x to the right and y down, in the drawing's own units
BODY = -1  # fill with the main colour under the pattern

INK: Colour = (38, 32, 44)
WHITE: Colour = (250, 249, 245)
CREAM: Colour = (250, 238, 214)
STEEL: Colour = (186, 192, 203)
GLASS: Colour = (188, 224, 242)
TYRE: Colour = (58, 56, 66)

_SUPERSAMPLING = 3
_OUTLINE = 0.024  # of the square's side


@dataclass(frozen=True)
class _Part:
    points: Points
    fill: int | Colour
    outlined: bool
    shaded: bool


@dataclass
class Drawing:
    """Parts in painting order and the three places where an accessory can sit.

    top: (x, y) where something stands on the subject; front: (x, y) where something is pinned to it;
    neck: (x, y, half width) where something is tied around it; unit: the accessory's scale in the drawing's units.
    """

    parts: list[_Part] = field(default_factory=list)
    top: tuple[float, float] = (0.0, 0.0)
    front: tuple[float, float] = (0.0, 0.0)
    neck: tuple[float, float, float] = (0.0, 0.0, 10.0)
    unit: float = 10.0

    def add(self, points: Points, fill: int | Colour, outlined: bool = True, shaded: bool = True) -> None:
        """Paint a closed shape (N, 2) over what is there; fill is BODY, an index into the palette or a colour."""
        self.parts.append(_Part(points, fill, outlined, shaded))

    def mark(self, points: Points, fill: int | Colour) -> None:
        """Paint a small detail: no outline, no shading."""
        self.parts.append(_Part(points, fill, False, False))

    def eye(self, x: float, y: float, r: float) -> None:
        """Paint a dark eye with a glint."""
        self.mark(ellipse(x, y, r, r * 1.12, count=14), INK)
        self.mark(ellipse(x - 0.3 * r, y - 0.4 * r, 0.38 * r, 0.38 * r, count=8), WHITE)

    def stretch(self, factor: float) -> None:
        """Scale everything drawn so far, and the accessory's places, horizontally."""
        scale = np.array([factor, 1.0])
        self.parts = [_Part(part.points * scale, part.fill, part.outlined, part.shaded) for part in self.parts]
        self.top = (self.top[0] * factor, self.top[1])
        self.front = (self.front[0] * factor, self.front[1])
        self.neck = (self.neck[0] * factor, self.neck[1], self.neck[2] * factor)


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, count: int = 36) -> Points:
    """An ellipse's outline (count, 2); angle in degrees."""
    t = np.arange(count) * (2 * np.pi / count)
    return turned(np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1), cx, cy, angle)


def turned(points: Points, cx: float, cy: float, angle: float) -> Points:
    """The points (N, 2) turned by angle degrees around (cx, cy)."""
    if angle == 0.0:
        return points
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return (points - (cx, cy)) @ np.array([[cos, sin], [-sin, cos]]) + (cx, cy)


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Points:
    """A rectangle's outline with rounded corners."""
    return rounded([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], min(radius, (x1 - x0) / 2, (y1 - y0) / 2))


def rounded(corners: Sequence[tuple[float, float]], radius: float) -> Points:
    """A polygon whose corners are cut round at the given distance from each corner."""
    points = np.array(corners, dtype=float)
    before, after = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
    before_length, after_length = np.linalg.norm(before, axis=1)[:, None], np.linalg.norm(after, axis=1)[:, None]
    start = points + before / before_length * np.minimum(radius, before_length / 2)
    end = points + after / after_length * np.minimum(radius, after_length / 2)
    t = np.linspace(0, 1, 6)[None, :, None]
    curve = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * points[:, None] + t**2 * end[:, None]
    return curve.reshape(-1, 2)


def smooth(knots: Sequence[tuple[float, float]], closed: bool = True) -> Points:
    """A Catmull-Rom curve through the knots, closed or open: eight points a segment."""
    points = np.array(knots, dtype=float)
    if closed:
        p0, p1, p2, p3 = np.roll(points, 1, 0), points, np.roll(points, -1, 0), np.roll(points, -2, 0)
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
        p0, p1, p2, p3 = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = (np.arange(8) / 8)[None, :, None]
    p0, p1, p2, p3 = p0[:, None], p1[:, None], p2[:, None], p3[:, None]
    curve = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def profile(knots: Sequence[tuple[float, float]]) -> Points:
    """A body that mirrors at x = 0: knots (half width, y) from top to bottom, joined smoothly."""
    side = smooth(knots, closed=False)
    return np.concatenate([side, side[::-1] * (-1.0, 1.0)])


def band(path: Points, width: float, end_width: float | None = None) -> Points:
    """The outline of a stroke along an open path (N, 2), with round ends; its width may change evenly."""
    widths = np.linspace(width, width if end_width is None else end_width, len(path))[:, None] / 2
    direction = np.gradient(path, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
    normal = direction[:, ::-1] * (1.0, -1.0)
    t = np.linspace(0, np.pi, 7)[1:-1, None]
    head = path[-1] + widths[-1] * (np.cos(t) * normal[-1] + np.sin(t) * direction[-1])
    tail = path[0] + widths[0] * (-np.cos(t) * normal[0] - np.sin(t) * direction[0])
    return np.concatenate([path + normal * widths, head, (path - normal * widths)[::-1], tail])


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    """The outline of a straight stroke with round ends."""
    return band(np.array([(x0, y0), (x1, y1)], dtype=float), width)


def rasterise(drawing: Drawing, palette: Sequence[Colour], pattern: np.ndarray, size: int) -> Image.Image:
    """Paint a drawing so that it stands on the bottom edge and fills the square's width or height.

    pattern: (size * 3, size * 3) bool from `patterns.pattern_mask`, over the whole square.
    Returns an RGBA image (size x size), straight alpha.
    """
    side = size * _SUPERSAMPLING
    stroke = max(2, round(side * _OUTLINE))
    every = np.concatenate([part.points for part in drawing.parts])
    low, high = every.min(axis=0), every.max(axis=0)
    scale = (side - stroke - 1) / (high - low).max()
    shift = np.array([(side - 1) / 2, side - 1 - stroke / 2]) - scale * np.array([(low[0] + high[0]) / 2, high[1]])

    colours = np.array([palette[0], palette[1]], dtype=np.uint8)
    surface = Image.fromarray(colours[pattern.astype(np.uint8)], "RGB").convert("RGBA")
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    for part in drawing.parts:
        fill = palette[max(part.fill, 0)] if isinstance(part.fill, int) else part.fill
        points = part.points * scale + shift
        outline = points.ravel().tolist()
        if part.fill == BODY:
            mask = Image.new("L", (side, side), 0)
            ImageDraw.Draw(mask).polygon(outline, fill=255)
            canvas.paste(surface, (0, 0), mask)
        else:
            pen.polygon(outline, fill=(*fill, 255))
        if part.shaded:
            _shade(canvas, points)
        if part.outlined:
            corner = points[:2].ravel().tolist()
            joint = "curve" if len(points) < 12 else None
            pen.line(outline + corner, fill=(*_darker(fill), 255), width=stroke, joint=joint)
    small = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32)
    # soft light from the upper left
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    light = 1.1 - 0.1 * axis[None, :, None] - 0.14 * axis[:, None, None]
    rgb = np.clip(small[..., :3] * light, 0, 255)
    return Image.fromarray(np.concatenate([rgb, small[..., 3:]], axis=2).round().astype(np.uint8), "RGBA")


def _shade(canvas: Image.Image, points: Points) -> None:
    """Darken the lower right rim of a shape and lighten its upper left one."""
    low = np.floor(points.min(axis=0)).astype(int)
    extent = np.ceil(points.max(axis=0)).astype(int) - low + 1
    local = points - low
    for offset, colour, strength in ((-0.13, (24, 12, 48, 255), 46), (0.07, (255, 255, 255, 255), 56)):
        rim = Image.new("L", (int(extent[0]), int(extent[1])), 0)
        pen = ImageDraw.Draw(rim)
        pen.polygon(local.ravel().tolist(), fill=strength)
        pen.polygon((local + offset * extent.min()).ravel().tolist(), fill=0)
        canvas.paste(colour, (int(low[0]), int(low[1])), rim)


def _darker(colour: Colour) -> Colour:
    """The outline's colour for a part of this colour."""
    return int(colour[0] * 0.42), int(colour[1] * 0.4), int(colour[2] * 0.46)
