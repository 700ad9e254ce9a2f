"""Dedup: captions too short, too long or unfit go, then duplicates and highly similar ones, and none of the classes
gets more than its share (paper S1)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from datagen.config import StageConfig
from shards.files import read_json_lines
from shards.markers import Marker
from shards.stage import ShardPlan

DEDUP_VERSION = 1


class DedupConfig(StageConfig):
    """What counts as a duplicate, and how large a share of all captions asked for a class may take.

    Shares, not counts, so that a dataset can grow without changing what it has. `bands` times `rows` MinHash values
    find candidates; whether one is a near duplicate is decided by the exact Jaccard similarity of word sets.
    """

    min_words: int = Field(default=3, ge=0)
    max_words: int = Field(default=60, ge=1, description="text encoders read 77 tokens")
    blocked_words: tuple[str, ...] = Field(default=(), description="words and phrases, in singular or plural")
    near_duplicate: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity of words and word pairs")
    max_class_share: float = Field(default=0.1, gt=0, le=1)
    max_class_and_place_share: float = Field(default=0.02, gt=0, le=1)
    bands: int = Field(default=20, ge=1)
    rows: int = Field(default=6, ge=1)


@dataclass(frozen=True)
class Match:
    """An earlier caption that a new one repeats, and their similarity from 0 to 1."""

    key: str
    caption: str
    similarity: float


def normalized_words(caption: str) -> list[str]:
    """A caption's words without case, punctuation and compatibility forms."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", caption).casefold())


def shingles(words: list[str]) -> set[str]:
    """Words and neighbouring pairs: pairs alone would make short captions look less alike than they read."""
    return {*words, *(f"{first} {second}" for first, second in zip(words, words[1:], strict=False))}


@dataclass(frozen=True)
class Prepared:
    """A caption as the index compares it: normalized text, shingles, and the buckets of its MinHash bands."""

    text: str
    shingles: set[str]
    buckets: list[int]


class CaptionIndex:
    """All captions kept so far: finds what a new one repeats, and counts classes and places."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.next_shard = 0
        self.classes: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self._kept: list[tuple[str, str]] = []
        self._exact: dict[str, int] = {}
        # Nearly all buckets hold one caption: a list for each would be most of the index's memory.
        self._first: dict[int, int] = {}
        self._others: dict[int, list[int]] = {}

    def prepare(self, caption: str) -> Prepared:
        """What `match` and `add` need of a caption, made once for both."""
        from rensa import RMinHash

        words, rows = normalized_words(caption), self.config.rows
        own = shingles(words)
        sketch = RMinHash(num_perm=self.config.bands * rows, seed=1)
        sketch.update(sorted(own))
        digest = sketch.digest()
        # A hash that two bands share by chance adds a candidate, which the exact comparison then turns down.
        buckets = [hash((band, *digest[band * rows : (band + 1) * rows])) for band in range(self.config.bands)]
        return Prepared(" ".join(words), own, buckets)

    def match(self, caption: Prepared) -> Match | None:
        """The most similar kept caption at or above the threshold; the earliest of equals."""
        if (exact := self._exact.get(caption.text)) is not None:
            return Match(*self._kept[exact], similarity=1.0)
        candidates = {self._first[bucket] for bucket in caption.buckets if bucket in self._first}
        candidates.update(*(self._others[bucket] for bucket in caption.buckets if bucket in self._others))
        best = None
        for number in sorted(candidates):
            other = shingles(normalized_words(self._kept[number][1]))
            similarity = len(caption.shingles & other) / len(caption.shingles | other)
            if similarity >= self.config.near_duplicate and (best is None or similarity > best.similarity):
                best = Match(*self._kept[number], similarity=similarity)
        return best

    def add(self, record: Mapping[str, Any], caption: Prepared) -> None:
        """Keep a caption record."""
        number = len(self._kept)
        self._kept.append((record["key"], record["caption"]))
        self._exact.setdefault(caption.text, number)
        for bucket in caption.buckets:
            if self._first.setdefault(bucket, number) != number:
                self._others.setdefault(bucket, []).append(number)
        self.classes[record["class"]] += 1
        self.places[record["class"], record["place"] or ""] += 1


def blocked_pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    """What finds any of the words or phrases in a normalized caption, in the singular or with a plural ending."""
    phrases = [" ".join(normalized_words(word)) for word in words]
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, phrases))})(?:s|es)?\b") if phrases else None


def run(plan: ShardPlan, config: DedupConfig, index: CaptionIndex, asked_for: int, earlier: Iterable[Path]) -> Marker:
    """Keep a shard's fit captions that repeat none before them, in this shard or an earlier one, and exceed no share.

    `asked_for` is the number of captions asked for in this and all earlier shards; `earlier` are the dedup shards
    before this one, read into `index` as far as it has not seen them.
    """
    for path in list(earlier)[index.next_shard :]:
        for record in read_json_lines(path):
            index.add(record, index.prepare(record["caption"]))
        index.next_shard += 1
    assert index.next_shard == plan.index, "the index holds captions of later shards"
    class_limit = math.ceil(config.max_class_share * asked_for)
    place_limit = math.ceil(config.max_class_and_place_share * asked_for)
    blocked = blocked_pattern(config.blocked_words)
    with plan.writing() as out:
        for record in read_json_lines(plan.inputs[0]):
            kind, place, caption = record["class"], record["place"] or "", index.prepare(record["caption"])
            words = caption.text.count(" ") + 1
            if words < config.min_words:
                out.reject(record, "too few words", words=words)
            elif words > config.max_words:
                out.reject(record, "too many words", words=words)
            elif blocked is not None and (word := blocked.search(caption.text)) is not None:
                out.reject(record, "blocked word", word=word[0])
            elif (match := index.match(caption)) is not None:
                reason = "exact duplicate" if match.similarity == 1.0 else "near duplicate"
                matched = {"key": match.key, "caption": match.caption, "similarity": round(match.similarity, 4)}
                out.reject(record, reason, matched=matched)
            elif index.classes[kind] >= class_limit:
                out.reject(record, "class cap", limit=class_limit)
            elif index.places[kind, place] >= place_limit:
                out.reject(record, "class and place cap", limit=place_limit)
            else:
                index.add(record, caption)
                out.add(record)
    index.next_shard += 1
    assert out.marker is not None
    return out.marker
