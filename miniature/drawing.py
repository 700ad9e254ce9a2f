"""Vector drawings: outlined, softly shaded parts that are rasterised with anti-aliased alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from miniature.patterns import pattern_mask

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
_RIM = 0.13  # parts thinner than this share of the square get no shading: nobody would see it
_CORNER = np.linspace(0, 1, 6)[None, :, None]
_SEGMENT = (np.arange(8) / 8)[None, :, None]
_CAP = np.linspace(0, np.pi, 7)[1:-1, None]
_CAP_COS, _CAP_SIN = np.cos(_CAP), np.sin(_CAP)


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
    count = len(points)
    before, after = points[np.arange(-1, count - 1)] - points, points[np.arange(1, count + 1) % count] - points
    before_length, after_length = np.hypot(*before.T)[:, None], np.hypot(*after.T)[:, None]
    start = points + before / before_length * np.minimum(radius, before_length / 2)
    end = points + after / after_length * np.minimum(radius, after_length / 2)
    t = _CORNER
    curve = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * points[:, None] + t**2 * end[:, None]
    return curve.reshape(-1, 2)


def smooth(knots: Sequence[tuple[float, float]], closed: bool = True) -> Points:
    """A Catmull-Rom curve through the knots, closed or open: eight points a segment."""
    points = np.array(knots, dtype=float)
    if closed:
        index = np.arange(len(points))
        p0, p1, p2, p3 = (points[(index + step) % len(points)] for step in (-1, 0, 1, 2))
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
        p0, p1, p2, p3 = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = _SEGMENT
    p0, p1, p2, p3 = p0[:, None], p1[:, None], p2[:, None], p3[:, None]
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
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
    direction /= np.hypot(*direction.T)[:, None] + 1e-9
    normal = direction[:, ::-1] * (1.0, -1.0)
    head = path[-1] + widths[-1] * (_CAP_COS * normal[-1] + _CAP_SIN * direction[-1])
    tail = path[0] - widths[0] * (_CAP_COS * normal[0] + _CAP_SIN * direction[0])
    return np.concatenate([path + normal * widths, head, (path - normal * widths)[::-1], tail])


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    """The outline of a straight stroke with round ends."""
    return band(np.array([(x0, y0), (x1, y1)], dtype=float), width)


def rasterise(
    drawing: Drawing, palette: Sequence[Colour], pattern: str, period: float, angle: float, size: int
) -> Image.Image:
    """Paint a drawing so that it stands on the bottom edge and fills the square's width or height.

    pattern, period (a fraction of the square) and angle (degrees): as in `patterns.pattern_mask`; the pattern is
    centred on the parts it covers. Returns an RGBA image (size x size), straight alpha.
    """
    side = size * _SUPERSAMPLING
    stroke = max(2, round(side * _OUTLINE))
    every = np.concatenate([part.points for part in drawing.parts])
    low, high = every.min(axis=0), every.max(axis=0)
    scale = (side - stroke - 1) / (high - low).max()
    shift = np.array([(side - 1) / 2, side - 1 - stroke / 2]) - scale * np.array([(low[0] + high[0]) / 2, high[1]])

    body = np.concatenate([part.points for part in drawing.parts if part.fill == BODY]) * scale + shift
    centre = (body.min(axis=0) + body.max(axis=0)) / (2 * side)
    # half the resolution and back: four times faster, and the pattern's edges come out soft
    mask = pattern_mask(pattern, period, angle, (side + 1) // 2, (float(centre[0]), float(centre[1])))
    soft = Image.fromarray(mask.view(np.uint8) * np.uint8(255)).resize((side, side), Image.Resampling.BILINEAR)
    surface = Image.new("RGBA", (side, side), (*palette[0], 255))
    surface.paste((*palette[1], 255), (0, 0), soft)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    for part in drawing.parts:
        fill = palette[max(part.fill, 0)] if isinstance(part.fill, int) else part.fill
        points = part.points * scale + shift
        outline = points.ravel().tolist()
        if part.fill == BODY:
            x, y = (int(value) for value in points.min(axis=0))
            width, height = (int(value) + 1 for value in points.max(axis=0) - (x, y))
            shape = Image.new("L", (width + 1, height + 1), 0)
            ImageDraw.Draw(shape).polygon((points - (x, y)).ravel().tolist(), fill=255)
            canvas.paste(surface.crop((x, y, x + width + 1, y + height + 1)), (x, y), shape)
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
    if extent.min() < _RIM * canvas.width:
        return
    local = points - low
    for offset, colour, strength in ((-0.13, (24, 12, 48, 255), 46), (0.07, (255, 255, 255, 255), 56)):
        rim = Image.new("L", (int(extent[0]), int(extent[1])), 0)
        pen = ImageDraw.Draw(rim)
        pen.polygon(local.ravel().tolist(), fill=strength)
        pen.polygon((local + offset * extent.min()).ravel().tolist(), fill=0)
        canvas.paste(colour, (int(low[0]), int(low[1])), rim)


def _darker(colour: Colour) -> Colour:
    """The outline's colour for a part of this colour."""
    return int(colour[0] * 0.48), int(colour[1] * 0.46), int(colour[2] * 0.52)
