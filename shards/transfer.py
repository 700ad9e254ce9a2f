"""Whole folders between a run on an object store and a disk: plain files there, all of it here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shards.files import TEMPORARY, remove_leftovers
from shards.markers import MARKER_SUFFIX, marker_path, parsed_marker, rejects_path
from shards.store import KEY, Store, put_in_place, state_of, store_of

DONE = "done.json"
ORIGIN = ".pulled-from"  # in a folder that holds a copy of a run on an object store: its URL


def send(run: Path, *names: str) -> None:
    """Put plain files of a run's mirror, or all in its finished folders, into the store; for a local run do nothing.

    What vouches for a folder, `done.json`, goes first and comes last. Shards, their markers and what lies in folders
    beside them are no plain files. Where the store has a folder of plain files alone by another recipe, that is set
    aside there first, as FOLDER.DIGEST.
    """
    if (store := store_of(run)) is None:
        return
    for name in names:
        if (run / name).is_file():
            _send_file(store, run / name)
            continue
        if is_sent(run, name):
            continue
        if not _is_beside_shards(store, run / name):
            _set_aside(store, run / name)
        store.objects.remove(store.key(run / name / DONE))
        found = [path for path in _plain_files(store, run / name) if not store.is_same(path)]
        for path in sorted(found, key=lambda path: path == run / name / DONE):
            _send_file(store, path)


def _set_aside(store: Store, folder: Path) -> None:
    """Copy a folder that the store has finished by another recipe to a name of its own there; nothing of it stays."""
    marker = store.key(folder / DONE)
    key = marker.removesuffix(DONE)
    there = sorted(name for name in store.objects.listing(key) if name.startswith(key) and TEMPORARY not in name)
    done = store.objects.read(marker)
    if done is not None and json.loads(done)["recipe"] != json.loads((folder / DONE).read_bytes())["recipe"]:
        aside = f"{key.rstrip('/')}.{hashlib.sha256(done).hexdigest()[:8]}/"
        # What vouches for it is copied last and goes first, so that a kill leaves one of the two whole.
        for name in sorted(there, key=lambda name: name == marker):
            store.objects.copy(name, aside + name.removeprefix(key))
        store.objects.remove(marker)
    for name in there:
        if not (store.mirror / name).is_file():
            store.objects.remove(name)
            store.listed.pop(name, None)


def _send_file(store: Store, path: Path) -> None:
    store.objects.upload(path, store.key(path))
    if (listed := store.objects.state(store.key(path))) is not None:
        store.listed[store.key(path)] = listed


def _plain_files(store: Store, folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*") if _is_beside_shards(store, folder) else folder.rglob("*")):
        if path.is_file() and not KEY.fullmatch(store.key(path)) and TEMPORARY not in path.name:
            yield path


def _is_beside_shards(store: Store, folder: Path) -> bool:
    return any(KEY.fullmatch(name) and name.startswith(f"{store.key(folder)}/") for name in store.listed)


def is_sent(run: Path, name: str) -> bool:
    """Whether a step's finished folder, by its `done.json`, is in the store too; True for a local run folder."""
    store, done = store_of(run), run / name / DONE
    if store is None or not done.is_file() or store.is_same(done):
        return True
    return store.objects.read(store.key(done)) == done.read_bytes()


def bring_step(folder: Path, recipe: dict[str, Any]) -> None:
    """Bring a step's folder of plain files here, if the store has it finished by this recipe."""
    store = store_of(folder)
    content = None if store is None else store.objects.read(store.key(folder / DONE))
    if store is None or content is None or json.loads(content).get("recipe") != recipe:
        return
    keys = [key for key in store.listed if key.startswith(f"{store.key(folder)}/")]
    for key in sorted(keys, key=lambda key: key.endswith(f"/{DONE}")):
        if not store.is_same(store.mirror / key):
            store.fetch([key], store.mirror / key)


def copy_here(run: Path, report: Callable[[int, int], None]) -> None:
    """Make the shards, and the files beside them, in a run's mirror what they are in the store, damage included."""
    if (store := store_of(run)) is None:
        return
    store.look()
    wanted: dict[Path, list[str]] = {}
    for key in store.listed:
        if (match := KEY.fullmatch(key)) and match["kind"] != "done.json":
            path = store.mirror / match["file"]
            marker = parsed_marker(_bytes_of(marker_path(path)))
            keys = [] if marker is None else store.sources(path, state_of(path, marker))
            if keys or match["file"] in store.listed:
                wanted[path] = list(dict.fromkeys([*keys, match["file"]]))
    for done, (path, keys) in enumerate(wanted.items(), start=1):
        if keys[0] != store.key(path) or not store.is_same(path):
            store.fetch(keys, path)
        report(done, len(wanted))
    for folder in {path.parent for path in run.glob("*/*") if KEY.fullmatch(store.key(path))}:
        for path in folder.iterdir():
            gone = path not in wanted and store.key(path) not in store.listed
            if gone and path.is_file() and TEMPORARY not in path.name and path.suffix != ".log":
                path.unlink()


def pull(run: Path, folder: Path, report: Callable[[int, int], None]) -> None:
    """Copy a run from its store into a local run folder, each shard before its marker; what is whole there stays.

    Raises ValueError for a damaged object, and for a folder that holds anything that was not pulled from there.
    """
    store = store_of(run)
    assert store is not None
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / ORIGIN)
    there = {path.name for path in folder.iterdir()}
    if there - {".lock"} and _bytes_of(folder / ORIGIN).decode() != store.url:
        raise ValueError(f"{folder} holds something that was not pulled from {store.url}: choose another folder")
    put_in_place(folder / ORIGIN, store.url.encode())
    matches = {key: KEY.fullmatch(key) for key in store.listed}
    data = [match for match in matches.values() if match and match["kind"] in ("tar", "jsonl")]
    shards = {match["shard"]: match["file"] for match in data}
    marked = [match["shard"] for match in matches.values() if match and match["kind"] == "done.json"]
    plain = [key for key, match in matches.items() if match is None and TEMPORARY not in key]
    plain.sort(key=lambda key: ("/" in key, key.endswith(f"/{DONE}")))
    for path in folder.glob(f"*/*{MARKER_SUFFIX}"):
        if path.relative_to(folder).as_posix() not in store.listed:
            path.unlink()
    total, done = len(marked) + len(plain), 0
    for key in plain:
        if not store.is_same(folder / key, key):
            store.fetch([key], folder / key)
        report(done := done + 1, total)
    for name in marked:
        shard = Path(shards.get(name, f"{name}.jsonl"))
        content = _bytes_of(marker_path(run / shard))
        marker = parsed_marker(content)
        if marker is None:
            raise ValueError(f"{store.url}/{marker_path(shard)} is damaged: run dreamcache verify {store.url} --repair")
        if _bytes_of(marker_path(folder / shard)) != content:
            marker_path(folder / shard).unlink(missing_ok=True)
        for path in (shard, rejects_path(shard)):
            state = state_of(path, marker)
            place = folder / path
            if not state.matches(place) and not store.fetch(store.places(run / path, state), place, state):
                raise ValueError(f"{store.url}/{path} is damaged: run dreamcache verify {store.url} --repair")
        put_in_place(marker_path(folder / shard), content)
        report(done := done + 1, total)


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
