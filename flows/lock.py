"""One writer a run folder, or several readers: a lock that ends with the process that holds it, also by kill -9."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


class InUse(RuntimeError):
    """Another process, `holder`, holds what was to be locked."""

    def __init__(self, run: Path, holder: str) -> None:
        super().__init__(f"{run} is in use by {holder}: wait for it to end, or choose another run folder")
        self.holder = holder


@contextmanager
def locked(run: Path, name: str = ".lock", wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold a run folder, made if need be, or the part of it that `name` stands for, for this block.

    `shared` is for what only reads: several processes hold it so at once, and none holds it alone meanwhile. Where
    another process is in the way, says which, and waits for its end or raises InUse. On a network file system the lock
    holds for all machines if the file system passes `flock` on, as NFS does.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / name).open("a+") as file:
        told = False
        while not _taken(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise InUse(run, holder)
            if not told:
                log.info("%s is in use by %s; waiting for it to end", run / name, holder)
                told = True
            time.sleep(1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def first_free(folder: Path) -> Iterator[Path]:
    """Hold a folder or, where another process does, the first free one of FOLDER-2, FOLDER-3 and so on."""
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with ExitStack() as held:
            try:
                held.enter_context(locked(place))
            except InUse:
                continue
            yield place
            return


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
