"""The named points of shard writes (`shards.files.reached`), kept in a log that outlives the process that reaches them.

Of processes that a test does not start itself, a `sitecustomize` calls `watch`: `watched` makes their environment.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shards import files

LOG = "DREAMCACHE_KILL_POINTS"
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Reached:
    """A process was at a named point of a shard ("images/00003")."""

    pid: int
    shard: str
    point: str

    def __str__(self) -> str:
        return f"{self.shard} {self.point}"


def watch(log: Path, kill_at: str | None = None) -> None:
    """Log the points that this process reaches, and end it by SIGKILL at one of them, such as "images/00003 synced"."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def reached(point: str) -> None:
        os.write(descriptor, f"{os.getpid()} {point}\n".encode())
        if point == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    files.reached = reached


def in_a_child(action: Callable[[], object], log: Path, kill_at: str | None = None) -> int:
    """Run an action in a forked process that is watched; its exit status, or minus the signal that killed it."""
    child = os.fork()
    if not child:
        try:
            watch(log, kill_at)
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watched(folder: Path) -> dict[str, str]:
    """Variables that have every Python process log its points to `folder/points.log`."""
    (folder / "sitecustomize.py").write_text(
        f"import os, pathlib, kill_points\nkill_points.watch(pathlib.Path(os.environ['{LOG}']))\n"
    )
    return {LOG: str(folder / "points.log"), "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests")))}


def points_reached(log: Path) -> list[Reached]:
    """All points so far, in their order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Reached(int(pid), shard, point) for pid, shard, point in map(str.split, lines)]


def begun_again(points: Iterable[Reached]) -> list[tuple[int, Reached]]:
    """The shards that were opened more than once: for each time after the first, its place among `points`, and the
    last point of the one before.

    AssertionError where a shard was finished already, or the same process had it before.
    """
    last: dict[str, Reached] = {}
    found = []
    for place, now in enumerate(points):
        if now.point == "opened" and (before := last.get(now.shard)) is not None:
            assert before.point != "marked", f"{now.shard} was finished, and made again by process {now.pid}"
            assert before.pid != now.pid, f"process {now.pid} began {now.shard} twice"
            found.append((place, before))
        last[now.shard] = now
    return found
