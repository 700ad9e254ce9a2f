"""Text examples drawn from the grammar: requests with captions for the Llama, truthful phrases for CLIP."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from miniature.grammar import (
    EXTRAS,
    SIZE_WORDS,
    TEMPLATES,
    TIME_PHRASES,
    WEATHER_PHRASES,
    CaptionParts,
    say_extra,
    with_article,
    write_caption,
)
from miniature.places import PHRASES, PLACES
from miniature.subjects import CLASSES


@dataclass(frozen=True)
class Request:
    """What the caption stage asks for, and one caption that fulfils it."""

    subject: str
    place: str
    extra: str | None
    caption: str


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def sample_request(rng: np.random.Generator) -> Request:
    """A class, a phrase for a place, by chance an extra; the caption may add a size or a second object."""
    subject, place = pick(rng, CLASSES), pick(rng, PHRASES[pick(rng, PLACES)])
    extra = pick(rng, EXTRAS) if rng.random() < 0.6 else None
    parts = CaptionParts(subject, place)
    if extra is not None:
        parts = say_extra(parts, extra)
    if rng.random() < 0.2:
        parts = replace(parts, size_word=pick(rng, tuple(word for words in SIZE_WORDS.values() for word in words)))
    if rng.random() < 0.12:
        second = pick(rng, CLASSES)
        parts = replace(parts, second="" if second == subject else second)
    return Request(subject, place, extra, write_caption(parts, rng))


ATTRIBUTES = ("class", "place", "time", "weather")


def sample_phrase(scene: dict[str, Any], rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """A phrase that is true of a scene, and which attributes it states.

    Often it is the scene's own caption, otherwise some of class, place, time and weather: CLIP should read each
    of them alone.
    """
    if rng.random() < 0.3:
        return scene["caption"], {name: scene[name] for name in ATTRIBUTES}
    chance = rng.random()
    said = {"class"} if chance < 0.25 else {"place"} if chance < 0.45 else {"class", "place"}
    extras = []
    for name, phrases in (("weather", WEATHER_PHRASES), ("time", TIME_PHRASES)):
        if phrases[scene[name]] and rng.random() < 0.4:
            said.add(name)
            extras.append(pick(rng, phrases[scene[name]]))
    thing = with_article(scene["class"]) if "class" in said else ""
    place = pick(rng, PHRASES[scene["place"]]) if "place" in said else ""
    rest = " ".join(phrase for phrase in (place, *extras) if phrase)
    if thing:
        text = pick(rng, TEMPLATES).format(thing=thing, rest=rest).strip()
    else:
        text = pick(rng, ("{}", "a photo {}", "a picture {}")).format(rest)
    return text, {name: scene[name] for name in said}
