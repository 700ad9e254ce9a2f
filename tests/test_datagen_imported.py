"""Imported images go through the later stages, and what a dataset takes is reckoned from its first shards."""

from pathlib import Path

import pytest
from tiny_datagen import tiny_dataset_config, tiny_models
from tiny_triplets import tiny_triplet

from datagen.dataset import Dataset
from datagen.estimate import duration, estimate, table
from datagen.gates import GatesConfig
from datagen.imported import ImportedImages
from shards.markers import read_marker
from shards.stage import StageSpec, plan_shard
from shards.triplets import Triplet, read_triplets, triplet_paths, write_triplets


def test_imported_images_get_masks_and_become_triplets(tmp_path: Path) -> None:
    for index in range(2):
        plan = plan_shard(tmp_path, StageSpec("images", 1, {"layout": "pairs"}, suffix=".tar"), index)
        with plan.writing(records_in=4) as out:
            for number in range(4):
                one = tiny_triplet(number)
                record = {"key": f"{index}-{number}", "caption": one.caption, "subject": "teapot", "models": {}}
                out.add(record, {"jpg": one.jpg})
    config, told = tiny_dataset_config(tiny_models()), []
    ImportedImages(config, tmp_path).make_triplets(2, lambda *at: told.append(at))
    assert told[0] == ("masks", 1, 2) and told[-1] == ("triplets", 2, 2)
    found = list(read_triplets(triplet_paths(tmp_path)))
    assert found and all(one.record["models"].keys() == {"masks.box_model", "masks.mask_model"} for one in found)
    assert all(one.mask.size == one.image.size for one in found)
    times = [path.stat().st_mtime_ns for path in triplet_paths(tmp_path)]
    ImportedImages(config, tmp_path).make_triplets(1, lambda *at: None)
    assert [path.stat().st_mtime_ns for path in triplet_paths(tmp_path)] == times[:1]
    strict = config.model_copy(update={"gates": GatesConfig(min_box_score=1)})
    with pytest.raises(ValueError, match="gates: no record was left"):
        ImportedImages(strict, tmp_path).make_triplets(1, lambda *at: None)


def test_an_estimate_follows_the_target_and_what_was_accepted(tmp_path: Path) -> None:
    config = tiny_dataset_config(tiny_models()).model_copy(update={"shards": None, "target_triplets": 100})
    dataset = Dataset(config, tmp_path)
    with pytest.raises(ValueError, match="no finished shard to reckon from"):
        estimate(dataset)
    spec = StageSpec("captions", 1, {})
    with plan_shard(tmp_path, spec, 0).writing(records_in=8) as out:
        for number in range(8):
            out.add({"key": f"{number}"})
    write_triplets(tmp_path, 0, [Triplet(f"{n}", b"jpg", b"png", {}) for n in range(4)], "test")
    lines = {line.stage: line for line in estimate(dataset)}
    # Four of eight captions come through: a hundred triplets take 25 such shards, of which one is there.
    assert (lines["captions"].records, lines["triplets"].records) == (200, 100)
    marker = read_marker(dataset.path("captions", 0))
    assert marker is not None
    assert lines["captions"].seconds == pytest.approx(25 * marker.execution["seconds"])
    assert lines["captions"].seconds_left == pytest.approx(24 * marker.execution["seconds"])
    assert lines["captions"].bytes == 25 * marker.shard.bytes
    assert table(list(lines.values())).splitlines()[1].split()[:2] == ["captions", "200"]
    fewer = config.model_copy(update={"shards": 10})
    assert estimate(Dataset(fewer, tmp_path))[0].records == 80
    fewest = config.model_copy(update={"target_triplets": 1})
    assert estimate(Dataset(fewest, tmp_path))[0].records == 8  # no less than a shard
    assert [duration(seconds) for seconds in (9, 130, 7200, 400_000)] == ["9 s", "2 min", "2.0 h", "4.6 d"]
