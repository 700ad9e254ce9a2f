"""A block of shards made stage by stage in one process, so that each model is loaded once and one GPU suffices."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from datagen import assemble, captions, dedup, gates, images, masks
from datagen.dataset import Dataset
from shards import memory
from shards.markers import Marker
from shards.store import bring

log = logging.getLogger(__name__)

MODEL_STAGES = ("captions", "images", "masks")


class Block:
    """Makes shards one at a time; holds the model of the stage at hand and lets go of it when another stage begins.

    `first` is the number of its first shard; the log of a server that it starts is named after it.
    """

    def __init__(self, dataset: Dataset, first: int = 0) -> None:
        self.dataset, self.first = dataset, first
        self._stage: str | None = None
        self._engine: Any = None
        self._execution: dict[str, Any] = {}  # of the engine; the batch size that fits its memory is found once
        self._open = ExitStack()

    def make(self, stage: str, index: int, report: Callable[[int, int], None]) -> Marker | None:
        """Make a shard unless it is up to date, in which case no model is loaded and None is returned.

        `report` is called with the records done and all records of the shard, batch by batch.
        """
        plan = self.dataset.plan(stage, index)
        if plan.state() == "done":
            return None
        config = self.dataset.config
        plan.bring_inputs()
        engine, execution = self._engine_of(stage), self._execution
        try:
            match stage:
                case "captions":
                    marker = captions.run(plan, config.captions, self.dataset.taxonomy, engine, execution, report)
                case "dedup":
                    asked_for = config.captions_per_shard * (index + 1)
                    bring([plan.sibling(number) for number in range(engine.next_shard, index)])
                    marker = dedup.run(plan, config.dedup, engine, asked_for)
                case "images":
                    marker = images.run(plan, config.images, engine, execution, report)
                case "masks":
                    finder, cutter = engine
                    marker = masks.run(plan, config.masks, finder, cutter, execution, report)
                case "gates":
                    marker = gates.run(plan, config.gates)
                case "triplets":
                    marker = assemble.run(plan)
                case _:
                    raise AssertionError(f"there is no stage {stage}")
        except BaseException:
            self.release()  # the caption index of a broken-off shard holds captions that were never kept
            raise
        self.dataset.shard_made(stage, index)
        return marker

    def _engine_of(self, stage: str) -> Any:
        config = self.dataset.config
        if stage != self._stage:
            self.release()
            if stage in ("captions", "images"):
                masks.check_packages(config.masks)  # before hours of work whose masks could not be made
            started = time.monotonic()
            match stage:
                case "captions":
                    server_log = self.dataset.path("captions", 0).with_name(f"server-{self.first:05d}.log")
                    self._engine = self._open.enter_context(captions.open_captioner(config.captions, server_log))
                case "dedup":
                    from datagen.caption_index import CaptionIndex

                    self._engine = CaptionIndex(config.dedup)
                case "images":
                    self._engine = images.DiffusersPainter(config.images)
                case "masks":
                    self._engine = masks.load_engines(config.masks)
            self._stage = stage
            if stage in MODEL_STAGES:
                self._execution = getattr(config, stage).execution.model_dump()
                log.info("%s: models loaded in %.0f s", stage, time.monotonic() - started)
        return self._engine

    def release(self) -> None:
        """Let go of the model and its GPU memory."""
        import gc
        import sys

        self._stage = self._engine = None
        self._open.close()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        memory.forget_peaks()  # what the next stage records is its own
