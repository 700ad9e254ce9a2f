"""Servers that end with the process that started them, with all that they started, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.processes import ServerProcess

ROOT = Path(__file__).resolve().parents[1]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.02)


def pids_in(log: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while len(found := log.read_text().split() if log.exists() else []) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return list(map(int, found))


FAMILY = ["sh", "-c", "trap '' TERM; echo $$; sleep 300 & echo $!; wait; wait"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_neither_its_server_nor_the_servers_children(tmp_path: Path, number: int) -> None:
    log = tmp_path / "log"
    code = "import os, sys, time; from pathlib import Path; from shards.processes import ServerProcess\n"
    code += "server = ServerProcess('test', sys.argv[2:], Path(sys.argv[1]), os.environ); time.sleep(300)"
    parent = subprocess.Popen([sys.executable, "-c", code, log, *FAMILY], cwd=ROOT)
    family = pids_in(log, 2)
    assert all(map(is_running, family))
    parent.send_signal(number)
    parent.wait()
    wait_until_gone(family)


def test_stopping_takes_the_children_of_a_server_that_does_not_listen(tmp_path: Path) -> None:
    server = ServerProcess("test server", FAMILY, tmp_path / "log", os.environ)
    family = pids_in(tmp_path / "log", 2)
    assert family[0] == server.pid
    server.stop()
    wait_until_gone(family)


@pytest.mark.parametrize(
    ("script", "last"), [("echo first; echo no port left; exit 3", "no port left"), ("exit 3", "it said nothing")]
)
def test_a_server_that_ends_by_itself_says_its_last_line(tmp_path: Path, script: str, last: str) -> None:
    server = ServerProcess("test server", ["sh", "-c", script], tmp_path / "log", os.environ)
    with pytest.raises(RuntimeError, match=rf"the test server ended with code 3: {last} \(see .*log\)"):
        server.wait_until_healthy("http://127.0.0.1:9/", 30)
    server.stop()
