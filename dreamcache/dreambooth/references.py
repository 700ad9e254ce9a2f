"""References as a benchmark stores them, and as the backbone is shown them."""

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from shards.files import sha256_of


@dataclass(frozen=True)
class Reference:
    """A reference as stored: the image's file, its mask as the bytes of an image file (None: no mask), its key."""

    key: str
    path: Path
    mask: bytes | None

    @property
    def digest(self) -> str:
        """The sha256 over image and mask."""
        total = hashlib.sha256(file_digest(self.path).encode())
        total.update(b"mask" + self.mask if self.mask is not None else b"no mask")
        return total.hexdigest()


def shown_reference(reference: Reference, size: int) -> Image.Image:
    """A reference as the backbone is shown it: the subject on white, RGB, size x size; ValueError if unreadable."""
    from dreamcache.dreambooth.embedders import open_image
    from dreamcache.reference import reference_image

    try:
        mask = None if reference.mask is None else Image.open(io.BytesIO(reference.mask))
        return reference_image(open_image(reference.path), mask, size)
    except UnidentifiedImageError as error:
        raise ValueError(f"{reference.path}: its mask is not a readable image") from error
    except ValueError as error:
        raise ValueError(f"{reference.path}: {error}") from error


def file_digest(path: Path) -> str:
    """The sha256 of a file, read once as long as its size and time stay the same."""
    status = path.stat()
    return _sha256_once(path, status.st_size, status.st_mtime_ns)


@cache  # the same real images are asked after for every variant and stage
def _sha256_once(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(path)
