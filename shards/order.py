"""Training order: a pure function of (seed, epoch, position), the same for any number of workers and GPUs."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence

import numpy as np


def _permutation(count: int, *seed: int) -> np.ndarray:
    # Sorting raw draws instead of Generator.permutation: numpy keeps the bit stream stable between versions,
    # but not what its distributions make of it.
    draws = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(draws, kind="stable")


class TrainingOrder:
    """The order in which an epoch visits the records of several shards.

    The shards are permuted, cut into groups of `group_size`, and records are shuffled within a group, so that only a
    group's shards are open at a time. `counts` are the shards' numbers of records (see `TripletShards.counts`).
    Raises ValueError if there is no record at all.
    """

    def __init__(self, counts: Sequence[int], seed: int, group_size: int = 16) -> None:
        if not sum(counts):
            raise ValueError("there is no record to train on: all shards are empty")
        if group_size < 1:
            raise ValueError(f"group_size is {group_size}, should be at least 1")
        self.counts = tuple(int(count) for count in counts)
        self.seed = seed
        self.group_size = group_size
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)
        self._group = functools.lru_cache(maxsize=4)(self._plan_group)

    def __len__(self) -> int:
        """Records in an epoch."""
        return sum(self.counts)

    def __reduce__(self) -> tuple[type, tuple[tuple[int, ...], int, int]]:
        return type(self), (self.counts, self.seed, self.group_size)

    def at(self, epoch: int, position: int) -> tuple[int, int]:
        """(shard, index in the shard) of the record at a position of an epoch; IndexError past the epoch's end."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside an epoch of {len(self)} records")
        groups, starts = self._epoch(epoch)
        group = bisect.bisect_right(starts, position) - 1
        shard, index = self._group(epoch, group)[position - starts[group]]
        return int(shard), int(index)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, position) of the record at a step counted from the start of training."""
        return divmod(step, len(self))

    def _plan_epoch(self, epoch: int) -> tuple[list[np.ndarray], list[int]]:
        shards = _permutation(len(self.counts), self.seed, epoch)
        groups = [shards[start : start + self.group_size] for start in range(0, len(shards), self.group_size)]
        starts, total = [], 0
        for group in groups:
            starts.append(total)
            total += sum(self.counts[shard] for shard in group)
        return groups, starts

    def _plan_group(self, epoch: int, group: int) -> np.ndarray:
        shards = self._epoch(epoch)[0][group]
        records = np.array([(shard, index) for shard in shards for index in range(self.counts[shard])])
        return records[_permutation(len(records), self.seed, epoch, group + 1)]
