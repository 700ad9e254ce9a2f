"""The taxonomy that captions are asked for: classes, places and extras, as data in a JSON file."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class SubjectClass(BaseModel):
    """A kind of thing: `name` is what counts and caps go by, `noun` is what the caption calls it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    noun: str = Field(min_length=1)
    name: str = Field(min_length=1, alias="class")


class Request(BaseModel):
    """What one caption is asked to be about."""

    model_config = ConfigDict(frozen=True)
    subject: str
    class_name: str
    place: str
    extra: str | None


class Taxonomy(BaseModel):
    """Classes (nouns, or `{"noun", "class"}`), places ("on a beach") and extras ("at sunset") to draw requests from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[SubjectClass, ...] = Field(min_length=1)
    places: tuple[str, ...] = Field(min_length=1)
    extras: tuple[str, ...] = ()

    @field_validator("classes", mode="before")
    @classmethod
    def _plain_nouns(cls, classes: object) -> object:
        if not isinstance(classes, (list, tuple)):
            return classes
        return [{"noun": item, "class": item} if isinstance(item, str) else item for item in classes]

    def request(self, seed: int, extra_share: float = 0.5) -> Request:
        """The request drawn by a seed; a share of them carries an extra."""
        # A seeded Mersenne Twister's `random()` is the same in every Python version; its other methods need not be.
        draw = random.Random(seed).random
        subject = self.classes[int(draw() * len(self.classes))]
        place = self.places[int(draw() * len(self.places))]
        has_extra, position = draw() < extra_share, draw()
        extra = self.extras[int(position * len(self.extras))] if has_extra and self.extras else None
        return Request(subject=subject.noun, class_name=subject.name, place=place, extra=extra)


def load_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy file; raises FileNotFoundError or ValueError with what is wrong, in one line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"taxonomy {path} does not exist: name a JSON file with classes and places") from None
    except ValueError as error:
        raise ValueError(f"taxonomy {path} is not JSON: {error}") from None
    try:
        return Taxonomy.model_validate(content)
    except ValueError as error:
        raise ValueError(f"taxonomy {path}: {' '.join(str(error).split())}") from None
