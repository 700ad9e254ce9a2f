"""Strangers' files: what changes under the reader's hands, and images that are not to be decoded, are refused."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import sources
from shards.sources import decoded_image, eight_bits, source_files


def encoded(kind: str, size: tuple[int, int] = (10, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM"])
def test_images_of_no_expected_format_are_not_decoded(kind: str) -> None:
    with pytest.raises(ValueError, match="^unreadable image$"):
        decoded_image(encoded(kind))


def test_images_of_too_many_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit, which a bomb meets, is another."""
    monkeypatch.setattr(sources, "MAX_PIXELS", 100)
    assert decoded_image(encoded("PNG")).size == (10, 10)
    with pytest.raises(ValueError, match="^image of too many pixels$"):
        decoded_image(encoded("PNG", (11, 10)))


def test_eight_bits_that_are_stored_in_more_stay() -> None:
    values = np.array([[0, 7, 200]], dtype=np.uint16)
    assert np.array_equal(np.asarray(eight_bits(Image.fromarray(values))), values)
    with pytest.raises(ValueError, match="floating-point pixels have no range"):
        eight_bits(Image.fromarray(values.astype(np.float32)))


def test_a_file_that_changes_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "source" / "a.txt"
    path.parent.mkdir()
    path.write_bytes(b"content")
    (file,) = source_files(path.parent).values()
    path.write_bytes(b"less")
    with pytest.raises(ValueError, match="^file changed while it was read$"):
        file.read()
    (tmp_path / "secret").write_bytes(b"content")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        file.read()


def test_a_tar_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.txt", "b.txt"):
            tar.addfile(tarfile.TarInfo(name))
            (tmp_path / name).write_bytes(b"x" * 600)
            tar.add(tmp_path / name, f"in/{name}")
        end = tar.offset
    content = path.read_bytes()
    assert list(source_files(path)) == ["a.txt", "b.txt", "in/a.txt", "in/b.txt"]
    path.write_bytes(content[: end + 512])
    assert len(source_files(path)) == 4
    for cut in range(0, end + 512, 64):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="x.tar: (cut short|not an uncompressed tar)"):
            source_files(path)


def test_sparse_members_whose_bytes_are_not_in_the_archive_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**20)
        file.seek(0, os.SEEK_END)
        file.write(b"x")
    command = ["tar", "--format=gnu", "--sparse", "--hole-detection=raw", "-cf", "x.tar", "a.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(ValueError, match="'a.txt' is a link, a device or sparse"):
        source_files(tmp_path / "x.tar")
