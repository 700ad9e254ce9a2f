"""Completion markers: the only truth about which shards are done, and from what they were made."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.files import sha256_of

MARKER_SUFFIX = ".done.json"
REJECTS_SUFFIX = ".rejects.jsonl"


@dataclass(frozen=True)
class FileState:
    """A finished file: size in bytes, SHA-256, and the modification time that lets a later check skip the hashing."""

    bytes: int
    sha256: str
    mtime_ns: int

    def matches(self, path: Path) -> bool:
        """Whether `path` still holds these bytes; it is hashed only if its modification time has changed.

        A time that has changed alone, as in a copy, is put right, so that the next look need not hash it again.
        """
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size != self.bytes:
            return False
        if status.st_mtime_ns == self.mtime_ns:
            return True
        if sha256_of(path) != self.sha256:
            return False
        with contextlib.suppress(OSError):  # another's file, or one that can only be read
            os.utime(path, ns=(status.st_atime_ns, self.mtime_ns))
        return True


@dataclass(frozen=True)
class Marker:
    """What a finished shard is (`shard`, `rejects`), its accounts, what made it (`recipe`), and how (`execution`).

    `digest` is the SHA-256 of the recipe: stage, version, settings, models' identities, checksums of the inputs.
    `execution` (device, batch size, seconds, ...) is recorded for reports and never compared.
    """

    digest: str
    recipe: dict[str, Any]
    records_in: int
    records_out: int
    rejected: dict[str, int]
    shard: FileState
    rejects: FileState
    execution: dict[str, Any] = field(default_factory=dict)

    @property
    def copies(self) -> int:
        """How many records were made of each record of the first input, accepted or rejected."""
        return int(self.recipe.get("copies", 1))

    def to_json(self) -> bytes:
        """The marker's file content."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"


def marker_path(shard: Path) -> Path:
    """Where the marker of a shard file lies: `images/00003.tar` -> `images/00003.done.json`."""
    return shard.with_name(shard.name.partition(".")[0] + MARKER_SUFFIX)


def rejects_path(shard: Path) -> Path:
    """Where the rejects of a shard file lie: `images/00003.tar` -> `images/00003.rejects.jsonl`."""
    return shard.with_name(shard.name.partition(".")[0] + REJECTS_SUFFIX)


def read_marker(shard: Path) -> Marker | None:
    """The marker of a shard file, or None if there is none or it cannot be read: such a shard is not done."""
    try:
        return parsed_marker(marker_path(shard).read_bytes())
    except FileNotFoundError:
        return None


def parsed_marker(content: bytes) -> Marker | None:
    """The marker that a marker's file content says, or None where it says none."""
    try:
        fields = json.loads(content)
        fields["shard"] = FileState(**fields["shard"])
        fields["rejects"] = FileState(**fields["rejects"])
        return Marker(**fields)
    except (ValueError, KeyError, TypeError):
        return None


def checked_marker(shard: Path) -> Marker:
    """The marker of a finished, untouched shard.

    Raises FileNotFoundError where the shard or its marker is missing and ValueError where the bytes do not match.
    """
    marker = read_marker(shard)
    if marker is None:
        state = "has no readable marker (it was never finished)" if shard.exists() else "does not exist"
        raise FileNotFoundError(f"{shard} {state}: run build-dataset for its run folder")
    if not marker.shard.matches(shard):
        raise ValueError(
            f"{shard} is torn or altered: its bytes do not match its marker; run build-dataset to rebuild it"
        )
    return marker
