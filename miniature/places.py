"""The places of the drawn world: what each looks like, at which time and in which weather."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from miniature import interiors, landscapes
from miniature.canvas import LIGHT, Canvas

TIMES: tuple[str, ...] = ("day", "sunset", "night")
WEATHERS: tuple[str, ...] = ("clear", "rain", "snowfall", "fog")

# A place's short name stands in each of its phrases.
PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on a beach", "on the beach", "at the beach"),
    "forest": ("in a forest", "in the forest"),
    "snow": ("in the snow", "on the snow"),
    "desert": ("in a desert", "in the desert"),
    "kitchen": ("in a kitchen", "in the kitchen"),
    "city": ("in a city", "in the city", "with a city in the background"),
    "mountain": ("with a mountain in the background", "on a mountain meadow"),
    "jungle": ("in the jungle", "in a jungle"),
    "bedroom": ("in a bedroom", "in the bedroom"),
    "lake": ("on a lake", "on the lake"),
    "garden": ("in a garden", "in the garden"),
    "library": ("in a library", "in the library"),
    "moon": ("on the moon", "on top of the moon"),
    "farm": ("on a farm", "at the farm"),
    "underwater": ("underwater", "deep underwater"),
    "rug": ("on a rug", "on top of a rug"),
    "floor": ("on a wooden floor", "on top of a wooden floor"),
    "park": ("in an autumn park", "in a park with autumn leaves"),
}
PLACES: tuple[str, ...] = tuple(PHRASES)


_PAINTERS: dict[str, Callable[[Canvas], float]] = {
    "beach": landscapes.beach,
    "forest": landscapes.forest,
    "snow": landscapes.snow,
    "desert": landscapes.desert,
    "kitchen": interiors.kitchen,
    "city": landscapes.city,
    "mountain": landscapes.mountain,
    "jungle": landscapes.jungle,
    "bedroom": interiors.bedroom,
    "lake": landscapes.lake,
    "garden": landscapes.garden,
    "library": interiors.library,
    "moon": landscapes.moon,
    "farm": landscapes.farm,
    "underwater": landscapes.underwater,
    "rug": interiors.rug,
    "floor": interiors.floor,
    "park": landscapes.park,
}


def draw_place(
    place: str, rng: np.random.Generator, *, time: str = "day", weather: str = "clear", size: int = 128
) -> tuple[Image.Image, float]:
    """A place with a random layout.

    Returns the RGB picture, size x size, and the height (0 to 1, downwards) at which its ground begins.
    Raises ValueError for a place, time or weather that the world does not have.
    """
    for value, known in ((place, PLACES), (time, TIMES), (weather, WEATHERS)):
        if value not in known:
            raise ValueError(f"the drawn world has no {value!r}: choose one of {', '.join(known)}")
    canvas = Canvas(rng, size, time, weather)
    ground = _PAINTERS[place](canvas)
    picture = canvas.finish()
    if weather == "fog":
        picture = _fog(picture, ground, time)
    elif weather != "clear":
        grey = Image.new("RGB", picture.size, _lit((176, 188, 202) if weather == "rain" else (214, 222, 232), time))
        picture = Image.blend(picture, grey, 0.25)
        picture.paste(*_falling(rng, weather, size, 36))
    return picture, ground


def draw_weather(rng: np.random.Generator, *, weather: str, size: int) -> tuple[Image.Image, Image.Image] | None:
    """The rain or snow that falls in front of a subject: an RGB picture and its L mask, or None."""
    if weather not in ("rain", "snowfall"):
        return None
    picture, _, mask = _falling(rng, weather, size, 9)
    return picture, mask


def _lit(colour: tuple[int, int, int], time: str) -> tuple[int, int, int]:
    red, green, blue = (int(value * light) for value, light in zip(colour, LIGHT[time], strict=True))
    return red, green, blue


def _fog(picture: Image.Image, ground: float, time: str) -> Image.Image:
    size = picture.height
    rows = np.arange(size, dtype=np.float32) / size
    thickness = 0.25 + 0.45 * np.exp(-(((rows - ground + 0.08) / 0.24) ** 2))
    if time == "night":
        thickness *= 0.75  # Else nothing of the dark place would be seen.
    mask = Image.fromarray((255 * thickness).astype(np.uint8)[:, None]).resize(picture.size, Image.Resampling.NEAREST)
    picture.paste(_lit((226, 230, 233), time) if time != "night" else (150, 160, 190), (0, 0, size, size), mask)
    return picture


def _falling(
    rng: np.random.Generator, weather: str, size: int, count: int
) -> tuple[Image.Image, tuple[int, int], Image.Image]:
    """`count` streaks or flakes, spread evenly: what Image.paste wants (picture, corner, mask)."""
    pixels = 2 * size
    mask = Image.new("L", (pixels, pixels))
    draw = ImageDraw.Draw(mask)
    xs = (np.arange(count) + rng.uniform(0, 1, count)) / count * 1.1
    ys = (rng.permutation(count) + rng.uniform(0, 1, count)) / count
    scales = rng.uniform(0.75, 1.25, count)
    for x, y, scale in zip(xs.tolist(), ys.tolist(), scales.tolist(), strict=True):
        if weather == "rain":
            end = ((x - 0.028 * scale) * pixels, (y + 0.085 * scale) * pixels)
            draw.line((x * pixels, y * pixels, *end), fill=200, width=max(1, round(0.009 * pixels)))
        else:
            radius = 0.016 * scale * pixels
            draw.ellipse((x * pixels - radius, y * pixels - radius, x * pixels + radius, y * pixels + radius), fill=245)
    colour = (222, 234, 246) if weather == "rain" else (255, 255, 255)
    return Image.new("RGB", (size, size), colour), (0, 0), mask.reduce(2)
