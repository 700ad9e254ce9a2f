"""The flow that builds a dataset: blocks of shards, in this process or on workers."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from prefect import flow

from datagen.block import Block
from datagen.dataset import Dataset, DatasetConfig
from datagen.estimate import duration, estimate
from flows.artifacts import accounts_artifact, pictures_artifact
from flows.build_block import build_stages
from flows.describe import describe
from flows.dispatch import Workers
from flows.forms import UNCHANGED, Settings
from flows.lock import locked
from flows.plans import dataset_accounts
from flows.profiles import load_profile, record_configuration
from flows.workers import AFTER, BEFORE, DEDUP, built_on_workers
from shards.run_folder import require_buildable, run_folder
from shards.store import bring, place_of
from shards.transfer import send
from shards.triplets import TripletShards

log = logging.getLogger(__name__)

SHOWN_TRIPLETS = 8


@flow(name="build-dataset", flow_run_name="dataset in {run}")
def build_dataset(
    profile: str = "miniature", run: str = "runs/miniature", settings: Settings = UNCHANGED, first_only: bool = False
) -> str:
    """Build triplets until the profile's size is reached, keeping whatever is up to date; returns their folder.

    Args:
        profile: "miniature" or "full".
        run: the run folder, also on an object store: s3://BUCKET/RUN.
        settings: dotted settings that differ from the profile's, such as {"images.guidance_scale": 5.0};
            {"workers.deployment": "build-block/gpu"} has the blocks built by that deployment's workers.
        first_only: make the first shard alone, to reckon from; a later start makes the others.
    """
    chosen, folder = load_profile(profile, settings or {}), run_folder(run)
    with locked(folder):
        require_buildable(folder)
        record_configuration(folder, chosen, builds=True)
        send(folder, "config.json")
        build(chosen.dataset, folder, Workers.of(chosen, folder, chosen.workers.deployment), first_only)
        if describe(folder, chosen):
            card = folder / "triplets" / "README.md"
            log.info("dataset: described in %s", place_of(card))
        send(folder, "triplets")
    return place_of(folder / "triplets")


def build(config: DatasetConfig, run: Path, workers: Workers | None = None, first_only: bool = False) -> list[Path]:
    """Build a dataset in a run folder, or its first shard alone, within a flow; returns the triplet shards.

    Its blocks are made in this process, or by `workers`. Raises FileNotFoundError for a missing model, ValueError where
    a stage lets nothing through, and RuntimeError where a block fails on every worker.
    """
    if first_only:
        config = config.model_copy(update={"shards": 1, "target_triplets": None})
    dataset = Dataset(config, run)
    built: list[int] = []
    accepted = 0
    for indices in _built_here(dataset) if workers is None else built_on_workers(dataset, workers):
        built += indices
        accepted += sum(dataset.records_out("triplets", indices))
        if (left := sum(line.seconds_left for line in estimate(dataset))) > 0:
            left /= 1 if workers is None else workers.config.blocks_in_flight
            log.info("dataset: %d triplets so far, about %s left", accepted, duration(left))
    built.sort()
    if not first_only:
        dataset.leave_out_surplus(len(built))
    paths = [dataset.path("triplets", index) for index in built]
    accounts_artifact("dataset-accounts", dataset_accounts(run, paths))
    _show_triplets(paths, dataset.records_out("triplets", built))
    log.info("dataset: %d triplets in %d shards", accepted, len(built))
    return paths


def _built_here(dataset: Dataset) -> Iterator[range]:
    deduplicating = Block(dataset)  # of all blocks: each would else read the captions of all before it again
    for indices in dataset.blocks():
        if dataset.config.shards is None or dataset.config.shards > dataset.config.shards_per_block:
            # The UI draws no graph of a run with more than 10,000 tasks, so each of several blocks is a run.
            name = f"shards {indices.start:05d} to {indices.stop - 1:05d}"
            flow(name="shards", flow_run_name=name, validate_parameters=False)(_build_here)(deduplicating, indices)
        else:
            _build_here(deduplicating, indices)
        yield indices


def _build_here(deduplicating: Block, indices: range) -> None:
    block = Block(deduplicating.dataset, indices.start)
    build_stages(block, indices, BEFORE)
    build_stages(deduplicating, indices, DEDUP)
    build_stages(block, indices, AFTER)
    block.release()


def _show_triplets(paths: Sequence[Path], counts: Sequence[int]) -> None:
    """Targets above their masks, spread over shards of so many triplets each, as the UI's picture of the dataset."""
    ends = list(accumulate(counts))
    total = ends[-1] if ends else 0
    numbers = [number * total // SHOWN_TRIPLETS for number in range(SHOWN_TRIPLETS)] if total else []
    chosen = []
    for number in sorted(set(numbers)):
        shard = bisect_right(ends, number)
        bring([paths[shard]])
        chosen.append(TripletShards([paths[shard]]).read(0, number - (ends[shard] - counts[shard])))
    pictures = [triplet.image for triplet in chosen] + [triplet.mask.convert("RGB") for triplet in chosen]
    pictures_artifact("triplets", "Targets and their masks", pictures, columns=max(len(chosen), 1))
