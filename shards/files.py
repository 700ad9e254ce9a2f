"""Durable files: temporary name, sync, rename; exclusive creation; deterministic JSON lines and tar members."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

# Made once: `json.dumps` would spend half its time on getting ready for a line.
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
KEY_PATTERN = re.compile(r"[0-9a-z_-]{1,80}")
TEMPORARY = ".tmp-"
BUFFER = 2**18  # bytes that are hashed and written at once


def reached(point: str) -> None:
    """Do nothing: tests put a function here that kills the process at a named point of a write."""


def checked_key(key: object) -> str:
    """Return `key` if it may name a record's files; WebDataset splits names at dots and tar names may hold paths.

    Raises ValueError for anything but 1 to 80 characters out of `0-9a-z_-`.
    """
    if not isinstance(key, str) or not KEY_PATTERN.fullmatch(key):
        raise ValueError(f"record key {key!r} is not made of 1 to 80 of the characters 0-9 a-z _ -")
    return key


def copy_keys(key: str, copies: int) -> list[str]:
    """The keys of as many records made of one record: its own for one, else KEY--0, KEY--1, ..."""
    return [key] if copies == 1 else [f"{key}--{number}" for number in range(copies)]


def copied_key(key: str) -> str:
    """The key of the record that a record was made of: KEY of KEY--0; its own where there were no copies."""
    return re.sub(r"--\d+$", "", key)


def json_line(record: Mapping[str, Any]) -> bytes:
    """One record as canonical UTF-8 JSON with a newline: sorted keys, no spaces, NaN refused with ValueError."""
    # A lone surrogate has no UTF-8 form; its backslash escape is valid JSON for the same string.
    return _ENCODER.encode(record).encode("utf-8", "backslashreplace") + b"\n"


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file; raises ValueError with the line's number where one is broken."""
    return (record for record, _ in records_with_lines(path))


def records_with_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the records of a JSON-lines file beside their lines, as `read_json_lines` does."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = from_json(line, cache_strings="keys")
            except ValueError:  # a line that is broken, or holds half a surrogate pair: the slower decoder tells
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            yield record, line


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames, links and removals inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from beginning or finishing a shard in `folder` for a moment."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A name beside `path` that no other process uses, on this machine or another, and no reader takes for a shard."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}")


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[BinaryIO]:
    """A new temporary file beside `path`, open for writing, locked while its process lives, and gone in the end."""
    while True:
        with temporary_beside(path).open("xb") as file:
            try:
                with _where_locks_are():
                    fcntl.flock(file, fcntl.LOCK_EX)
                if os.path.exists(file.name):  # else another process took it for a leftover before it was locked
                    yield file
                    return
            finally:
                Path(file.name).unlink(missing_ok=True)


@contextlib.contextmanager
def _where_locks_are() -> Iterator[None]:
    """Go on after this block on a file system without locks, on which leftovers stay."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise


def remove_leftovers(*paths: Path) -> None:
    """Remove the temporary files that dead processes left beside files of a folder; those of living ones stay."""
    folder, beginnings = paths[0].parent, tuple(f"{path.name}{TEMPORARY}" for path in paths)
    # Listed once and by name alone: the folder of a large dataset holds tens of thousands of files.
    for name in os.listdir(folder):
        if name.startswith(beginnings):
            # For writing, without which NFS grants no exclusive lock.
            with (
                contextlib.suppress(BlockingIOError, FileNotFoundError),
                _where_locks_are(),
                (folder / name).open("r+b") as file,
            ):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by a living process
                (folder / name).unlink()


def write_exclusively(path: Path, content: bytes) -> bool:
    """Create `path` with its whole content or not at all; False if it exists already.

    A hard link is the one operation that is both atomic and exclusive on local and network file systems.
    """
    with temporary_file(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


@contextlib.contextmanager
def written_at_once(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when all is well: readers see the old content or the new."""
    remove_leftovers(path)
    with temporary_file(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)
    sync_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, in the place of what was there: after a kill it is the old one or the new one."""
    with written_at_once(path) as file:
        file.write(content)


class HashingFile:
    """A file opened for writing that counts and hashes what passes, so that no shard is read again for its checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb", buffering=0)
        # Held until the file is closed or its process is dead, so that leftovers can be told from work in progress.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._passed = 0
        self._waiting = bytearray()
        self._sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Append bytes."""
        self._waiting += content
        if len(self._waiting) >= BUFFER:
            self._pass()
        return len(content)

    def _pass(self) -> None:
        waiting, self._waiting = self._waiting, bytearray()
        self._sha256.update(waiting)
        self._passed += len(waiting)
        with memoryview(waiting) as left:
            written = 0
            while written < len(waiting):
                written += self._file.write(left[written:])

    def sync(self) -> None:
        """Make all bytes written so far durable."""
        self._pass()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file and its lock; what was not synced may be lost."""
        self._file.close()

    @property
    def size(self) -> int:
        """How many bytes were written so far."""
        return self._passed + len(self._waiting)

    @property
    def sha256(self) -> str:
        """Checksum of the bytes synced so far, 64 hex digits."""
        return self._sha256.hexdigest()


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a member whose header holds nothing but its name and size: no time, owner or host."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))


def tar_members(path: Path) -> list[tuple[str, int, int]]:
    """Names, byte offsets and sizes of a tar's members; ValueError if one is not a plain file or is cut short."""
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or "/" in member.name or member.name.startswith("."):
                    raise ValueError(f"{path}: member {member.name!r} is not a plain file of a shard")
                members.append((member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a readable tar ({error})") from None
    return members


def group_members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """A tar shard's records: key -> extension ("jpg", "mask.png", ...) -> (offset, size), in the order of the file.

    Raises ValueError for hostile keys, and for a record that appears twice or in two places.
    """
    records: dict[str, dict[str, tuple[int, int]]] = {}
    previous = None
    for name, offset, size in tar_members(path):
        key, _, extension = name.partition(".")
        if checked_key(key) != previous and key in records:
            raise ValueError(f"{path}: record {key} appears twice")
        if extension in records.setdefault(key, {}):
            raise ValueError(f"{path}: {name} appears twice")
        records[key][extension] = (offset, size)
        previous = key
    return records


def read_tar_records(path: Path, extensions: tuple[str, ...] | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, extension -> bytes) of a tar shard in file order, of the named extensions or of all."""
    records = group_members(path)
    with path.open("rb") as file:
        for key, parts in records.items():
            content = {}
            for extension, (offset, size) in parts.items():
                if extensions is None or extension in extensions:
                    file.seek(offset)
                    content[extension] = file.read(size)
            yield key, content
