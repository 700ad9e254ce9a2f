"""Dedup: captions too short, too long or unfit go, then duplicates and highly similar ones, and none of the classes
gets more than its share (paper S1)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from datagen.config import StageConfig
from shards.files import records_with_lines
from shards.markers import Marker
from shards.stage import ShardPlan

if TYPE_CHECKING:
    from datagen.caption_index import CaptionIndex

DEDUP_VERSION = 2

# Captions worked on at a time: enough for arrays to pay, and what is kept does not depend on it.
CHUNK = 512


class DedupConfig(StageConfig):
    """What counts as a duplicate, and how large a share of all captions asked for a class may take.

    Shares, not counts, so that a dataset can grow without changing what it has. `bands` times `rows` MinHash values
    find candidates; whether one is a near duplicate is decided by the Jaccard similarity of words and word pairs.
    """

    min_words: int = Field(default=3, ge=0)
    max_words: int = Field(default=60, ge=1, description="text encoders read 77 tokens")
    blocked_words: tuple[str, ...] = Field(default=(), description="words and phrases, in singular or plural")
    near_duplicate: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity of words and word pairs")
    max_class_share: float = Field(default=0.1, gt=0, le=1)
    max_class_and_place_share: float = Field(default=0.02, gt=0, le=1)
    bands: int = Field(default=20, ge=1)
    rows: int = Field(default=6, ge=1)


class _Separators(dict[int, str]):
    """For `str.translate`: letters, digits, underscores and line ends stay, all else becomes a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = character if character.isalnum() or character in "_\n" else " "
        return self[code]


_SEPARATORS = _Separators()


def normalized(text: str) -> str:
    """Text without case, punctuation and compatibility forms: words and spaces; lines stay lines."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_SEPARATORS)


def normalized_words(caption: str) -> list[str]:
    """A caption's words as they are compared."""
    return normalized(caption).split()


class BlockedWords:
    """Finds words and phrases among a caption's normalized words, in the singular or with a plural ending."""

    def __init__(self, words: Iterable[str]) -> None:
        phrases = [phrase for word in words if (phrase := normalized_words(word))]
        self._pattern = re.compile(rf"\b(?:{'|'.join(' '.join(phrase) for phrase in phrases)})(?:s|es)?\b")
        # Hardly any caption holds a word that a phrase begins with, and that shows in a tenth of the time.
        self._first = {phrase[0] + ending for phrase in phrases for ending in ("", "s", "es")}

    def find(self, words: Sequence[str]) -> str | None:
        """The first one found, as it stands in the caption; None where there is none."""
        if self._first.isdisjoint(words):
            return None
        found = self._pattern.search(" ".join(words))
        return found and found[0]


def chunks(path: Path) -> Iterator[tuple[list[dict[str, Any]], list[bytes]]]:
    """The records of a JSON-lines file and their lines, `CHUNK` at a time."""
    found = records_with_lines(path)
    while chunk := list(islice(found, CHUNK)):
        yield [record for record, _ in chunk], [line for _, line in chunk]


def run(plan: ShardPlan, config: DedupConfig, index: CaptionIndex, asked_for: int) -> Marker:
    """Keep a shard's fit captions that repeat none before them, in this shard or an earlier one, and exceed no share.

    `asked_for` is the number of captions asked for in this and all earlier shards, which are read into `index` as far
    as it has not seen them.
    """
    assert index.next_shard <= plan.index, "the index holds captions of later shards"
    while index.next_shard < plan.index:
        index.read(plan.sibling(index.next_shard))
    class_limit = math.ceil(config.max_class_share * asked_for)
    place_limit = math.ceil(config.max_class_and_place_share * asked_for)
    blocked = BlockedWords(config.blocked_words)
    shortest, longest, classes, places = config.min_words, config.max_words, index.classes, index.places
    with plan.writing() as out:
        for chunk, lines in chunks(plan.inputs[0]):
            sketches, known, kept = index.sketch(chunk), len(index), list[int]()
            matches, counts = index.matches(sketches), sketches.words.tolist()
            rows = zip(chunk, lines, sketches.texts, counts, strict=True)
            for position, (record, line, text, words) in enumerate(rows):
                kind, place, match = record["class"], record["place"] or "", None
                if position in matches:
                    match = next((one for one in matches[position] if one[0] < known or one[0] - known in kept), None)
                if not shortest <= words <= longest:
                    out.reject(record, "too few words" if words < shortest else "too many words", words=words)
                elif (word := blocked.find(text.split())) is not None:
                    out.reject(record, "blocked word", word=word)
                elif match is not None:
                    number, similarity = match
                    reason = "exact duplicate" if similarity == 1.0 else "near duplicate"
                    other = index.kept(number) if number < known else chunk[number - known]
                    matched = {"key": other["key"], "caption": other["caption"], "similarity": round(similarity, 4)}
                    out.reject(record, reason, matched=matched)
                elif (of_class := classes[kind]) >= class_limit:
                    out.reject(record, "class cap", limit=class_limit)
                elif (of_place := places[kind, place]) >= place_limit:
                    out.reject(record, "class and place cap", limit=place_limit)
                else:
                    kept.append(position)
                    classes[kind], places[kind, place] = of_class + 1, of_place + 1
                    out.add(record, line=line)
            index.keep(chunk, sketches, kept)
    index.next_shard += 1
    return out.marker
