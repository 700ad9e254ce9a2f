"""Captions as dedup compares them: shingles for the Jaccard similarity, and MinHash bands that find candidates for it.

Many captions are worked on at a time, as flat arrays: bytes to words, words to shingles, shingles to bands of hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datagen.dedup import normalized

Array = NDArray[Any]

# Odd numbers of 64 bits; those of `MIX` are splitmix64's.
BASE, FIRST_OF_PAIR = np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA0761D6478BD642F)
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
HALF, SHIFT = np.uint64(32), np.uint64(29)


def shingles(words: list[str]) -> set[str]:
    """Words and neighbouring pairs: pairs alone would make short captions look less alike than they read."""
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}


@dataclass(frozen=True)
class Sets:
    """Sets of 32-bit numbers behind each other in `numbers`: set i has `sizes[i]` of them from `starts[i]` on."""

    numbers: Array
    starts: Array
    sizes: Array

    def chosen(self, which: Array) -> Array:
        """The numbers of some sets, a set's place among those chosen in the upper 32 of 64 bits."""
        sizes = self.sizes[which]
        places = np.repeat(np.arange(len(which)), sizes)
        skipped = self.starts[which] - (np.cumsum(sizes) - sizes)
        numbers = self.numbers[np.arange(len(places)) + skipped[places]]
        return places.astype(np.uint64) << HALF | numbers


def similarities(sets: Sets, which: Array, others: Sets, which_others: Array) -> Array:
    """Jaccard similarities of pairs of sets, float64; those of two empty sets are 1."""
    both = np.sort(np.concatenate([sets.chosen(which), others.chosen(which_others)]))
    common = np.bincount((both[1:][both[1:] == both[:-1]] >> HALF).astype(np.intp), minlength=len(which))
    union = sets.sizes[which] + others.sizes[which_others] - common
    return np.where(union == 0, 1.0, common / np.maximum(union, 1))


@dataclass(frozen=True)
class Sketches:
    """Captions as they are compared: normalized texts, numbers of words, hashed shingles, and the bucket of each band.

    `buckets` is (captions, bands) uint32; the remainder by the number of bands is the band's own number.
    """

    texts: list[str]
    words: Array
    shingles: Sets
    buckets: Array


def sketch(captions: Sequence[str], bands: int, rows: int) -> Sketches:
    """What is compared of captions: a function of each alone, whichever others stand beside it."""
    text = normalized("".join(caption.replace("\n", " ") + "\n" for caption in captions))
    owners, words = _hashed_words(text)
    follows = owners[1:] == owners[:-1]
    pairs = (words[:-1] * FIRST_OF_PAIR + words[1:])[follows]
    found = np.concatenate([owners, owners[1:][follows]]).astype(np.uint64) << HALF
    found = np.sort(found | np.concatenate([words, pairs]) >> HALF)
    found = found[np.diff(found, prepend=~np.uint64(0)) != 0]
    sizes = np.bincount((found >> HALF).astype(np.intp), minlength=len(captions))
    own = Sets(found.astype(np.uint32), np.cumsum(sizes) - sizes, sizes)
    counts = np.bincount(owners, minlength=len(captions))
    return Sketches(text.split("\n")[:-1], counts, own, _buckets(own, bands, rows))


def _hashed_words(text: str) -> tuple[Array, Array]:
    """The line and a 64-bit hash of each word of a normalized text."""
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    edges = np.flatnonzero(np.diff(data > ord(" "), prepend=False))
    starts, ends = edges[::2], edges[1::2]
    # A polynomial over a word's bytes, as a difference of sums over all bytes before its end and its start.
    powers = np.full(len(data) + 1, BASE)
    powers[0] = 1
    powers = np.cumprod(powers)
    inverse = np.full(len(data) + 1, pow(int(BASE), -1, 2**64), dtype=np.uint64)
    inverse[0] = 1
    inverse = np.cumprod(inverse)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(data * powers[:-1])])
    lines = np.searchsorted(np.flatnonzero(data == ord("\n")), starts)
    return lines, _mixed((sums[ends] - sums[starts]) * inverse[starts])


def _mixed(numbers: Array) -> Array:
    """Numbers of 64 bits, each bit of which depends on all bits of what they were (splitmix64's finalizer)."""
    for factor in MIX:
        numbers = (numbers ^ numbers >> SHIFT) * factor
    return numbers ^ numbers >> SHIFT


def _buckets(sets: Sets, bands: int, rows: int) -> Array:
    """The bucket of each set in each band, from `bands` times `rows` MinHash values of the set."""
    generator = np.random.Generator(np.random.PCG64(1))
    factors = generator.integers(2**31, size=bands * rows, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    weights = generator.integers(2**63, size=rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    # Sets by falling size: those that have an nth number come first, and each step works on one block.
    order = np.argsort(-sets.sizes, kind="stable")
    starts, having = sets.starts[order], np.cumsum(np.bincount(sets.sizes)[::-1])[::-1]
    least = np.full((len(order), bands * rows), 2**32 - 1, dtype=np.uint32)
    hashed = np.empty_like(least)
    for nth, count in enumerate(having[1:]):
        np.multiply(sets.numbers[starts[:count] + nth][:, None], factors, out=hashed[:count])
        np.minimum(least[:count], hashed[:count], out=least[:count])
    values = least.reshape(len(order), bands, rows).astype(np.uint64)
    hashes = _mixed(values @ weights) >> np.uint64(33)
    buckets = np.empty((len(order), bands), dtype=np.uint32)
    buckets[order] = hashes // np.uint64(bands) * np.uint64(bands) + np.arange(bands, dtype=np.uint64)
    return buckets
