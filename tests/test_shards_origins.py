"""One run folder holds one dataset: what came there by another way, or lies half made, is not mixed with it."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_shards_imports import object_files, png, take, write
from tiny_triplets import write_tiny_triplets

from flows.describe import describe
from shards.imports import import_shards
from shards.merge import merge_runs
from shards.triplets import triplet_paths

ROW = b'{"description": {"item": "cup", "description_0": "a cup", "description_1": "a cup too"}}'


def merge(runs: list[Path], out: Path) -> list[Path]:
    return merge_runs(runs, out, lambda done, total: None)


@pytest.mark.parametrize("first", ["pairs", "authors"])
def test_an_import_replaces_none_of_another_stage(tmp_path: Path, first: str) -> None:
    sources = {
        "authors": write(tmp_path / "authors", object_files("cup/0")),
        "pairs": write(tmp_path / "pairs", {"a.png": png(Image.new("RGB", (128, 64))), "a.json": ROW}),
    }
    for layout in (first, *(sources.keys() - {first})):
        run = tmp_path / "run"
        if layout == first:
            take(sources[layout], run, layout)
            continue
        before = sorted(path.name for path in run.rglob("*"))
        with pytest.raises(ValueError, match="imported in another layout: import into a folder of its own"):
            take(sources[layout], run, layout)
        assert sorted(path.name for path in run.rglob("*")) == before


def test_sources_of_one_name_are_two_and_one_is_given_once(tmp_path: Path) -> None:
    sources = [write(tmp_path / name / "train", {"notes.md": b"x", **object_files(f"{name}/0")}) for name in "ab"]
    (shard,) = import_shards(sources, "authors", tmp_path / "run", 9, lambda done, total: None)
    assert shard == tmp_path / "run" / "triplets" / "00000.tar" and len(triplet_paths(tmp_path / "run")) == 1
    with pytest.raises(ValueError, match="train was given twice"):
        import_shards([sources[0], sources[1] / ".." / ".." / "a" / "train"], "authors", tmp_path / "run", 9, print)


def test_a_merge_waits_for_the_end_of_a_build(tmp_path: Path) -> None:
    built, imported = tmp_path / "runs" / "built", tmp_path / "runs" / "imported"
    write_tiny_triplets(built, shards=2, triplets_a_shard=3)
    shutil.copytree(built, imported)
    (built / "captions").mkdir()
    with pytest.raises(FileNotFoundError, match="let its build come to its end first"):
        merge([built], tmp_path / "both")
    assert len(merge([imported], tmp_path / "both")) == 2  # what was not built here has no end to wait for
    describe(built)
    assert len(merge([built, imported], tmp_path / "both")) == 4
    for path in (built / "triplets").glob("00001.*"):
        path.unlink()
    with pytest.raises(ValueError, match="its card describes other shards"):
        merge([built], tmp_path / "other")


def test_a_merge_does_not_lie_around_its_runs(tmp_path: Path) -> None:
    write_tiny_triplets(tmp_path / "runs" / "one", shards=1, triplets_a_shard=3)
    for out in (tmp_path / "runs", tmp_path / "runs" / "one"):
        with pytest.raises(ValueError, match="merge into another folder"):
            merge([tmp_path / "runs" / "one"], out)
