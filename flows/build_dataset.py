"""The flow that builds a dataset: blocks of shards, stage by stage, each shard a task."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from datagen.block import Block
from datagen.dataset import STAGES, Dataset, DatasetConfig
from datagen.estimate import duration, estimate
from flows.artifacts import Progress, accounts_artifact, pictures_artifact
from flows.describe import describe
from flows.lock import locked
from flows.profiles import load_profile, record_configuration
from flows.server import end_with_worker
from shards.markers import Marker
from shards.triplets import TripletShards

log = logging.getLogger(__name__)

SHOWN_TRIPLETS = 8


@flow(name="build-dataset", flow_run_name="dataset in {run}")
def build_dataset(
    profile: str = "miniature", run: str = "runs/miniature", settings: dict[str, Any] | None = None
) -> str:
    """Build triplets until the profile's size is reached, keeping whatever is up to date; returns their folder.

    Args:
        profile: "miniature" or "full".
        run: the run folder.
        settings: dotted settings that differ from the profile's, such as {"images.guidance_scale": 5.0}.
    """
    end_with_worker()
    chosen, folder = load_profile(profile, settings or {}), Path(run)
    with locked(folder):
        record_configuration(folder, chosen)
        build(chosen.dataset, folder)
        if describe(folder, chosen):
            log.info("dataset: described in %s", folder / "triplets" / "README.md")
    return str(folder / "triplets")


def build(config: DatasetConfig, run: Path) -> list[Path]:
    """Build a dataset in a run folder, within a flow; returns its triplet shards.

    Raises FileNotFoundError for a missing model and ValueError where a stage lets nothing through.
    """
    dataset = Dataset(config, run)
    built: list[int] = []
    for indices in dataset.blocks():
        block = Block(dataset)
        for stage in STAGES:
            _build_stage(block, stage, indices)
            dataset.check_survivors(stage, indices)
        block.release()
        built += indices
        if (left := sum(line.seconds_left for line in estimate(dataset))) > 0:
            accepted = sum(dataset.records_out("triplets", built))
            log.info("dataset: %d triplets so far, about %s left", accepted, duration(left))
    dataset.leave_out_surplus(len(built))
    accounts_artifact("dataset-accounts", {stage: dataset.markers(stage, built) for stage in STAGES})
    paths = [dataset.path("triplets", index) for index in built]
    _show_triplets(paths)
    log.info("dataset: %d triplets in %d shards", sum(dataset.records_out("triplets", built)), len(built))
    return paths


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


def _show_triplets(paths: list[Path]) -> None:
    """Targets above their masks, as the UI's picture of the dataset."""
    triplets = TripletShards(paths)
    places = [(shard, index) for shard, count in enumerate(triplets.counts) for index in range(count)]
    count = min(SHOWN_TRIPLETS, len(places))
    chosen = [triplets.read(*places[number * len(places) // count]) for number in range(count)]
    pictures = [triplet.image for triplet in chosen] + [triplet.mask.convert("RGB") for triplet in chosen]
    pictures_artifact("triplets", "Targets and their masks", pictures, columns=max(len(chosen), 1))
