"""Subjects of the drawn world: classes, instances with their own looks, and their parametric drawings."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from miniature import subjects_animals, subjects_gear, subjects_things, subjects_wear
from miniature.accessories import ACCESSORIES, add_accessory
from miniature.drawing import Colour, Drawing, rasterise
from miniature.patterns import PATTERNS

__all__ = [
    "ACCESSORIES",
    "CLASSES",
    "LIVE_CLASSES",
    "PATTERNS",
    "Instance",
    "draw_subject",
    "sample_instance",
    "sample_palette_sharer",
]

_DRAWINGS: dict[str, Callable[[Drawing, tuple[float, ...]], None]] = {
    "backpack": subjects_wear.backpack,
    "stuffed bear": subjects_animals.stuffed_bear,
    "bowl": subjects_things.bowl,
    "can": subjects_things.can,
    "candle": subjects_things.candle,
    "cat": subjects_animals.cat,
    "clock": subjects_things.clock,
    "sneaker": subjects_wear.sneaker,
    "dog": subjects_animals.dog,
    "duck": subjects_animals.duck,
    "boot": subjects_wear.boot,
    "sunglasses": subjects_wear.sunglasses,
    "car": subjects_gear.car,
    "robot": subjects_gear.robot,
    "teapot": subjects_things.teapot,
    "vase": subjects_things.vase,
    "lamp": subjects_things.lamp,
    "umbrella": subjects_wear.umbrella,
    "guitar": subjects_gear.guitar,
    "rabbit": subjects_animals.rabbit,
    "turtle": subjects_animals.turtle,
}
CLASSES: tuple[str, ...] = tuple(_DRAWINGS)
LIVE_CLASSES: tuple[str, ...] = ("cat", "dog", "rabbit", "turtle")

_PERIODS = (0.17, 0.34)  # of the subject's size: at 64 px never below 10 px a repeat
_HUES = (0, 14, 28, 44, 56, 84, 128, 160, 180, 200, 220, 245, 270, 292, 315, 338)  # degrees, evenly spread to the eye
_COLOUR_DISTANCE = 230.0  # between any two of a palette, as `_distance` measures
_LUMA_DISTANCE = 45.0  # between main and pattern colour, so that the pattern shows in light and dark too

_CHANGES = ("pattern", "proportions", "both")
_CHANGE_CHANCES = (0.45, 0.15, 0.4)
_VISIBLE_CHANGE = 0.16  # of full contrast, summed over RGB and alpha, per covered pixel


@dataclass(frozen=True)
class Instance:
    """The looks of one subject; equal instances are drawn with equal bytes.

    palette: main, pattern and detail colour, 8-bit RGB. pattern_scale: one repeat as a fraction of the subject's
    size. pattern_angle: degrees in [0, 180). proportions: five numbers in [0, 1], the first the width.
    """

    class_name: str
    palette: tuple[Colour, ...]
    pattern: str
    pattern_scale: float
    pattern_angle: float
    proportions: tuple[float, ...]
    accessory: str


def sample_instance(class_name: str, rng: np.random.Generator) -> Instance:
    """Draw an instance of a class at random; ValueError for an unknown class."""
    if class_name not in _DRAWINGS:
        raise ValueError(f"unknown class {class_name!r}; choose one of {', '.join(CLASSES)}")
    return Instance(
        class_name=class_name,
        palette=_sample_palette(rng),
        pattern=str(rng.choice(PATTERNS)),
        pattern_scale=round(float(rng.uniform(*_PERIODS)), 3),
        pattern_angle=round(float(rng.uniform(0, 180)), 1),
        proportions=tuple(round(float(value), 3) for value in rng.uniform(0, 1, 5)),
        accessory="none" if rng.random() < 0.3 else str(rng.choice(ACCESSORIES[1:])),
    )


def sample_palette_sharer(instance: Instance, rng: np.random.Generator, change: str | None = None) -> Instance:
    """Draw another instance of the same class and palette that visibly differs in pattern, proportions, or both.

    change: which of them, "pattern", "proportions" or "both"; None leaves it to chance.
    """
    looks = _looks(instance)
    while True:
        sharer = _change(instance, rng, change or str(rng.choice(_CHANGES, p=_CHANGE_CHANCES)))
        other = _looks(sharer)
        # a pattern may fall where little of the body shows: take the change only if it can be seen
        if np.abs(other - looks).sum() >= _VISIBLE_CHANGE * np.maximum(other, looks)[..., 3].sum():
            return sharer


def draw_subject(instance: Instance, size: int, *, flip: bool = False) -> Image.Image:
    """Draw an instance on a transparent ground, standing on the bottom edge and filling the width or the height.

    Returns an RGBA image (size x size), anti-aliased straight alpha; flip mirrors it. Raises ValueError for an
    unknown class, pattern or accessory, or a size below 8.
    """
    if instance.class_name not in _DRAWINGS:
        raise ValueError(f"unknown class {instance.class_name!r}; choose one of {', '.join(CLASSES)}")
    if size < 8:
        raise ValueError(f"a subject of {size} px cannot be drawn; ask for at least 8")
    drawing = Drawing()
    _DRAWINGS[instance.class_name](drawing, instance.proportions)
    add_accessory(drawing, instance.accessory)
    image = rasterise(drawing, instance.palette, instance.pattern, instance.pattern_scale, instance.pattern_angle, size)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def _change(instance: Instance, rng: np.random.Generator, change: str) -> Instance:
    """The instance with another pattern, clearly other proportions, or both."""
    changed = instance
    if change != "proportions":
        patterns = [pattern for pattern in PATTERNS if pattern != instance.pattern]
        changed = replace(
            changed,
            pattern=str(rng.choice(patterns)),
            pattern_scale=round(float(rng.uniform(*_PERIODS)), 3),
            pattern_angle=round(float(rng.uniform(0, 180)), 1),
        )
    if change != "pattern":
        # half a range away on every proportion, give or take a tenth: it cannot pass for the same build
        shift = 0.5 + rng.uniform(-0.1, 0.1, len(instance.proportions))
        moved = (np.array(instance.proportions) + shift) % 1.0
        changed = replace(changed, proportions=tuple(round(float(value), 3) for value in moved))
    return changed


def _looks(instance: Instance) -> np.ndarray:
    """A small drawing with premultiplied alpha, (32, 32, 4) float in [0, 255]."""
    return np.asarray(draw_subject(instance, 32).convert("RGBa"), dtype=np.float32)


def _sample_palette(rng: np.random.Generator) -> tuple[Colour, ...]:
    """Three colours that nobody would confuse."""
    palette: list[Colour] = []
    while len(palette) < 3:
        colour = _sample_colour(rng)
        if len(palette) == 1 and abs(_luma(colour) - _luma(palette[0])) < _LUMA_DISTANCE:
            continue
        if all(_distance(colour, other) >= _COLOUR_DISTANCE for other in palette):
            palette.append(colour)
    return tuple(palette)


def _luma(colour: Colour) -> float:
    """Perceived brightness, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _sample_colour(rng: np.random.Generator) -> Colour:
    """A saturated colour: hues as the eye counts them, from deep to bright."""
    step = rng.uniform(0, len(_HUES))
    hue = np.interp(step, range(len(_HUES) + 1), (*_HUES, 360))
    # dark yellows are olive and dark oranges brown: keep the warm hues bright
    darkest = 0.85 if 30 <= hue <= 75 else 0.55
    red, green, blue = colorsys.hsv_to_rgb(float(hue) / 360, rng.uniform(0.6, 0.9), rng.uniform(darkest, 0.98))
    return round(red * 255), round(green * 255), round(blue * 255)


def _distance(a: Colour, b: Colour) -> float:
    """The 'redmean' colour difference, 0 to about 765: close to what the eye sees, cheap to compute."""
    mean = (a[0] + b[0]) / 2
    red, green, blue = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return float(np.sqrt((2 + mean / 256) * red**2 + 4 * green**2 + (2 + (255 - mean) / 256) * blue**2))
