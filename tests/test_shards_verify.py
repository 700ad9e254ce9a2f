"""Shards whose checksums are right, and which are wrong all the same."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from word_shards import write_words

from shards.files import sha256_of
from shards.markers import FileState, marker_path, read_marker, rejects_path
from shards.verify import shard_faults


def state_of(path: Path) -> FileState:
    status = path.stat()
    return FileState(status.st_size, sha256_of(path), status.st_mtime_ns)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nothing", None),
        ("recipe", "altered: its digest is not that of its recipe"),
        ("count", "holds 1 records and 1 rejects; its marker counts others"),
        ("reason", "holds 2 records and 1 rejects; its marker counts others"),
        ("line", "not a shard: .*, line 2: not JSON"),
        ("key", "not a shard: record key 'A.B' is not made of"),
        ("twice", "not a shard: record 0-0 appears twice"),
        ("both", "not a shard: record 0-0 is accounted for twice"),
    ],
)
def test_what_no_checksum_shows(tmp_path: Path, wrong: str, said: str | None) -> None:
    path = write_words(tmp_path, ["abc", "d", "efg"]).path
    rejects, marker = rejects_path(path), read_marker(path)
    assert marker is not None
    first, second = path.read_bytes().splitlines(keepends=True)
    rejected, recipe = json.loads(rejects.read_bytes()), dict(marker.recipe)
    match wrong:
        case "recipe":
            recipe["version"] = 2
        case "count":
            second = b""
        case "reason":
            rejected["reason"] = "too long"
        case "line":
            second = second[:-3] + b"\n"
        case "key":
            second = second.replace(b"0-2", b"A.B")
        case "twice":
            second = second.replace(b"0-2", b"0-0")
        case "both":
            rejected["key"] = "0-0"
    path.write_bytes(first + second)
    rejects.write_text(json.dumps(rejected) + "\n")
    marker = dataclasses.replace(marker, recipe=recipe, shard=state_of(path), rejects=state_of(rejects))
    marker_path(path).write_bytes(marker.to_json())
    faults = shard_faults(tmp_path)
    if said is None:
        assert faults == []
    else:
        assert [fault.marker for fault in faults] == [marker_path(path)]
        assert re.match(said, faults[0].problem)
