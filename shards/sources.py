"""Files of strangers, in a folder or a tar: read where they lie, never unpacked, hostile ones refused."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: where its bytes lie, how many they are, and a stamp that changes when they may have."""

    path: Path
    offset: int
    size: int
    stamp: str

    def read(self) -> bytes:
        """All bytes; ValueError with the reason, a short fixed phrase, for a file larger than anything we import."""
        if self.size > MAX_BYTES:
            raise ValueError(f"file larger than {MAX_BYTES // 2**20} MiB")
        # No link is followed, even one that took the place of a file since the source was listed.
        with open(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size:
            raise ValueError("file changed while it was read")
        return content


def source_files(source: Path) -> dict[str, SourceFile]:
    """The files of a folder or an uncompressed tar by their names in it, "a/b.png", in the order of the names.

    Raises FileNotFoundError where there is none, and ValueError for a source that holds anything but plain files below
    itself: links, devices, absolute names or such with "..", a name twice, a tar that is compressed or cut short.
    """
    if source.is_dir():
        files = _folder_files(source)
    elif source.is_file():
        files = _tar_files(source)
    else:
        raise FileNotFoundError(f"{source}: there is no such folder or tar")
    return dict(sorted(files.items()))


def _folder_files(folder: Path) -> dict[str, SourceFile]:
    files = {}
    waiting = [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            name = Path(entry.path).relative_to(folder).as_posix()
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                waiting.append(Path(entry.path))
            elif stat.S_ISREG(status.st_mode):
                stamp = f"{status.st_size} {status.st_mtime_ns}"
                files[name] = SourceFile(Path(entry.path), 0, status.st_size, stamp)
            else:
                raise ValueError(f"{folder}: {name!r} is a link or a device, not a plain file")
    return files


def _tar_files(path: Path) -> dict[str, SourceFile]:
    files: dict[str, SourceFile] = {}
    status = path.stat()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                parts = name.split("/")
                if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
                    raise ValueError(f"{path}: the name {member.name!r} leads out of the archive")
                if member.isdir():
                    continue
                if not member.isreg() or member.sparse is not None:
                    raise ValueError(f"{path}: {member.name!r} is a link, a device or sparse, not a plain file")
                if name in files:
                    raise ValueError(f"{path}: {member.name!r} stands there twice")
                stamp = f"{member.size} {member.offset_data} {status.st_size} {status.st_mtime_ns}"
                files[name] = SourceFile(path, member.offset_data, member.size, stamp)
            # Cut between two members, or in a header, it would pass for a smaller one.
            if tar.offset + tarfile.BLOCKSIZE > status.st_size:
                raise ValueError(f"{path}: cut short: the end mark of a tar is not there")
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not an uncompressed tar ({error}); decompress it first") from None
    return files


def eight_bits(image: Image) -> Image:
    """The image with grey pixels of 16 bits scaled to 8, where Pillow would clip them; any other image as it is.

    Where no value is above 255, they are 8 bits that were stored in 16, and stay. ValueError for floating-point pixels.
    """
    import numpy as np
    from PIL import Image as PILImage

    if image.mode == "F":
        raise ValueError("floating-point pixels have no range; convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image, dtype=np.float64)
    if values.max(initial=0.0) > 255:
        values = values / 257
    return PILImage.fromarray(values.clip(0, 255).round().astype(np.uint8))


def decoded_image(content: bytes) -> Image:
    """An image from a stranger's bytes, decoded, in its own mode but for `eight_bits`.

    Raises ValueError with the reason for what is no image, or one of more than `MAX_PIXELS`, which is not decoded.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("image of too many pixels")
        image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError("image of too many pixels") from None
    except (OSError, SyntaxError, EOFError, MemoryError):
        raise ValueError("unreadable image") from None
    except ValueError as error:
        raise ValueError("image of too many pixels" if "pixels" in str(error) else "unreadable image") from None
    return eight_bits(image)
