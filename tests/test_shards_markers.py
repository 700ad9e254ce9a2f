"""Markers: a shard is known by its bytes, and by nothing that cannot be read."""

import os
from pathlib import Path

import pytest
from word_shards import write_words

from shards.markers import checked_marker, marker_path, read_marker


def test_copies_and_moves_are_recognised_by_content(tmp_path: Path) -> None:
    plan = write_words(tmp_path, ["abc", "def"])
    os.utime(plan.path, (1, 1))
    assert plan.state() == "done"
    marker, status = checked_marker(plan.path), plan.path.stat()
    assert (status.st_atime, status.st_mtime_ns) == (1, marker.shard.mtime_ns), "it will be hashed again"
    plan.path.write_bytes(plan.path.read_bytes().replace(b"abc", b"abd"))
    os.utime(plan.path, (1, 1))
    assert plan.state() == "stale" and plan.path.stat().st_mtime == 1
    os.truncate(plan.path, 5)
    os.utime(plan.path, ns=(1, marker.shard.mtime_ns))
    assert plan.state() == "stale", "its time alone was looked at"


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"digest": "x"}'])
def test_an_unreadable_marker_marks_nothing(tmp_path: Path, broken: bytes) -> None:
    plan = write_words(tmp_path, ["abc"])
    marker_path(plan.path).write_bytes(broken)
    assert plan.state() == "missing" and read_marker(plan.path) is None
    write_words(tmp_path, ["abc"])
    assert plan.state() == "done"
