"""The flow that makes stages of one block of shards: on a worker, or within the flow that builds the dataset."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from datagen.block import Block
from datagen.dataset import Dataset
from flows.artifacts import Progress
from flows.block_runs import block_run
from flows.profiles import load_profile
from shards.markers import Marker

log = logging.getLogger(__name__)


@flow(name="build-block")
def build_block(
    profile: str, run: str, settings: dict[str, Any], first: int, last: int, stages: list[str]
) -> State[Any] | None:
    """Make some stages of shards `first` to `last`, each model loaded once; build-dataset submits this to workers.

    Args:
        profile: "miniature" or "full".
        run: the run folder, under the path that it has on every machine, or its URL on an object store.
        settings: dotted settings that differ from the profile's.
        first: the number of the block's first shard.
        last: the number of its last shard.
        stages: the stages to make, in their order.
    """

    def make(folder: Path) -> None:
        block = Block(Dataset(load_profile(profile, settings).dataset, folder), first)
        build_stages(block, range(first, last + 1), stages)
        block.release()

    return block_run(run, f".block-{first:05d}.lock", make)


def build_stages(block: Block, indices: range, stages: Sequence[str]) -> None:
    """Make stages of a block of shards, stage by stage; ValueError where one lets no record through."""
    block.dataset.look_again()
    for stage in stages:
        _build_stage(block, stage, indices)
        block.dataset.check_survivors(stage, indices)


class StageWork:
    """A stage of a block while it is worked on: the block, the shards made so far, and the progress that is shown."""

    def __init__(self, block: Block, stage: str, progress: Progress | None) -> None:
        self.block, self.stage, self.progress = block, stage, progress
        self.made: list[Marker] = []
        self._shown = 0

    def make(self, index: int) -> bool:
        """Make a shard; False if it was up to date."""
        before = sum(marker.records_in for marker in self.made)
        marker = self.block.make(self.stage, index, lambda done, _: self._show(before + done))
        if marker is None:
            return False
        self.made.append(marker)
        self._show(before + marker.records_in)
        return True

    def _show(self, done: int) -> None:
        if self.progress is not None and done > self._shown:
            self._shown = done
            self.progress.at(done)


@task(task_run_name="{stage} {index:05d}", cache_policy=NO_CACHE, persist_result=False)
def build_shard(stage: str, index: int, work: StageWork) -> State[Any] | None:
    """One shard of one stage, or the finding that it is up to date."""
    return None if work.make(index) else Completed(name="Cached", message="up to date by its marker")


def _build_stage(block: Block, stage: str, indices: range) -> None:
    """A stage of a block, shard by shard, with progress over the records that are still to be done."""
    dataset, started = block.dataset, time.monotonic()
    waiting = [plan for index in indices if (plan := dataset.plan(stage, index)).state() != "done"]
    for line in (line for plan in waiting for line in plan.changes() if line.endswith("torn or altered")):
        log.warning("%s; making it again", line)
    size = dataset.config.captions_per_shard
    total = sum(size if stage == "captions" else plan.records_in or 0 for plan in waiting)
    with Progress(stage, total, "records") if waiting else nullcontext() as progress:
        work = StageWork(block, stage, progress)
        for index in indices:
            build_shard(stage, index, work)
    if work.made:
        log.info("%s: %s", stage, _summary(work.made, len(indices), time.monotonic() - started))


def _summary(made: list[Marker], shards: int, seconds: float) -> str:
    rejected: Counter[str] = Counter()
    for marker in made:
        rejected.update(marker.rejected)
    records_in, records_out = sum(m.records_in for m in made), sum(m.records_out for m in made)
    parts = [f"{len(made)} of {shards} shards made", f"{records_in} records in, {records_out} out"]
    if rejected:
        parts.append("rejected: " + ", ".join(f"{reason} {count}" for reason, count in rejected.most_common()))
    return "; ".join([*parts, f"{seconds:.0f} s"])
