"""The caption grammar of the drawn world: class and place always, more by chance, an instance's looks never."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from miniature.places import PHRASES, PLACES
from miniature.subjects import CLASSES

# What a scene may add, and the words for it. The first name of each, unspoken, is the default.
ACTION_PHRASES: dict[str, tuple[str, ...]] = {
    "standing": (),
    "floating": ("floating in the air", "hovering in the air"),
    "leaning": ("leaning to one side", "tilted to one side"),
    "upside down": ("upside down", "turned upside down"),
}
TIME_PHRASES: dict[str, tuple[str, ...]] = {
    "day": (),
    "sunset": ("at sunset", "in the evening"),
    "night": ("at night", "in the moonlight"),
}
WEATHER_PHRASES: dict[str, tuple[str, ...]] = {
    "clear": (),
    "rain": ("in the rain", "on a rainy day"),
    "snowfall": ("in falling snow", "during a snowfall"),
    "fog": ("in the fog", "on a foggy day"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "medium": (),
    "small": ("small", "little"),
    "large": ("large", "big"),
}
BESIDE: tuple[str, ...] = ("next to", "beside")
TEMPLATES: tuple[str, ...] = (
    "{thing} {rest}",
    "a photo of {thing} {rest}",
    "there is {thing} {rest}",
    "a picture of {thing} {rest}",
    "an image of {thing} {rest}",
)

EXTRAS: tuple[str, ...] = tuple(
    phrase
    for phrases in (ACTION_PHRASES, TIME_PHRASES, WEATHER_PHRASES)
    for choices in phrases.values()
    for phrase in choices
)


@dataclass(frozen=True)
class CaptionParts:
    """What a caption says; an empty string is unsaid. `place` is one of the place's phrases."""

    class_name: str
    place: str
    action: str = ""
    time: str = ""
    weather: str = ""
    size_word: str = ""
    second: str = ""
    beside: str = BESIDE[0]


def with_article(noun: str, size_word: str = "") -> str:
    """`noun` with "a" or "an" and, before it, a word for its size: "an alarm clock", "a small pair of sunglasses"."""
    counted = f"pair of {noun}" if noun.endswith("glasses") else noun
    words = f"{size_word} {counted}".strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def write_caption(parts: CaptionParts, rng: np.random.Generator) -> str:
    """One sentence, in lower case and without a full stop, that says `parts` in one of the grammar's templates."""
    thing = with_article(parts.class_name, parts.size_word)
    second = f"{parts.beside} {with_article(parts.second)}" if parts.second else ""
    circumstances = [phrase for phrase in (parts.weather, parts.time) if phrase]
    template = TEMPLATES[0] if rng.random() < 0.4 else TEMPLATES[1 + int(rng.integers(len(TEMPLATES) - 1))]
    opening = ""
    if circumstances and rng.random() < 0.25:
        opening, template = circumstances.pop() + ", ", TEMPLATES[0]
    rest = " ".join(phrase for phrase in (parts.action, second, parts.place, *circumstances) if phrase)
    return opening + template.format(thing=thing, rest=rest)


def say_extra(parts: CaptionParts, extra: str) -> CaptionParts:
    """`parts` with the phrase `extra`, one of EXTRAS, in its field; ValueError for a phrase the grammar lacks."""
    for field, phrases in (("action", ACTION_PHRASES), ("time", TIME_PHRASES), ("weather", WEATHER_PHRASES)):
        if any(extra in choices for choices in phrases.values()):
            return replace(parts, **{field: extra})
    raise ValueError(f"the grammar has no extra {extra!r}: choose one of {', '.join(EXTRAS)}")


def taxonomy() -> dict[str, list[str]]:
    """What captions may be asked about: the classes, the phrases of the places, and the extra phrases."""
    return {
        "classes": list(CLASSES),
        "places": [phrase for place in PLACES for phrase in PHRASES[place]],
        "extras": list(EXTRAS),
    }


def vocabulary_text() -> list[str]:
    """Sentences that hold every word the grammar can say, each class with each place phrase (for tokenizers)."""
    rng = np.random.default_rng(0)
    sentences = []
    size_words, extras = _endless(SIZE_WORDS), _endless({"": EXTRAS})
    for row, class_name in enumerate(CLASSES):
        for column, phrase in enumerate(taxonomy()["places"]):
            second = CLASSES[(row + column) % len(CLASSES)]
            parts = CaptionParts(
                class_name, phrase, beside=BESIDE[column % 2], second=second if column % 3 == 0 else ""
            )
            parts = replace(say_extra(parts, next(extras)), size_word=next(size_words))
            sentences.append(write_caption(parts, rng))
            thing = with_article(class_name)
            sentences.append(TEMPLATES[column % len(TEMPLATES)].format(thing=thing, rest=phrase))
    return sentences


def _endless(phrases: dict[str, tuple[str, ...]]) -> Iterator[str]:
    while True:
        for choices in phrases.values():
            yield from choices
