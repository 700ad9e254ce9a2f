"""A dataset's blocks of shards on workers: which are next, and what is done between their two parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from datagen.block import Block
from datagen.dataset import Dataset
from flows.build_block import build_stages
from flows.dispatch import Workers, made_on_workers

# Dedup alone needs all captions before a block's own: it parts the block's work in two, and is done here.
BEFORE, DEDUP, AFTER = ("captions",), ("dedup",), ("images", "masks", "gates", "triplets")


def built_on_workers(dataset: Dataset, workers: Workers) -> Iterator[range]:
    """Have a dataset's blocks made, within a flow; yields each, in whatever order, when its triplets are there.

    Raises what `made_on_workers` does, and ValueError where dedup lets nothing through.
    """
    blocks = _Blocks(dataset)
    with closing(made_on_workers(workers, blocks.next_part, blocks.so_far, dataset.look_again)) as parts:
        for part in parts:
            yield from blocks.advance(part)


@dataclass(frozen=True)
class _Part:
    """Stages of a block that a worker makes or is to make."""

    dataset: Dataset
    block: range
    stages: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.stages[0]} {self.block.start:05d} to {self.block.stop - 1:05d}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"first": self.block.start, "last": self.block.stop - 1, "stages": self.stages}

    def is_made(self) -> bool:
        return all(self.dataset.plan(stage, index).state() == "done" for stage in self.stages for index in self.block)


class _Blocks:
    """Which blocks of a dataset have come how far."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.begun: list[range] = []
        self.captioned: set[range] = set()
        self.ready: deque[range] = deque()  # their captions are deduplicated
        self.accepted: dict[range, int] = {}
        self._block = Block(dataset)
        self._deduplicated = 0

    def next_part(self) -> _Part | None:
        """What to make next: first the rest of begun blocks."""
        if self.ready:
            return _Part(self.dataset, self.ready.popleft(), AFTER)
        if (block := self.dataset.next_block(self.begun, self.accepted)) is None:
            return None
        self.begun.append(block)
        return _Part(self.dataset, block, BEFORE)

    def so_far(self) -> str:
        return f"{len(self.accepted)} of {len(self.begun)} blocks finished"

    def advance(self, made: _Part) -> Iterator[range]:
        """Take note of what was made, and deduplicate the captions that may be by now; yields a finished block."""
        if made.stages == AFTER:
            self.accepted[made.block] = sum(self.dataset.records_out("triplets", made.block))
            yield made.block
            return
        self.captioned.add(made.block)
        while self._deduplicated < len(self.begun) and self.begun[self._deduplicated] in self.captioned:
            build_stages(self._block, self.begun[self._deduplicated], DEDUP)
            self.ready.append(self.begun[self._deduplicated])
            self._deduplicated += 1
