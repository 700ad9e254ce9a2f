"""Images from elsewhere, and the stages that make triplets of them: masks, gates, triplets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datagen.block import Block
from datagen.dataset import Dataset, DatasetConfig
from datagen.gates import GATES_VERSION
from datagen.images import IMAGES_VERSION
from datagen.masks import mask_stage
from shards.stage import StageSpec
from shards.triplets import TRIPLETS_VERSION

STAGES = ("masks", "gates", "triplets")


class ImportedImages(Dataset):
    """The later stages of a dataset whose images were imported; raises FileNotFoundError for a missing mask model."""

    def __init__(self, config: DatasetConfig, run: Path) -> None:
        self.config, self.run = config, run
        specs = (
            StageSpec("images", IMAGES_VERSION, {}, suffix=".tar"),
            mask_stage(config.masks),
            StageSpec("gates", GATES_VERSION, config.gates.content()),
            StageSpec("triplets", TRIPLETS_VERSION, {}, suffix=".tar"),
        )
        self.specs = {spec.name: spec for spec in specs}

    def make_triplets(self, count: int, report: Callable[[str, int, int], None]) -> None:
        """Make what is not up to date of shards 0 to `count`; `report` gets the stage, shards done, and all shards."""
        block = Block(self)
        for stage in STAGES:
            for index in range(count):
                block.make(stage, index, lambda done, total: None)
                report(stage, index + 1, count)
            self.check_survivors(stage, range(count))
        block.release()
        self.leave_out_surplus(count)
