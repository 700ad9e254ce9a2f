"""What a block makes again and why, by the stages that load no model."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from datagen.block import Block
from datagen.captions import CaptionsConfig
from datagen.dataset import Dataset, DatasetConfig, explained
from datagen.dedup import DedupConfig
from datagen.images import ImagesConfig
from datagen.masks import MasksConfig
from shards import files
from shards.stage import plan_shard

TAXONOMY = {"classes": ["teapot", "dog"], "places": ["on a beach"]}
FREE = DedupConfig(max_class_share=1, max_class_and_place_share=1)
CAPTIONS = [[f"a {kind} word{shard}{number}" for kind in TAXONOMY["classes"] for number in range(2)]
            for shard in range(3)]  # fmt: skip


def config_of(folder: Path, captions: Mapping[str, Any] | None = None, **settings: object) -> DatasetConfig:
    model = folder / "model.json"
    model.write_text("{}")
    taxonomy = folder / "taxonomy.json"
    if not taxonomy.exists():
        taxonomy.write_text(json.dumps(TAXONOMY))
    given = {"captions_per_shard": 4, "shards": 3, "dedup": FREE}
    return DatasetConfig.model_validate({
        "captions": CaptionsConfig.model_validate({"model": str(model), "taxonomy": str(taxonomy), **(captions or {})}),
        "images": ImagesConfig(model=str(model)),
        "masks": MasksConfig(box_model=str(model), mask_model=str(model)),
        **given,
        **settings,
    })  # fmt: skip


def ignore(done: int, total: int) -> None:
    """No progress to show."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A dataset of finished captions."""
    dataset = Dataset(config_of(tmp_path), tmp_path / "run")
    for index, texts in enumerate(CAPTIONS):
        with dataset.plan("captions", index).writing(records_in=len(texts)) as out:
            for number, text in enumerate(texts):
                record = {"key": f"{index:05d}-{number:05d}", "class": text.split()[1], "place": "on a beach"}
                out.add(record | {"caption": text})
    return dataset


def deduplicated(dataset: Dataset, block: Block | None = None) -> list[bytes]:
    """The dedup shards, each made now."""
    block = block or Block(dataset)
    assert all(block.make("dedup", index, ignore) is not None for index in range(3))
    return [dataset.path("dedup", index).read_bytes() for index in range(3)]


def test_what_decides_captions_redoes_them_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    def first_line(config: DatasetConfig) -> str:
        return explained(Dataset(config, dataset.run).planned(range(3)))[0]

    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps(TAXONOMY, indent=4))
    moved = config_of(tmp_path, {"taxonomy": str(elsewhere), "server": {"concurrency": 3}})
    assert first_line(moved).startswith("dedup: ")
    elsewhere.write_text(json.dumps({**TAXONOMY, "places": ["at home"]}))
    for config, cause in (
        (moved, "models.taxonomy: "),
        (config_of(tmp_path, seed=8), "seed: 0 -> 8"),
        (config_of(tmp_path, captions_per_shard=8), "captions_per_shard: 4 -> 8"),
    ):
        assert first_line(config).startswith(f"captions: 3 shards (00000 to 00002) to make: captions.{cause}")


def test_dedup_follows_all_shards_before(dataset: Dataset, tmp_path: Path) -> None:
    before = deduplicated(dataset)
    other = Dataset(config_of(tmp_path, dedup=FREE.model_copy(update={"blocked_words": ("dog",)})), dataset.run)
    fates = [shard.fate for shard in other.planned(range(3)) if shard.plan.spec.name == "dedup"]
    assert fates == ["remake"] * 3 and deduplicated(other) != before
    # What it took for the shards before while it planned is no longer there.
    assert [other.plan("dedup", index).state() for index in range(3)] == ["done"] * 3
    anew = Dataset(other.config, dataset.run)
    assert [anew.plan("dedup", index).state() for index in range(3)] == ["done"] * 3
    with plan_shard(dataset.run, other.specs["dedup"], 0).writing(records_in=1) as out:
        out.add({"key": "a"})
    # The shard between is as it was, and yet what this one must not repeat is not.
    assert Dataset(other.config, dataset.run).plan("dedup", 2).state() == "stale"


def test_a_shard_that_was_broken_off_leaves_nothing_in_its_block(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = deduplicated(dataset)
    for path in (dataset.run / "dedup").glob("*.done.json"):
        path.unlink()

    def full(point: str) -> None:
        if point == "dedup/00000 written":
            raise OSError(errno.ENOSPC, "No space left on device")

    block = Block(dataset)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "reached", full)
        block.make("dedup", 0, ignore)
    assert deduplicated(dataset, block) == expected and b"word01" in expected[0]
