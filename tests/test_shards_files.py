"""Files that are written at once, by several writers in one folder; JSON lines that are refused."""

import errno
import fcntl
import threading
from pathlib import Path
from typing import IO

import pytest

from shards.files import (
    TEMPORARY,
    json_line,
    read_json_lines,
    remove_leftovers,
    replace_file,
    temporary_beside,
    write_exclusively,
    written_at_once,
)


def test_a_writer_at_work_is_left_alone_and_what_a_dead_one_left_goes(tmp_path: Path) -> None:
    path, left = tmp_path / "sheet.jpg", temporary_beside(tmp_path / "sheet.jpg")
    left.write_bytes(b"half")
    with written_at_once(path) as file:
        file.write(b"first")
        with written_at_once(path) as other:
            other.write(b"second")
        assert path.read_bytes() == b"second" and not left.exists()
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_no_moment_is_left_in_which_a_new_file_is_taken_for_a_leftover(tmp_path: Path) -> None:
    path, done = tmp_path / "file", threading.Event()

    def clean() -> None:
        while not done.is_set():
            remove_leftovers(path)

    cleaners = [threading.Thread(target=clean) for _ in range(2)]
    for cleaner in cleaners:
        cleaner.start()
    try:
        for number in range(200):
            replace_file(path, b"%d" % number)
            write_exclusively(tmp_path / "file.marker", b"")
    finally:
        done.set()
        for cleaner in cleaners:
            cleaner.join()
    assert path.read_bytes() == b"199" and not list(tmp_path.glob(f"*{TEMPORARY}*"))


def test_after_an_error_all_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    with pytest.raises(OSError), written_at_once(path) as file:
        file.write(b"new")
        raise OSError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "file.tmp-1-0"
    left.touch()

    def flock(file: object, kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and sorted(tmp_path.iterdir()) == [tmp_path / "file", left]


def test_numbers_that_no_json_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"key": "a", "score": float("nan")})


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b'{"key": "a"}\n{"key": \n')
    with pytest.raises(ValueError, match="lines, line 2: not JSON"):
        list(read_json_lines(tmp_path / "lines"))


def test_leftovers_go_also_where_a_lock_needs_a_file_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS emulates `flock` by byte ranges, whose exclusive lock a descriptor for reading does not get."""
    local = fcntl.flock

    def flock(file: IO[bytes], operation: int) -> None:
        if operation & fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        local(file, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    left = temporary_beside(tmp_path / "00000.tar")
    left.write_bytes(b"half a shard")
    remove_leftovers(tmp_path / "00000.tar")
    assert not left.exists()


def test_a_marker_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "marker"
    assert write_exclusively(path, b"first") and not write_exclusively(path, b"second")
    assert path.read_bytes() == b"first"
