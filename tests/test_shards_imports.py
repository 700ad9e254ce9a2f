"""Other datasets become triplets: each record is taken or rejected for a reason, hostile sources are refused."""

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_triplets import tiny_triplet, write_tiny_triplets

from shards.files import read_json_lines, read_tar_records
from shards.imports import import_shards
from shards.markers import checked_marker, rejects_path
from shards.sources import source_files
from shards.triplets import read_triplets, triplet_paths


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture(size: int = 32, colour: str = "red") -> bytes:
    return png(Image.new("RGB", (size, size), colour))


def mask(size: int = 32, part: float = 0.5) -> bytes:
    image = Image.new("L", (size, size), 0)
    image.paste(255, (0, 0, int(size * part), size))
    return png(image)


def object_files(name: str) -> dict[str, bytes]:
    return {f"{name}_generation.png": picture(), f"{name}_caption.txt": b"a red cup\n", f"{name}_mask.png": mask()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels, a few hundred kilobytes of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def take(source: Path, run: Path, layout: str = "authors", size: int = 4) -> dict[str, int]:
    """Import and return the rejects by reason, after checking that what went in came out or was rejected."""
    rejected: dict[str, int] = {}
    for path in import_shards([source], layout, run, size, lambda done, total: None):  # type: ignore[arg-type]
        marker = checked_marker(path)
        assert marker.records_in == marker.records_out + sum(marker.rejected.values())
        assert len(list(read_json_lines(rejects_path(path)))) == sum(marker.rejected.values())
        for reason, count in marker.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    return rejected


def test_the_authors_folders_become_triplets(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for folder in ("Red Cup_01", "vase"):
        for number in range(3):
            files |= object_files(f"{folder}/{number:04d}")
    run = tmp_path / "run"
    assert take(write(tmp_path / "source", files), run) == {}
    found = list(read_triplets(triplet_paths(run)))
    assert [one.key for one in found] == [f"{name}-{n:04d}" for name in ("red_cup_01", "vase") for n in range(3)]
    one = found[0]
    assert (one.caption, one.record["class"], one.record["area"]) == ("a red cup", "red cup", 0.5)
    assert one.record["source"] == "Red Cup_01/0000" and one.image.size == one.mask.size == (32, 32)
    assert one.mask.getpixel((0, 0)) == 255 and one.mask.getpixel((31, 0)) == 0


def test_masks_of_16_bits_are_scaled(tmp_path: Path) -> None:
    values = np.full((32, 32), 20_000, dtype=np.uint16)  # less than a half, and far above 255
    values[:, :16] = 65_535
    files = object_files("cup/0") | {"cup/0_mask.png": png(Image.fromarray(values))}
    assert take(write(tmp_path / "source", files), tmp_path / "run") == {}
    (one,) = read_triplets(triplet_paths(tmp_path / "run"))
    assert (one.record["area"], one.mask.getpixel((31, 0))) == (0.5, 78)


def test_masks_of_false_and_true_and_captions_of_windows_are_taken(tmp_path: Path) -> None:
    values = np.zeros((32, 32), dtype=np.uint8)
    values[:, :16] = 1
    files = object_files("cup/0") | {"cup/0_mask.png": png(Image.fromarray(values))}
    files["cup/0_caption.txt"] = "\ufeffa red cup\r\n".encode()
    assert take(write(tmp_path / "source", files), tmp_path / "run") == {}
    (one,) = read_triplets(triplet_paths(tmp_path / "run"))
    assert (one.record["area"], one.mask.getpixel((0, 0)), one.caption) == (0.5, 255, "a red cup")


def test_every_fault_of_a_record_has_its_reason(tmp_path: Path) -> None:
    faults: dict[str, tuple[str, bytes | None]] = {
        "no generation.png": ("generation.png", None),
        "no caption.txt": ("caption.txt", None),
        "no mask.png": ("mask.png", None),
        "no caption": ("caption.txt", b" \n"),
        "caption is not UTF-8": ("caption.txt", b"\xff\xfe"),
        "caption with control characters": ("caption.txt", b"a\x00cup"),
        "caption too long": ("caption.txt", b"cup " * 3000),
        "unreadable image": ("generation.png", picture()[:60]),
        "image of too many pixels": ("mask.png", bomb()),
        "mask of another size than the image": ("mask.png", mask(16)),
        "mask of nothing": ("mask.png", mask(part=0)),
        "mask of everything": ("mask.png", mask(part=1)),
    }
    files = object_files("cup/good")
    for number, (part, content) in enumerate(faults.values()):
        files |= object_files(f"cup/{number:02d}")
        if content is None:
            del files[f"cup/{number:02d}_{part}"]
        else:
            files[f"cup/{number:02d}_{part}"] = content
    files |= object_files("cup/with.dot") | object_files("cup/GOOD") | {"cup/notes.md": b"x", ".hidden": b"x"}
    run = tmp_path / "run"
    rejected = take(write(tmp_path / "source", files), run)
    more = {"name unfit for a key": 1, "key of an earlier record": 1, "no part of the layout": 1}
    assert rejected == dict.fromkeys(faults, 1) | more
    assert len(list(read_triplets(triplet_paths(run)))) == 1


def test_an_import_resumes_and_follows_its_source(tmp_path: Path) -> None:
    files = {name: content for n in range(6) for name, content in object_files(f"cup/{n}").items()}
    source, run = write(tmp_path / "source", files), tmp_path / "run"
    take(source, run, size=2)
    first = {path.name: path.stat().st_mtime_ns for path in triplet_paths(run)}
    take(source, run, size=2)
    assert {path.name: path.stat().st_mtime_ns for path in triplet_paths(run)} == first
    (source / "cup" / "2_caption.txt").write_text("a green cup")
    take(source, run, size=2)
    assert [path.stat().st_mtime_ns == first[path.name] for path in triplet_paths(run)] == [True, False, True]
    for path in (source / "cup").glob("[345]_*"):
        path.unlink()
    take(source, run, size=2)
    assert [one.key for one in read_triplets(triplet_paths(run))] == ["cup-0", "cup-1", "cup-2"]
    (run / "captions").mkdir()
    with pytest.raises(ValueError, match="import into a folder of its own"):
        take(source, run)


def hostile(path: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in object_files("cup/0").items():
            add(tar, name, content)
        fill(tar)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("/tmp/escaped_mask.png", tarfile.REGTYPE, "leads out of the archive"),
        ("cup/../../escaped_mask.png", tarfile.REGTYPE, "leads out of the archive"),
        ("..", tarfile.DIRTYPE, "leads out of the archive"),
        ("cup\\..\\1_mask.png", tarfile.REGTYPE, "leads out of the archive"),
        ("cup/1_mask.png", tarfile.SYMTYPE, "not a plain file"),
        ("cup/1_mask.png", tarfile.LNKTYPE, "not a plain file"),
        ("cup/1_mask.png", tarfile.CHRTYPE, "not a plain file"),
        ("cup/0_mask.png", tarfile.REGTYPE, "stands there twice"),
    ],
)
def test_hostile_archives_are_refused_and_write_nothing(tmp_path: Path, name: str, kind: bytes, said: str) -> None:
    archive = hostile(tmp_path / "x.tar", lambda tar: add(tar, name, kind=kind))
    with pytest.raises(ValueError, match=said):
        take(archive, tmp_path / "run")
    assert list(tmp_path.iterdir()) == [archive] and not Path("/tmp/escaped_mask.png").exists()


def test_ten_gigabytes_of_zeros_are_not_read(tmp_path: Path) -> None:
    archive, size = tmp_path / "x.tar", 10 * 2**30
    member = tarfile.TarInfo("cup/1_generation.png")
    member.size = size
    hostile(archive, lambda tar: None)
    with archive.open("r+b") as file:  # a sparse file: its holes read as zeros and take no disk
        file.seek(-tarfile.RECORDSIZE, os.SEEK_END)
        while file.tell() > 0 and file.read(512) == bytes(512):
            file.seek(-1024, os.SEEK_CUR)
        file.truncate(file.tell())
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(file.tell() + size + 1024)
    with pytest.raises(ValueError, match="nothing could be taken .*: file larger than 64 MiB 1; "):
        take(archive, tmp_path / "run")
    assert sum(path.stat().st_size for path in (tmp_path / "run").rglob("*")) < 10**6
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        (tmp_path / "x.tar.gz").write_bytes(zlib.compress(bytes(10**6), wbits=31))
        source_files(tmp_path / "x.tar.gz")
    os.truncate(archive, 10_000)
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        source_files(archive)


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", object_files("cup/0"))
    (source / "cup" / "1_caption.txt").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="1_caption.txt' is a link or a device"):
        take(source, tmp_path / "run")


def test_pairs_become_images_of_one_subject(tmp_path: Path) -> None:
    both = Image.new("RGB", (4 + 32 + 4 + 32 + 4, 40), "white")
    both.paste("red", (4, 4, 36, 36))
    both.paste("blue", (40, 4, 72, 36))
    texts = {"item": "Tin Cup", "description_0": "a cup on a table", "description_1": "a cup in snow"}
    row = {"description": {**texts, "category": "Tableware", "description_valid": True}, "collection": "collection_2"}
    bad = {"description": {**texts, "description_valid": False}}
    files = {"0001.png": png(both), "0001.json": json.dumps(row).encode(), "0002.png": png(both)}
    files |= {"0003.png": png(both), "0003.json": json.dumps(bad).encode()}
    files |= {"0004.png": picture(), "0004.json": json.dumps(row).encode()}
    rejected = take(write(tmp_path / "source", files), tmp_path / "run", "pairs")
    assert rejected == {"no json": 2, "description marked as not valid": 2, "not two squares side by side": 2}
    records = dict(read_tar_records(tmp_path / "run" / "images" / "00000.tar"))
    assert list(records) == ["0001--0", "0001--1"]
    expected = (((254, 0, 0), texts["description_0"]), ((0, 0, 254), texts["description_1"]))
    for (key, parts), (colour, caption) in zip(records.items(), expected, strict=True):
        image, record = Image.open(io.BytesIO(parts["jpg"])), json.loads(parts["json"])
        assert image.size == (32, 32) and image.getpixel((0, 0)) == image.getpixel((31, 31)) == colour
        assert (record["caption"], record["subject"], record["class"]) == (caption, "tin cup", "tableware")
        assert record["key"] == key and record["pair"] == "0001"


def test_every_fault_of_a_pair_has_its_reason(tmp_path: Path) -> None:
    texts = {"item": "cup", "description_0": "a cup", "description_1": "a cup in snow"}
    row, both = json.dumps({"description": texts}).encode(), png(Image.new("RGB", (64, 32)))
    files = {"good.png": both, "good.json": row, "twice.png": both, "twice.jpg": both, "twice.json": row}
    files |= {"wide.png": png(Image.new("RGB", (100, 40))), "wide.json": row}
    files |= {"bare.png": both, "bare.json": b'{"description": {"description_0": "a cup"}}'}
    files |= {"list.png": both, "list.json": b"[1]", "nan.png": both, "nan.json": row[:-1] + b', "score": NaN}'}
    files |= {"x" * 77 + ".png": both, "x" * 77 + ".json": row, "y" * 78 + ".png": both, "y" * 78 + ".json": row}
    assert take(write(tmp_path / "source", files), tmp_path / "run", "pairs") == {
        "several images": 2, "not two squares side by side": 2, "no description": 2, "broken JSON": 4,
        "name unfit for a key": 2,
    }  # fmt: skip
    keys = [key for n in range(4) for key, _ in read_tar_records(tmp_path / "run" / "images" / f"{n:05d}.tar")]
    assert sorted(keys) == sorted(f"{name}--{n}" for name in ("good", "x" * 77) for n in range(2))


def test_shards_without_markers_come_back_as_they_were(tmp_path: Path) -> None:
    (shard,) = write_tiny_triplets(tmp_path / "one", shards=1)
    assert take(shard, tmp_path / "two", "triplets", size=10) == {}
    before, after = (list(read_triplets(triplet_paths(tmp_path / name))) for name in ("one", "two"))
    assert [(one.key, one.caption, one.jpg) for one in after] == [(one.key, one.caption, one.jpg) for one in before]
    assert [list(one.mask.getdata()) for one in after] == [list(one.mask.getdata()) for one in before]
    one = tiny_triplet(0)
    parts = {"a.jpg": one.jpg, "a.mask.png": one.mask_png}
    broken = {"a.json": b"{", "b.json": json.dumps({"key": "c", "caption": "x"}).encode()}
    broken |= {name.replace("a.", "b."): content for name, content in parts.items()} | {"c.d.jpg": one.jpg}
    broken |= {name.replace("a.", "e."): content for name, content in parts.items()}
    broken["e.json"] = b'{"caption": "x", "models": {"images.model": 7}}'
    broken |= {name.replace("a.", "g."): content for name, content in parts.items()} | {"g.json": b'{"caption": "x"}'}
    rejected = take(write(tmp_path / "source", parts | broken), tmp_path / "three", "triplets")
    no_texts = {"class, subject or models are not texts": 1}
    assert rejected == no_texts | {"broken JSON": 1, "record of another key": 1, "no part of the layout": 1}
