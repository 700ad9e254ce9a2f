"""A dataset in a run folder: its configuration, the recipes of its stages, and what remains to be done.

Nothing here loads a model: deciding that all is up to date costs a few file reads a shard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from datagen.captions import CAPTIONS_VERSION, CaptionsConfig
from datagen.dedup import DEDUP_VERSION, DedupConfig
from datagen.gates import GATES_VERSION, GatesConfig
from datagen.identity import model_identity
from datagen.images import IMAGES_VERSION, ImagesConfig
from datagen.masks import MasksConfig, mask_stage
from datagen.taxonomy import Taxonomy, load_taxonomy
from shards.markers import MARKER_SUFFIX, Marker, marker_path, read_marker
from shards.stage import ShardPlan, StageSpec, plan_shard
from shards.store import look_again, remove
from shards.triplets import TRIPLETS_VERSION

STAGES = ("captions", "dedup", "images", "masks", "gates", "triplets")


class DatasetConfig(BaseModel):
    """What is built: sizes and the settings of every stage.

    A dataset grows by raising `shards` or `target_triplets`; what it has stays as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = Field(default=0, ge=0)
    captions_per_shard: int = Field(default=512, ge=1)
    images_per_caption: int = Field(default=1, ge=1, description="images made of each caption, from noise of their own")
    shards: int | None = Field(default=None, ge=1, description="shards to build; with a target, the most it may take")
    target_triplets: int | None = Field(default=None, ge=1, description="go on until so many triplets are accepted")
    shards_per_block: int = Field(default=16, ge=1, description="each model is loaded once a block")
    captions: CaptionsConfig
    dedup: DedupConfig = DedupConfig()
    images: ImagesConfig
    masks: MasksConfig
    gates: GatesConfig = GatesConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shards is None and self.target_triplets is None:
            raise ValueError("the dataset has no size: set shards or target_triplets")
        if self.captions_per_shard % self.captions.captions_per_request:
            raise ValueError("captions_per_shard has to be a multiple of captions.captions_per_request")
        return self


@dataclass(frozen=True)
class PlannedShard:
    """A shard of a stage and whether it is up to date.

    "remake": the reasons say what changed. "follows": an input is about to be made; if it comes out as it was, this
    shard stays. "surplus": the dataset was larger once.
    """

    plan: ShardPlan
    fate: Literal["done", "remake", "follows", "surplus"]
    reasons: tuple[str, ...]


class Dataset:
    """The stages of a dataset in a run folder; raises FileNotFoundError at once for a model that is not there."""

    def __init__(self, config: DatasetConfig, run: Path) -> None:
        self.config = config
        self.run = run
        self.taxonomy: Taxonomy = load_taxonomy(Path(config.captions.taxonomy))
        self.specs = self._specs()
        self._chain: list[str] = []

    def _specs(self) -> dict[str, StageSpec]:
        config = self.config
        captions = {**config.captions.content(), "seed": config.seed, "captions_per_shard": config.captions_per_shard}
        models = {
            stage: {role: model_identity(place, f"{stage}.{role}") for role, place in part.locations().items()}
            for stage, part in (("captions", config.captions), ("images", config.images))
        }
        # By content, not by file: a comment or an indent in the taxonomy changes no caption.
        models["captions"]["taxonomy"] = hashlib.sha256(self.taxonomy.model_dump_json().encode()).hexdigest()
        specs = (
            StageSpec("captions", CAPTIONS_VERSION, captions, models["captions"]),
            StageSpec("dedup", DEDUP_VERSION, config.dedup.content()),
            StageSpec(
                "images", IMAGES_VERSION, config.images.content(), models["images"], ".tar", config.images_per_caption
            ),
            mask_stage(config.masks),
            StageSpec("gates", GATES_VERSION, config.gates.content()),
            StageSpec("triplets", TRIPLETS_VERSION, {}, suffix=".tar"),
        )
        return {spec.name: spec for spec in specs}

    def path(self, stage: str, index: int) -> Path:
        """A stage's shard file."""
        return self.specs[stage].path(self.run, index)

    def sources(self, stage: str, index: int) -> list[tuple[str, int]]:
        """The shards (stage, index) that a shard is made from; the first is the one whose records it accounts for."""
        if stage == "dedup":
            return [("captions", index), *((("dedup", index - 1),) if index else ())]
        names = {"captions": (), "images": ("dedup",), "masks": ("images",), "gates": ("masks",)}
        return [(name, index) for name in names.get(stage, ("gates", "images", "masks"))]

    def plan(self, stage: str, index: int) -> ShardPlan:
        """The plan of a shard from the markers as they are now."""
        inputs = [self.path(*source) for source in self.sources(stage, index)]
        chain = self._earlier(index) if stage == "dedup" else None
        return plan_shard(self.run, self.specs[stage], index, inputs, chain)

    def _earlier(self, index: int) -> str:
        """A checksum over the dedup shards before `index`: each depends on all captions kept before it."""
        while len(self._chain) <= index:
            number = len(self._chain)
            marker = read_marker(self.path("dedup", number - 1)) if number else None
            link = f"{self._chain[-1]} {marker.shard.sha256 if marker else 'missing'}" if number else "start"
            self._chain.append(hashlib.sha256(link.encode()).hexdigest())
        return self._chain[index]

    def shard_made(self, stage: str, index: int) -> None:
        """Take note that a shard was written anew."""
        if stage == "dedup":
            del self._chain[index + 1 :]

    def look_again(self) -> None:
        """Take note of what others have made meanwhile, where the run folder is on an object store."""
        if look_again(self.run):
            self._chain.clear()

    def planned(self, indices: Iterable[int]) -> list[PlannedShard]:
        """The fate of the shards of all stages, in the order in which they would be made."""
        shards: dict[tuple[str, int], PlannedShard] = {}
        indices = list(indices)
        for stage in STAGES:
            for index in indices:
                plan = self.plan(stage, index)
                sources = [shards[source] for source in self.sources(stage, index) if source in shards]
                waiting = [source.plan.name for source in sources if source.fate != "done"]
                own = [line for line in plan.changes() if not line.startswith(f"{plan.name}: input ")]
                if own and not (waiting and all(line.startswith(f"{stage}.inputs.") for line in own)):
                    shards[stage, index] = PlannedShard(plan, "remake", tuple(own))
                elif waiting or own or plan.unfinished:
                    reasons = [f"{stage}.inputs.{name}" for name in waiting or plan.unfinished]
                    shards[stage, index] = PlannedShard(plan, "follows", tuple(reasons))
                else:
                    shards[stage, index] = PlannedShard(plan, "done", ())
        return list(shards.values())

    def blocks(self) -> Iterator[range]:
        """Blocks of shards to build, in order. With a target, each next block is asked for only if it is needed:
        the caller builds a block before it takes another.

        Raises RuntimeError if the target cannot be reached.
        """
        accepted: dict[range, int] = {}
        while (block := self.next_block([*accepted], accepted)) is not None:
            yield block
            accepted[block] = sum(self.records_out("triplets", block))

    def next_block(self, begun: Sequence[range], accepted: Mapping[range, int]) -> range | None:
        """The block that follows those begun; None where no further one is needed, as far as is known by now.

        `accepted` holds the triplets of the blocks that are finished. With a target, a block in flight is taken to give
        a triplet for each image of its captions: whatever is begun then would also be built by one process, block after
        block. Raises RuntimeError if the target cannot be reached.
        """
        config, first = self.config, begun[-1].stop if begun else 0
        found, flying = sum(accepted.values()), [block for block in begun if block not in accepted]
        if config.target_triplets is not None:
            at_most = found + config.captions_per_shard * config.images_per_caption * sum(map(len, flying))
            if at_most >= config.target_triplets:
                return None
        if first == config.shards:
            if config.target_triplets is not None and not flying:
                wanted = f"target_triplets is {config.target_triplets}"
                raise RuntimeError(f"{wanted}, but {first} shards gave {found}: raise shards, or set it to null")
            return None
        for block in accepted if config.shards is None else ():
            if not accepted[block]:
                raise RuntimeError(
                    f"shards {block.start} to {block.stop - 1} gave no triplet at all: see their rejects"
                )
        last = first + config.shards_per_block
        return range(first, last if config.shards is None else min(last, config.shards))

    def remaining(self) -> list[PlannedShard]:
        """The shards that are not up to date; empty if all is done.

        With a target, those of the first block that has any: how many more it takes is not known before.
        """
        if self.config.target_triplets is None:
            size = self.config.shards or 0
            return [shard for shard in self.planned(range(size)) if shard.fate != "done"] + self.surplus(size)
        for block in self.blocks():
            if found := [shard for shard in self.planned(block) if shard.fate != "done"]:
                return found
        return self.surplus(block.stop)

    def finished(self) -> list[int]:
        """The numbers of the finished triplet shards, in order, also of those beyond the dataset's size."""
        folder = self.path("triplets", 0).parent
        return sorted(int(path.name[:5]) for path in folder.glob(f"[0-9][0-9][0-9][0-9][0-9]{MARKER_SUFFIX}"))

    def surplus(self, size: int) -> list[PlannedShard]:
        """Finished triplet shards beyond the dataset's size: readers would take them for a part of it."""
        plans = [self.plan("triplets", index) for index in self.finished() if index >= size]
        return [PlannedShard(plan, "surplus", ("the dataset is smaller now",)) for plan in plans]

    def leave_out_surplus(self, size: int) -> None:
        """Unmark the triplet shards beyond the dataset's size; growing again makes them from what lies there."""
        for shard in self.surplus(size):
            remove(marker_path(shard.plan.path))

    def markers(self, stage: str, indices: Sequence[int]) -> list[Marker]:
        """The markers of a stage's finished shards."""
        return [marker for index in indices if (marker := read_marker(self.path(stage, index))) is not None]

    def records_out(self, stage: str, indices: Sequence[int]) -> list[int]:
        """How many records left a stage, one number a finished shard."""
        return [marker.records_out for marker in self.markers(stage, indices)]

    def check_survivors(self, stage: str, indices: Sequence[int]) -> None:
        """Raise ValueError if a stage let no record of a block through, before later models are loaded for nothing."""
        markers = self.markers(stage, indices)
        if not markers or any(marker.records_out for marker in markers):
            return
        rejected: Counter[str] = Counter()
        for marker in markers:
            rejected.update(marker.rejected)
        causes = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common(3)) or "nothing came in"
        raise ValueError(f"{self.run / stage}: no record was left ({causes}); see the .rejects.jsonl files there")


FATES = {"remake": "to make", "follows": "may follow", "surplus": "to leave out"}


def explained(shards: Sequence[PlannedShard]) -> list[str]:
    """What would be made and why, for people: one line a stage and cause, however many shards share it."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for shard in shards:
        causes = [reason.removeprefix(f"{shard.plan.name}: ") for reason in shard.reasons]
        if shard.fate == "follows":
            stages = {reason.split(".inputs.")[1].partition("/")[0] for reason in causes}
            causes = [f"if {' or '.join(stage for stage in STAGES if stage in stages)} change"]
        for cause in causes if shard.fate != "done" else ():
            groups.setdefault((shard.plan.spec.name, shard.fate, cause), []).append(shard.plan.index)
    lines = []
    for (stage, fate, cause), indices in groups.items():
        count = f"{len(indices)} shard{'s' if len(indices) > 1 else ''}"
        span = f"{indices[0]:05d}" if len(indices) == 1 else f"{indices[0]:05d} to {indices[-1]:05d}"
        lines.append(f"{stage}: {count} ({span}) {FATES[fate]}: {cause}")
    return lines
