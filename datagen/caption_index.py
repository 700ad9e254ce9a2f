"""The index of dedup: all captions kept so far, by the buckets of their MinHash bands, in a few flat arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datagen.dedup import DedupConfig, chunks
from datagen.sketches import HALF, Array, Sets, Sketches, similarities, sketch

BLOCK = 2**18


class Growing:
    """An array that grows at its end."""

    def __init__(self, dtype: Any) -> None:
        self._room, self._used = np.empty(1024, dtype), 0

    @property
    def values(self) -> Array:
        """All that was appended, to be read and written in place."""
        return self._room[: self._used]

    def append(self, values: Array) -> None:
        """Put values at the end."""
        end = self._used + len(values)
        if end > len(self._room):
            room = np.empty(max(end, len(self._room) * 5 // 4), self._room.dtype)
            room[: self._used] = self.values
            self._room = room
        self._room[self._used : end] = values
        self._used = end


class CaptionIndex:
    """All captions kept so far, numbered 0, 1, ...: finds what a new one repeats, and counts classes and places.

    Its hash table is one of chains: entry `number * bands + band` is the bucket of a caption in a band, `_heads` holds
    the latest entry of each slot, `_before` the entry before each entry in its slot; -1 where there is none.
    """

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.next_shard = 0
        self.classes: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self._heads = np.full(1, -1, dtype=np.int32)
        self._buckets, self._before = Growing(np.uint32), Growing(np.int32)
        self._shingles, self._starts, self._sizes = Growing(np.uint32), Growing(np.int64), Growing(np.int32)
        # Key and caption of each, behind each other: as strings they would take three times the memory.
        self._texts, self._ends = bytearray(), Growing(np.int64)

    def __len__(self) -> int:
        return len(self._sizes.values)

    def read(self, shard: Path) -> None:
        """Keep what the dedup shard number `next_shard` kept."""
        for chunk, _ in chunks(shard):
            self.keep(chunk, self.sketch(chunk), range(len(chunk)))
            for record in chunk:
                self.count(record)
        self.next_shard += 1

    def sketch(self, records: Sequence[Mapping[str, Any]]) -> Sketches:
        """What `matches` and `keep` need of caption records, made once for both."""
        return sketch([record["caption"] for record in records], self.config.bands, self.config.rows)

    def count(self, record: Mapping[str, Any]) -> None:
        """Count a kept record's class and place."""
        self.classes[record["class"]] += 1
        self.places[record["class"], record["place"] or ""] += 1

    def kept(self, number: int) -> dict[str, str]:
        """Key and caption of a kept record."""
        start, end = (int(self._ends.values[number - 1]) if number else 0), int(self._ends.values[number])
        key, _, caption = self._texts[start:end].decode("utf-8", "surrogatepass").partition(" ")
        return {"key": key, "caption": caption}

    def keep(self, records: Sequence[Mapping[str, Any]], sketches: Sketches, positions: Sequence[int]) -> None:
        """Keep the captions of the records at some positions; their numbers follow those of the captions before."""
        which, own = np.array(positions, dtype=np.intp), sketches.shingles
        lines = [f"{records[position]['key']} {records[position]['caption']}" for position in positions]
        texts = [line.encode("utf-8", "surrogatepass") for line in lines]
        self._ends.append(len(self._texts) + np.cumsum([len(text) for text in texts], dtype=np.int64))
        self._texts += b"".join(texts)
        sizes = own.sizes[which]
        self._starts.append(len(self._shingles.values) + np.cumsum(sizes) - sizes)
        self._sizes.append(sizes)
        self._shingles.append(own.chosen(which).astype(np.uint32))
        start = len(self._buckets.values)
        self._buckets.append(sketches.buckets[which].ravel())
        self._before.append(np.full(len(which) * self.config.bands, -1))
        end = len(self._buckets.values)
        if end > len(self._heads):
            assert end < 2**31, "an entry has 31 bits"
            self._heads, start = np.full(2 ** end.bit_length(), -1, dtype=np.int32), 0
        for first in range(start, end, BLOCK):
            self._link(first, min(first + BLOCK, end))

    def _link(self, first: int, end: int) -> None:
        heads, before = self._heads, self._before.values
        entries, slots = np.arange(first, end), self._slots(self._buckets.values[first:end])
        while len(entries):
            before[entries] = heads.take(slots)
            heads[slots] = entries
            # Of those that share a slot one was written: the others go on top of it, one a turn.
            left = np.flatnonzero(heads.take(slots) != entries)
            entries, slots = entries[left], slots[left]

    def _slots(self, buckets: Array) -> Array:
        return (buckets & np.uint32(len(self._heads) - 1)).astype(np.intp)

    def matches(self, sketches: Sketches) -> dict[int, list[tuple[int, float]]]:
        """Position -> (number, similarity) of the near duplicates of each caption that has any: the most similar first,
        the earliest of equals. The captions themselves count as numbered from `len(self)` on.
        """
        own, kept = sketches.shingles, Sets(self._shingles.values, self._starts.values, self._sizes.values)
        later, earlier = self._kept_candidates(sketches.buckets)
        second, first = _new_candidates(sketches.buckets)
        positions, numbers = np.concatenate([later, second]), np.concatenate([earlier, len(self) + first])
        close = np.concatenate([similarities(own, later, kept, earlier), similarities(own, second, own, first)])
        order = np.lexsort((numbers, -close, positions))
        found: dict[int, list[tuple[int, float]]] = {}
        for place in order[close[order] >= self.config.near_duplicate].tolist():
            found.setdefault(int(positions[place]), []).append((int(numbers[place]), float(close[place])))
        return found

    def _kept_candidates(self, buckets: Array) -> tuple[Array, Array]:
        """Pairs (position, number) of captions with a bucket in common with a kept one, each pair once."""
        wanted, bands = buckets.ravel(), self.config.bands
        positions, entries = np.repeat(np.arange(len(buckets)), bands), self._heads.take(self._slots(wanted))
        pairs = [np.empty(0, dtype=np.int64)]
        while len(there := np.flatnonzero(entries >= 0)):
            positions, wanted, entries = positions[there], wanted[there], entries[there].astype(np.intp)
            equal = np.flatnonzero(self._buckets.values.take(entries) == wanted)
            pairs.append(positions[equal] << 32 | entries[equal] // bands)
            entries = self._before.values.take(entries)
        found = np.unique(np.concatenate(pairs))
        return found >> 32, found & (2**32 - 1)


def _new_candidates(buckets: Array) -> tuple[Array, Array]:
    """Pairs (position, earlier position) of captions with a bucket in common, each pair once."""
    entries = np.sort(buckets.ravel().astype(np.uint64) << HALF | np.arange(buckets.size, dtype=np.uint64))
    shared = np.flatnonzero(np.diff(entries >> HALF) == 0)
    # Few share a bucket: only these are compared, each with each, so that it costs no more where all are alike.
    some = (entries[np.concatenate([shared, shared + 1])] & np.uint64(2**32 - 1)).astype(np.intp) // buckets.shape[1]
    some = np.unique(some)
    later, earlier = np.nonzero(np.tril((buckets[some][:, None] == buckets[some]).any(axis=2), -1))
    return some[later], some[earlier]
