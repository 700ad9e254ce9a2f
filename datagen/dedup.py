"""Dedup: duplicates and highly similar captions go, and none of the classes gets more than its share (paper S1)."""

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


class CaptionIndex:
    """All captions kept so far: finds what a new one repeats, and counts classes and places."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.next_shard = 0
        self.classes: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self._kept: list[tuple[str, str]] = []
        self._exact: dict[str, int] = {}
        self._buckets: dict[tuple[int, tuple[int, ...]], list[int]] = {}

    def match(self, caption: str) -> Match | None:
        """The most similar kept caption at or above the threshold; the earliest of equals."""
        words = normalized_words(caption)
        if (exact := self._exact.get(" ".join(words))) is not None:
            return Match(*self._kept[exact], similarity=1.0)
        own, best = shingles(words), None
        candidates = {number for bucket in self._bands(own) for number in self._buckets.get(bucket, ())}
        for number in sorted(candidates):
            other = shingles(normalized_words(self._kept[number][1]))
            similarity = len(own & other) / len(own | other)
            if similarity >= self.config.near_duplicate and (best is None or similarity > best.similarity):
                best = Match(*self._kept[number], similarity=similarity)
        return best

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a caption record."""
        words, number = normalized_words(record["caption"]), len(self._kept)
        self._kept.append((record["key"], record["caption"]))
        self._exact.setdefault(" ".join(words), number)
        for bucket in self._bands(shingles(words)):
            self._buckets.setdefault(bucket, []).append(number)
        self.classes[record["class"]] += 1
        self.places[record["class"], record["place"] or ""] += 1

    def _bands(self, own: set[str]) -> Iterable[tuple[int, tuple[int, ...]]]:
        from rensa import RMinHash

        config = self.config
        sketch = RMinHash(num_perm=config.bands * config.rows, seed=1)
        sketch.update(sorted(own))
        digest = sketch.digest()
        return [(band, tuple(digest[band * config.rows : (band + 1) * config.rows])) for band in range(config.bands)]


def run(plan: ShardPlan, config: DedupConfig, index: CaptionIndex, asked_for: int, earlier: Iterable[Path]) -> Marker:
    """Keep a shard's captions that repeat none before them, in this shard or an earlier one, and exceed no share.

    `asked_for` is the number of captions asked for in this and all earlier shards; `earlier` are the dedup shards
    before this one, read into `index` as far as it has not seen them.
    """
    for path in list(earlier)[index.next_shard :]:
        for record in read_json_lines(path):
            index.add(record)
        index.next_shard += 1
    assert index.next_shard == plan.index, "the index holds captions of later shards"
    class_limit = math.ceil(config.max_class_share * asked_for)
    place_limit = math.ceil(config.max_class_and_place_share * asked_for)
    with plan.writing() as out:
        for record in read_json_lines(plan.inputs[0]):
            kind, place = record["class"], record["place"] or ""
            if (match := index.match(record["caption"])) is not None:
                reason = "exact duplicate" if match.similarity == 1.0 else "near duplicate"
                matched = {"key": match.key, "caption": match.caption, "similarity": round(match.similarity, 4)}
                out.reject(record, reason, matched=matched)
            elif index.classes[kind] >= class_limit:
                out.reject(record, "class cap", limit=class_limit)
            elif index.places[kind, place] >= place_limit:
                out.reject(record, "class and place cap", limit=place_limit)
            else:
                index.add(record)
                out.add(record)
    index.next_shard += 1
    assert out.marker is not None
    return out.marker
