"""A run folder on an object store: every process works in a local copy, the mirror, and meets others by the markers.

A finished shard's files are put under temporary keys that hold their checksums, `images/00003.tar.tmp-SHA256-TOKEN`.
Then the marker is put on the condition that none is there, or just the outdated one that was seen. Then the files are
copied to their own keys, and the temporary ones removed. So a marker names files that are there, under one key or the
other: whoever finds a temporary key with the checksum that the marker names copies it again, and a shard without a
marker is made again. For a local folder the functions here ask the file system alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from shards import files
from shards.files import TEMPORARY, sha256_of
from shards.markers import MARKER_SUFFIX, REJECTS_SUFFIX, FileState, Marker, marker_path, parsed_marker, read_marker
from shards.markers import rejects_path as rejects_of
from shards.objects import Listed, Objects

KEY = re.compile(
    r"(?P<file>(?P<shard>(?P<folder>[a-z]+)/\d{5})\.(?P<kind>tar|jsonl|rejects\.jsonl|done\.json))"
    rf"({TEMPORARY}(?P<sha256>[0-9a-f]{{64}})-[0-9a-f]+)?"
)
LEFTOVER_SECONDS = 86_400  # a temporary object that no marker names is a dead process's after so long

_stores: dict[Path, Store] = {}


class Store:
    """A run's objects as they were last listed, and their mirror; only one that is opened for writing is changed.

    Its methods raise as those of `Objects`.
    """

    def __init__(self, url: str, mirror: Path) -> None:
        self.url, self.mirror, self.objects, self.writing = url, mirror, Objects(url), False
        self.listed: dict[str, Listed] = {}

    def key(self, path: Path) -> str:
        """The name of a mirror's file in the store: "images/00003.tar"."""
        return path.relative_to(self.mirror).as_posix()

    def look(self) -> None:
        """List the objects once; markers and small files that are others than the mirror's are brought there.

        What was broken off between a marker and its files' own keys is finished.
        """
        # The lock is for other processes with this mirror: a marker of theirs may be newer than our listing.
        with files.locked_folder(self.mirror):
            self.listed = self.objects.listing()
            matches = {key: KEY.fullmatch(key) for key in self.listed}
            small, folders = [], {match["folder"] for match in matches.values() if match}
            for key, match in matches.items():
                beside_shards = match is None and TEMPORARY not in key and key.rpartition("/")[0] in {"", *folders}
                if beside_shards or (match and match["kind"] == "done.json"):
                    small.append(key)
            changed = [key for key in small if not self.is_same(self.mirror / key)]
            for key, content in self.objects.read_all(changed).items():
                put_in_place(self.mirror / key, content)
            for path in self.mirror.glob(f"*/*{MARKER_SUFFIX}"):
                if KEY.fullmatch(self.key(path)) and self.key(path) not in self.listed:
                    path.unlink()
            if self.writing:
                self._finish()

    def is_same(self, path: Path, key: str | None = None) -> bool:
        """Whether a file has the size and the MD5 of its object, or of another; False also where the ETag is no MD5."""
        listed = self.listed.get(key or self.key(path))
        if listed is None or not path.is_file() or path.stat().st_size != listed.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == listed.etag

    def _finish(self) -> None:
        """Copy the temporary objects that markers name, and remove them and those that none will name any more.

        Should a run with other settings on the same folder put its marker while one is copied, the wrong bytes may lie
        beside it: readers see that by the checksum.
        """
        for key in [key for key in self.listed if TEMPORARY in key]:
            match, changed = KEY.fullmatch(key), self.listed[key].changed
            if match and (state := self._named(self.mirror / match["file"])) and match["sha256"] == state.sha256:
                if not self.objects.copy(key, match["file"]):
                    self.listed[match["file"]] = self.listed.pop(key)
                    continue  # whoever put it there is alive, and has just finished
                self.listed[match["file"]] = self.listed[key]
            elif changed is None or time.time() - changed < LEFTOVER_SECONDS:
                continue
            self.objects.remove(key)
            del self.listed[key]

    def _named(self, path: Path) -> FileState | None:
        """What a shard's marker in the mirror says of one of its files."""
        marker = read_marker(path)
        return None if marker is None else state_of(path, marker)

    def sources(self, path: Path, state: FileState) -> list[str]:
        """The objects that should hold a file's bytes, by the listing: temporary ones, and its own if the size fits."""
        key = self.key(path)
        found = [other for other in self.listed if other.startswith(f"{key}{TEMPORARY}{state.sha256}-")]
        return found + ([key] if key in self.listed and self.listed[key].size == state.bytes else [])

    def places(self, path: Path, state: FileState) -> list[str]:
        """Where to look for a file's bytes: in `sources`, and in its own object whatever the listing says.

        A listing from the midst of a publication knows temporary objects alone, which are gone soon after.
        """
        return list(dict.fromkeys([*self.sources(path, state), self.key(path)]))

    def publish(
        self, shard: Path, written: Mapping[Path, Path], marker: Marker, keep: Callable[[Marker], None]
    ) -> None:
        """Put a finished shard into the store and call `keep` with the marker that stands then: ours or another's.

        `written` says where the bytes of the shard and of its rejects lie. A marker of the same recipe whose files are
        there stays, and what was uploaded beside it goes; any other is replaced.
        """
        name, token = self.key(shard).partition(".")[0], os.urandom(4).hex()
        uploaded: dict[str, Path] = {}
        for (path, place), point in zip(written.items(), ("uploading", "uploaded"), strict=True):
            temporary = f"{self.key(path)}{TEMPORARY}{state_of(path, marker).sha256}-{token}"
            self.objects.upload(place, temporary)
            uploaded[temporary] = path
            files.reached(f"{name} {point}")
        with files.locked_folder(self.mirror):
            standing = self._mark(shard, marker)
            self.listed[self.key(marker_path(shard))] = Listed(len(standing.to_json()), None, None)
            files.reached(f"{name} published")
            for (temporary, path), point in zip(uploaded.items(), ("copying", "copied"), strict=True):
                # Also where another's marker stands that names the same bytes: its own may be gone.
                if (state := state_of(path, standing)).sha256 == state_of(path, marker).sha256:
                    if not self.objects.copy(temporary, self.key(path)):
                        # Another process has finished it, and who knows what came there since.
                        self.objects.upload(written[path], self.key(path))
                    self.listed[self.key(path)] = Listed(state.bytes, None, None)
                files.reached(f"{name} {point}")
            for temporary, point in zip(uploaded, ("clearing", "cleared"), strict=True):
                self.objects.remove(temporary)
                files.reached(f"{name} {point}")
            keep(standing)

    def _mark(self, shard: Path, marker: Marker) -> Marker:
        """Put a marker, unless one of the same recipe with its files is there; returns the one that stands."""
        key, content = self.key(marker_path(shard)), marker.to_json()
        while True:
            # In this order: should the object change between, the condition is of the older one and will not hold.
            seen = self.objects.state(key)
            there = None if seen is None else self.objects.read(key)
            other = None if there is None else parsed_marker(there)
            if there == content:
                return marker
            if other is not None and other.digest == marker.digest:
                self.listed |= self.objects.listing(key.partition("/")[0])
                states = [(path, state_of(path, other)) for path in (shard, rejects_of(shard))]
                if all(
                    state.sha256 == state_of(path, marker).sha256 or self.sources(path, state) for path, state in states
                ):
                    return other
            if self.objects.create(key, content) if seen is None else self.objects.replace(key, content, seen):
                return marker

    def bring(self, path: Path) -> Marker:
        """Have a finished shard's file in the mirror and return its marker.

        Raises FileNotFoundError where it is not finished, and RuntimeError where the object is damaged: its marker is
        then withdrawn, so that the next start makes it again; ValueError if the store is only read.
        """
        place, name = marker_path(path), f"{self.url}/{self.key(path)}"
        marker = read_marker(path)
        if marker is None:
            raise FileNotFoundError(f"{name} is not finished: run build-dataset for its run first")
        if marker.shard.matches(path) or self.fetch(self.places(path, marker.shard), path, marker.shard):
            return marker
        if parsed_marker(self.objects.read(self.key(place)) or b"") != marker:
            raise RuntimeError(f"{name} was replaced meanwhile: start again to go on with the new one")
        if not self.writing:
            raise ValueError(f"{name} is damaged: run dreamcache verify {self.url} --repair")
        self.remove(place)
        raise RuntimeError(f"{name} was damaged: start again, and it is made again")

    def fetch(self, keys: Iterable[str], path: Path, state: FileState | None = None) -> bool:
        """Write the first of some objects that holds the bytes of `state`, or any bytes for None; whether one did."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.temporary_file(path) as file:
            temporary = Path(file.name)
            for key in keys:
                there = self.objects.download(key, temporary)
                if there and (state is None or sha256_of(temporary) == state.sha256):
                    os.fsync(file.fileno())
                    if state is not None:  # then it need not be hashed again
                        os.utime(temporary, ns=(state.mtime_ns, state.mtime_ns))
                    os.replace(temporary, path)
                    return True
            return False

    def remove(self, path: Path) -> None:
        """Remove a file from the store, and then from the mirror."""
        self.objects.remove(self.key(path))
        self.listed.pop(self.key(path), None)
        path.unlink(missing_ok=True)


def state_of(path: Path, marker: Marker) -> FileState:
    """What a marker says of its shard's file or of its rejects."""
    return marker.rejects if path.name.endswith(REJECTS_SUFFIX) else marker.shard


def put_in_place(path: Path, content: bytes) -> None:
    """Write a mirror's file whole, for its other readers; one that a power cut tears is brought again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.temporary_file(path) as file:
        file.write(content)
        file.flush()
        os.replace(file.name, path)


def open_store(url: str, writing: bool) -> Path:
    """The mirror of a run on a store, below $DREAMCACHE_CACHE or ~/.cache/dreamcache, with all markers as they are now.

    The functions below know it from then on. Raises ValueError for a store that `writing` would not be safe on.
    """
    url = url.rstrip("/")
    cache = Path(os.environ.get("DREAMCACHE_CACHE") or Path.home() / ".cache" / "dreamcache")
    name = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:10]}"
    mirror = (cache / "runs" / name).resolve()
    store = _stores.get(mirror) or Store(url, mirror)
    if writing and not store.writing:
        store.objects.check_conditions()
        store.writing = True
    mirror.mkdir(parents=True, exist_ok=True)
    store.look()
    _stores[mirror] = store
    return mirror


def store_of(path: Path) -> Store | None:
    """The store whose mirror holds a path; None for any other place."""
    return next((store for mirror, store in _stores.items() if path.is_relative_to(mirror)), None)


def url_of(path: Path) -> str | None:
    """The URL of a mirror or of a path in one; None for any other place."""
    store = store_of(path)
    return None if store is None else f"{store.url}/{store.key(path)}".removesuffix("/.")


def place_of(path: Path) -> str:
    """Where a path lies for people and other machines: its URL, or the path itself as it was given."""
    return url_of(path) or str(path)


def look_again(run: Path) -> bool:
    """Take note of what others put into a run's store; False for a local folder, which needs no such look."""
    store = store_of(run)
    if store is not None:
        store.look()
    return store is not None


def is_whole(path: Path, state: FileState) -> bool:
    """Whether a file holds these bytes, here or, by its size, in the store that counts."""
    store = store_of(path)
    return state.matches(path) if store is None else bool(store.sources(path, state))


def is_there(path: Path) -> bool:
    """Whether there is such a file, whatever its bytes."""
    store = store_of(path)
    return path.exists() if store is None else store.key(path) in store.listed


def shard_files(folder: Path, suffix: str) -> list[Path]:
    """The shards' files of a folder, finished or not, in order."""
    store = store_of(folder)
    if store is None:
        return sorted(folder.glob(f"*{suffix}"))
    matches = (KEY.fullmatch(key) for key in store.listed if key.startswith(f"{store.key(folder)}/"))
    return sorted({store.mirror / match["file"] for match in matches if match and f".{match['kind']}" == suffix})


def bring(paths: Sequence[Path]) -> None:
    """Have finished shards' files here; raises as `Store.bring`."""
    for path in paths:
        if (store := store_of(path)) is not None:
            store.bring(path)


def remove(path: Path) -> None:
    """Remove a file wherever the run lies, if it is there: a marker, before what it vouches for is made again."""
    store = store_of(path)
    if store is None:
        path.unlink(missing_ok=True)
    else:
        store.remove(path)
