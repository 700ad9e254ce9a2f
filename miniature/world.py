"""The drawn world: scenes of a subject in a place, each made from a seed alone.

Seeds below 10**8 are for training; seeds from 10**9 on are held out for checks and benchmarks (`is_held_out_seed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from miniature.grammar import (
    ACTION_PHRASES,
    BESIDE,
    SIZE_WORDS,
    TIME_PHRASES,
    WEATHER_PHRASES,
    CaptionParts,
    write_caption,
)
from miniature.places import PHRASES, PLACES, draw_place, draw_weather
from miniature.subjects import CLASSES, Instance, draw_subject, sample_instance

TRAINING_SEEDS = 10**8  # Training takes its seeds from below this number.
HELD_OUT_SEEDS = 10**9  # Checks take theirs from this number on.

Box = tuple[float, float, float, float]
Mask = np.ndarray[tuple[int, int], np.dtype[np.uint8]]

_MARGIN = 4 / 128  # No subject comes nearer than this to the frame, in parts of the picture.
_HEIGHTS = {"medium": (0.52, 0.68), "small": (0.45, 0.51), "large": (0.69, 0.75)}
# The independent random streams of a scene: an override of one part leaves all others as they were.
_CHOICES, _INSTANCE, _PLACE, _LAYOUT, _SECOND, _CAPTION, _WEATHER = range(7)


@dataclass(frozen=True, eq=False)
class SecondObject:
    """The smaller object beside a subject; box and mask as in Scene."""

    class_name: str
    instance: Instance
    box: Box
    mask: Mask


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene.

    image: RGB, size x size. mask: uint8 (size, size), 0 to 255, the subject's visible part with soft edges.
    box: (x0, y0, x1, y1) in pixels, float, around the mask's pixels of at least half. place: its short name, whose
    phrase is in `caption` as `phrase`. time, weather, action and size_word: the names in `miniature.grammar`.
    """

    seed: int
    image: Image.Image
    mask: Mask
    box: Box
    class_name: str
    place: str
    phrase: str
    caption: str
    instance: Instance
    time: str
    weather: str
    action: str
    size_word: str
    second: SecondObject | None


def is_held_out_seed(seed: int) -> bool:
    """Whether `seed` is kept from every training."""
    return seed >= HELD_OUT_SEEDS


def make_scene(
    seed: int,
    *,
    instance: Instance | None = None,
    class_name: str | None = None,
    place: str | None = None,
    time: str | None = None,
    weather: str | None = None,
    action: str | None = None,
    size_word: str | None = None,
    second: bool | None = None,
    size: int = 128,
) -> Scene:
    """The scene of `seed`; whatever is given replaces what chance would choose, and changes nothing else.

    `second` says whether another object stands beside the subject (by chance, in 30% of scenes). `size` is in pixels.
    Raises ValueError for a name that the world does not have.
    """
    choices = np.random.default_rng((seed, _CHOICES))
    chosen_class = CLASSES[int(choices.integers(len(CLASSES)))]
    chosen_place = PLACES[int(choices.integers(len(PLACES)))]
    chosen_time = _sometimes(choices, TIME_PHRASES, 0.22)
    chosen_weather = _sometimes(choices, WEATHER_PHRASES, 0.22)
    chosen_action = _sometimes(choices, ACTION_PHRASES, 0.20)
    chosen_size = _sometimes(choices, SIZE_WORDS, 0.24)
    chosen_second = bool(choices.random() < 0.3)

    class_name = instance.class_name if instance is not None else _known(class_name, chosen_class, CLASSES)
    place = _known(place, chosen_place, PLACES)
    time = _known(time, chosen_time, tuple(TIME_PHRASES))
    weather = _known(weather, chosen_weather, tuple(WEATHER_PHRASES))
    action = _known(action, chosen_action, tuple(ACTION_PHRASES))
    size_word = _known(size_word, chosen_size, tuple(SIZE_WORDS))
    if instance is None:
        instance = sample_instance(class_name, np.random.default_rng((seed, _INSTANCE)))

    image, ground = draw_place(place, np.random.default_rng((seed, _PLACE)), time=time, weather=weather, size=size)
    layout = np.random.default_rng((seed, _LAYOUT))
    other = _other_instance(seed, class_name) if (chosen_second if second is None else second) else None
    mask, second_object = _compose(image, ground, layout, instance, action, size_word, other)
    if (falling := draw_weather(np.random.default_rng((seed, _WEATHER)), weather=weather, size=size)) is not None:
        image.paste(falling[0], (0, 0), falling[1])

    words = np.random.default_rng((seed, _CAPTION))
    phrase = _pick(words, PHRASES[place])
    parts = CaptionParts(
        class_name,
        phrase,
        action=_pick(words, ACTION_PHRASES[action]),
        time=_pick(words, TIME_PHRASES[time]),
        weather=_pick(words, WEATHER_PHRASES[weather]),
        size_word=_pick(words, SIZE_WORDS[size_word]),
        beside=_pick(words, BESIDE),
        second=other.class_name if words.random() < 0.6 and other is not None else "",
    )
    return Scene(
        seed=seed,
        image=image,
        mask=mask,
        box=mask_box(mask),
        class_name=class_name,
        place=place,
        phrase=phrase,
        caption=write_caption(parts, words),
        instance=instance,
        time=time,
        weather=weather,
        action=action,
        size_word=size_word,
        second=second_object,
    )


def mask_box(mask: Mask) -> Box:
    """The box (x0, y0, x1, y1) around a mask's pixels of at least 128; ValueError where there is none."""
    columns = np.flatnonzero((mask >= 128).any(axis=0))
    rows = np.flatnonzero((mask >= 128).any(axis=1))
    if not len(columns):
        raise ValueError("the mask is empty: a box needs a pixel of at least 128")
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _sometimes(rng: np.random.Generator, phrases: dict[str, tuple[str, ...]], chance: float) -> str:
    """The first name of `phrases`, or by `chance` one of the others."""
    names = list(phrases)
    draw, other = rng.random(), int(rng.integers(1, len(names)))
    return names[other] if draw < chance else names[0]


def _known(given: str | None, chosen: str, names: tuple[str, ...]) -> str:
    if given is None:
        return chosen
    if given not in names:
        raise ValueError(f"the drawn world has no {given!r}: choose one of {', '.join(names)}")
    return given


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """One of `choices`, "" of none; always one draw, so that what follows does not depend on it."""
    draw = rng.random()
    return choices[int(draw * len(choices))] if choices else ""


def _other_instance(seed: int, class_name: str) -> Instance:
    rng = np.random.default_rng((seed, _SECOND))
    others = [name for name in CLASSES if name != class_name]
    return sample_instance(others[int(rng.integers(len(others)))], rng)


def _compose(
    image: Image.Image,
    ground: float,
    rng: np.random.Generator,
    instance: Instance,
    action: str,
    size_word: str,
    other: Instance | None,
) -> tuple[Mask, SecondObject | None]:
    """Draw the subject, and the other object a little behind it, into `image`; returns what is visible of them."""
    size = image.width
    margin = round(_MARGIN * size)
    room = size - 2 * margin
    height_draw, ratio, side_draw, x_draw, base_draw, gap_draw, behind, tilt, beside = rng.uniform(0, 1, 9).tolist()
    flip, other_flip, to_right = (bool(value) for value in rng.integers(0, 2, 3))

    low, high = _HEIGHTS[size_word]
    if other is not None:  # Room for both.
        low, high = (low, high - 0.04) if size_word == "large" else (0.45, high - 0.09)
    side = round(size * (low + (high - low) * height_draw))
    subject = draw_subject(instance, side, flip=flip)
    if action == "leaning":
        angle = (12 + 10 * tilt) * (1 if side_draw < 0.5 else -1)
        subject = subject.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    elif action == "upside down":
        subject = subject.transpose(Image.Transpose.ROTATE_180)
    subject = _trimmed(subject, room)
    lift = round(size * (0.07 + 0.1 * gap_draw)) if action == "floating" else 0

    width, height = subject.size
    companion, spread = None, 0
    if other is not None:
        gap = round(size * (0.05 * beside - 0.03))  # Below zero, the subject covers a little of it.
        companion = _fitted(other, round(side * (0.54 + 0.16 * ratio)), room - width - gap, flip=other_flip)
        spread = companion.width + gap

    highest = max(margin + height + lift, round((ground + 0.08) * size))
    base = min(size - margin, highest + round(base_draw * max(0, size - margin - highest)))
    lift = min(lift, base - height - margin)
    left = margin + round(x_draw * (room - width - spread)) + (0 if to_right else spread)

    alpha = np.zeros((size, size), np.uint8)
    other_alpha = None
    if companion is not None:
        other_left = left + width + spread - companion.width if to_right else left - spread
        other_base = max(base - round(0.05 * size * behind), companion.height + margin)
        other_alpha = _stand(image, companion, other_left, other_base, 0)
    alpha = _stand(image, subject, left, base, lift)
    if other is None or other_alpha is None:
        return alpha, None
    visible = (other_alpha.astype(np.uint16) * (255 - alpha) // 255).astype(np.uint8)
    return alpha, SecondObject(other.class_name, other, mask_box(visible), visible)


def _fitted(instance: Instance, side: int, width: int, *, flip: bool) -> Image.Image:
    """The instance at the height `side`, or smaller where it would be wider than `width`."""
    picture = _trimmed(draw_subject(instance, side, flip=flip), side)
    if picture.width > width:
        picture = _trimmed(draw_subject(instance, side * width // picture.width, flip=flip), width)
    return picture


def _trimmed(picture: Image.Image, limit: int) -> Image.Image:
    """The picture without its empty margin, made smaller where it is larger than `limit`."""
    box = picture.getchannel("A").point(lambda value: 255 if value >= 16 else 0).getbbox()
    assert box is not None, "a subject was drawn as nothing"
    picture = picture.crop(box)
    if max(picture.size) > limit:
        picture.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    return picture


def _stand(image: Image.Image, picture: Image.Image, left: int, base: int, lift: int) -> Mask:
    """Paste a subject with its lowest row at `base` - `lift`, over a soft shadow at `base`; returns its alpha."""
    size = image.width
    across = picture.width * (0.5 if lift == 0 else 0.4)
    x = (np.arange(size, dtype=np.float32) - (left + picture.width / 2)) / across
    y = (np.arange(size, dtype=np.float32) - (base - 0.012 * size)) / (0.035 * size + 0.06 * across)
    strength = 0.42 if lift == 0 else 0.3
    shade = strength * 255 * np.outer(np.exp(-(y**2)), np.exp(-(x**4)))
    image.paste((38, 38, 56), (0, 0, size, size), Image.fromarray(shade.astype(np.uint8)))
    top = base - lift - picture.height
    image.paste(picture, (left, top), picture)
    alpha = np.zeros((size, size), np.uint8)
    alpha[top : top + picture.height, left : left + picture.width] = np.asarray(picture.getchannel("A"))
    return alpha
