"""Whether finished shards are what their markers say: every byte, count and key, whatever the file times claim."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.files import TEMPORARY, checked_key, copy_keys, group_members, read_json_lines, sha256_of
from shards.markers import MARKER_SUFFIX, REJECTS_SUFFIX, FileState, marker_path, read_marker, rejects_path

STRAY = "a stray temporary file"


@dataclass(frozen=True)
class Fault:
    """A file that is wrong, and how, in words; `marker` is what must not stand while that is so."""

    path: Path
    problem: str
    marker: Path | None = None


def damage(path: Path, state: FileState) -> str | None:
    """How a file differs from what its marker recorded, in words; its bytes are hashed whatever its time says."""
    if not path.is_file():
        return "gone"
    size = path.stat().st_size
    if not size and state.bytes:
        return f"empty, where {state.bytes} bytes were written"
    if size < state.bytes:
        return f"cut short: {size} of {state.bytes} bytes"
    if size > state.bytes:
        return f"too long: {size} bytes instead of {state.bytes}"
    return None if sha256_of(path) == state.sha256 else "altered: its checksum is another"


def shard_faults(
    run: Path,
    wanted: Callable[[str, int], bool] = lambda stage, index: True,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Fault]:
    """The faults of all shards below a folder, one a shard at most: damaged files and markers, counts that do not come
    out, keys that stand twice or differ from the input's, shards older than their input; and stray temporary files.

    `wanted` says of a folder, by its path in the run, and a number whether that shard is looked at. `report` gets the
    number of shards whose bytes have been read, and of all.
    """
    faults, shards, own = [], [], {}
    for path in sorted([*run.rglob(f"*{TEMPORARY}*"), *run.rglob("*.partial")]):
        faults.append(Fault(path, STRAY))
    for shard in _shards(run):
        if wanted(shard.parent.relative_to(run).as_posix(), int(shard.name.partition(".")[0])):
            shards.append(shard)
    for done, shard in enumerate(shards, start=1):
        if (fault := _own_fault(shard)) is not None:
            own[shard] = fault
        report(done, len(shards))
    for shard in shards:
        # A shard is measured by its inputs only where these are whole: else the fault is theirs.
        if (fault := own.get(shard) or _input_fault(shard, own)) is not None:
            faults.append(fault)
    return faults


def _shards(run: Path) -> Iterator[Path]:
    """The shards that are there or that a marker says should be."""
    for folder in sorted({path.parent for path in run.rglob("*") if path.name.endswith((".tar", MARKER_SUFFIX))}):
        names = {path.name for path in folder.iterdir()}
        data = {name for name in names if name.endswith((".tar", ".jsonl")) and not name.endswith(REJECTS_SUFFIX)}
        suffix = ".tar" if any(name.endswith(".tar") for name in data) else ".jsonl"
        marked = {name.removesuffix(MARKER_SUFFIX) + suffix for name in names if name.endswith(MARKER_SUFFIX)}
        yield from (folder / name for name in sorted(data | marked) if name.partition(".")[0].isdigit())


def _own_fault(shard: Path) -> Fault | None:
    """The first thing that is wrong with a shard by itself: its marker, its bytes, its counts, its keys."""
    place = marker_path(shard)
    marker = read_marker(shard)
    if marker is None and not place.exists():
        return Fault(place, f"gone, though {shard.name} is there")
    if marker is None:
        return Fault(place, "empty" if not place.stat().st_size else "not a readable marker", place)
    if hashlib.sha256(json.dumps(marker.recipe, sort_keys=True).encode()).hexdigest() != marker.digest:
        return Fault(place, "altered: its digest is not that of its recipe", place)
    if marker.records_in != marker.records_out + sum(marker.rejected.values()):
        accounts = f"{marker.records_in} in, {marker.records_out} out, {sum(marker.rejected.values())} rejected"
        return Fault(place, f"altered: {accounts}", place)
    for path, state in ((shard, marker.shard), (rejects_path(shard), marker.rejects)):
        if (problem := damage(path, state)) is not None:
            return Fault(path, problem, place)
    try:
        count, rejects = len(_keys(shard)), list(read_json_lines(rejects_path(shard)))
        reasons = dict(Counter(record["reason"] for record in rejects))
        _accounted_keys(shard)
    except (ValueError, KeyError, TypeError) as error:
        return Fault(shard, f"not a shard: {error}", place)
    if (count, reasons) != (marker.records_out, marker.rejected):
        return Fault(shard, f"holds {count} records and {len(rejects)} rejects; its marker counts others", place)
    return None


def _input_fault(shard: Path, faulty: dict[Path, Fault]) -> Fault | None:
    """Whether inputs in the same run were made anew since, or hold other records than those accounted for."""
    marker = read_marker(shard)
    assert marker is not None
    root = shard.parents[len(Path(marker.recipe["stage"]).parts)]
    paths = [root / name for name in marker.recipe["inputs"]]
    inputs = {path: other for path in paths if path not in faulty and (other := read_marker(path)) is not None}
    for path, other in inputs.items():
        if other.shard.sha256 != marker.recipe["inputs"][path.relative_to(root).as_posix()]:
            # Its marker stays: should the input come out again as it was, so will this shard.
            return Fault(shard, f"older than {path.relative_to(root)}, which it was made from")
    if inputs and not faulty.keys() & set(paths):
        keys, copies = _accounted_keys(shard), marker.copies
        if not any({copy for key in _keys(path) for copy in copy_keys(key, copies)} == keys for path in inputs):
            return Fault(shard, "its records and rejects are not its input's", marker_path(shard))
    return None


def _accounted_keys(shard: Path) -> set[str]:
    """The keys that left a shard's stage or were rejected there; ValueError if one did twice."""
    keys = _keys(shard)
    for record in read_json_lines(rejects_path(shard)):
        if record["key"] in keys:
            raise ValueError(f"record {record['key']} is accounted for twice")
        keys.add(record["key"])
    return keys


def _keys(shard: Path) -> set[str]:
    """The keys of a shard's records; ValueError for one that stands there twice or is none."""
    if shard.suffix == ".tar":
        return set(group_members(shard))
    keys: set[str] = set()
    for record in read_json_lines(shard):
        if checked_key(record.get("key")) in keys:
            raise ValueError(f"record {record['key']} appears twice")
        keys.add(record["key"])
    return keys
