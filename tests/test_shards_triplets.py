"""Triplets on disk: a round trip, strict reading, random access, and what WebDataset makes of the shards."""

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.files import group_members, tar_members
from shards.markers import marker_path
from shards.triplets import Triplet, TripletShards, read_triplets, triplet_paths, write_triplets


def triplet(key: str, shade: int = 100) -> Triplet:
    jpg, png = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(jpg, "JPEG")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(png, "PNG")
    return Triplet(key, jpg.getvalue(), png.getvalue(), {"caption": f"caption of {key}", "class": "dot"})


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for index, count in enumerate((3, 0, 2)):
        write_triplets(tmp_path, index, [triplet(f"{index:05d}-{number}") for number in range(count)], "test")
    return triplet_paths(tmp_path)


def test_round_trip(paths: list[Path]) -> None:
    found = list(read_triplets(paths))
    assert [one.key for one in found] == ["00000-0", "00000-1", "00000-2", "00002-0", "00002-1"]
    one = found[0]
    assert (one.image.mode, one.image.size, one.mask.mode, one.mask.size) == ("RGB", (16, 16), "L", (16, 16))
    assert np.array_equal(np.asarray(one.mask), np.eye(16) * 255)
    assert one.caption == "caption of 00000-0" and one.record["class"] == "dot"


def test_random_access(paths: list[Path]) -> None:
    shards = TripletShards(paths, open_shards=1)
    assert (len(shards), shards.counts) == (5, [3, 0, 2])
    assert [shards.read(*place).key for place in ((2, 1), (0, 2), (2, 0))] == ["00002-1", "00000-2", "00002-0"]
    assert shards.keys(2) == ["00002-0", "00002-1"]
    assert pickle.loads(pickle.dumps(shards)).read(0, 1).key == "00000-1"
    shards.read(0, 0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        places = [(shard, index) for shard in (0, 2) for index in range(2)] * 25
        assert pool.starmap(_key, [(shards, *place) for place in places]) == [shards.read(*p).key for p in places]


def _key(shards: TripletShards, shard: int, index: int) -> str:
    return shards.read(shard, index).key


def test_only_so_many_shards_are_open(paths: list[Path]) -> None:
    def descriptors() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{name}").endswith(".tar") for name in os.listdir("/proc/self/fd"))

    before, shards = descriptors(), TripletShards(paths, open_shards=1)
    for shard in (0, 2, 0, 2):
        shards.read(shard, 0)
    assert descriptors() == before + 1
    del shards
    assert descriptors() == before


def test_a_shard_that_changes_while_it_is_read_is_refused(paths: list[Path]) -> None:
    shards = TripletShards(paths)
    shards.read(2, 0)
    write_triplets(paths[0].parents[1], 0, [triplet("00000-0")], "other")
    with pytest.raises(ValueError, match="00000.tar: 1 records, but its marker says 3"):
        shards.read(0, 0)
    os.truncate(paths[2], 1000)
    with pytest.raises(ValueError, match="cut short while it was read, at byte 1000"):
        shards.read(2, 0)


def test_the_same_triplets_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_triplets(tmp_path / name, 0, [triplet("a"), triplet("b")], "test") for name in "xy")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert [member.name for member in tar] == [
            f"{key}.{extension}" for key in "ab" for extension in ("jpg", "json", "mask.png")
        ]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_webdataset_reads_shards_unaided(paths: list[Path]) -> None:
    samples = list(webdataset.WebDataset([str(paths[0]), str(paths[2])], shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [one.key for one in read_triplets(paths)]
    assert set(samples[0]) >= {"jpg", "json", "mask.png"}


def test_unfinished_and_torn_shards_are_refused(paths: list[Path]) -> None:
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="00000.tar is torn or altered"):
        TripletShards(paths)
    paths[0].write_bytes(content)
    assert len(TripletShards(paths)) == 5
    marker_path(paths[2]).unlink()
    with pytest.raises(FileNotFoundError, match="00002.tar has no readable marker"):
        TripletShards(paths)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        TripletShards([paths[0].with_name("00009.tar")])
    with pytest.raises(FileNotFoundError, match="run build-dataset"):
        triplet_paths(paths[0].parents[1] / "elsewhere")


def _tar(path: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        fill(tar)
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[tarfile.TarFile], None]:
    def fill(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)

    return fill


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/etc/passwd", tarfile.REGTYPE),
        ("../a.jpg", tarfile.REGTYPE),
        ("a.jpg", tarfile.SYMTYPE),
        ("a.jpg", tarfile.CHRTYPE),
        ("A B.jpg", tarfile.REGTYPE),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    with pytest.raises(ValueError, match="is not"):
        group_members(_tar(tmp_path / "x.tar", _member(name, kind)))


def test_repeated_records_are_refused(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for name in ("a.jpg", "b.jpg", "a.json"):
            _member(name)(tar)

    with pytest.raises(ValueError, match="record a appears twice"):
        group_members(_tar(tmp_path / "x.tar", fill))

    def twice(tar: tarfile.TarFile) -> None:
        for name in ("a.jpg", "a.json", "a.jpg"):
            _member(name)(tar)

    with pytest.raises(ValueError, match="a.jpg appears twice"):
        group_members(_tar(tmp_path / "x.tar", twice))


def test_a_tar_that_ends_in_a_member_is_refused(paths: list[Path]) -> None:
    _, offset, size = tar_members(paths[2])[-1]
    for end in (offset + size - 1, offset + 1):
        os.truncate(paths[2], end)
        with pytest.raises(ValueError, match="00002.tar: not a readable tar"):
            group_members(paths[2])


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    from shards.stage import StageSpec, plan_shard

    plan = plan_shard(tmp_path, StageSpec("triplets", 1, {}, suffix=".tar"), 0)
    with plan.writing(records_in=1) as out:
        out.add({"key": "a"}, {"jpg": b"x"})
    with pytest.raises(ValueError, match="record a lacks a.mask.png"):
        TripletShards([plan.path]).read(0, 0)


def test_records_are_plain_json(paths: list[Path]) -> None:
    with tarfile.open(paths[0]) as tar:
        member = tar.extractfile("00000-0.json")
        assert member is not None
        assert json.loads(member.read()) == {"caption": "caption of 00000-0", "class": "dot", "key": "00000-0"}
