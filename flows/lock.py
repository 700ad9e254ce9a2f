"""One writer a run folder: a lock that ends with the process that holds it, also by kill -9."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def locked(run: Path, name: str = ".lock", wait: bool = False) -> Iterator[None]:
    """Hold a run folder, made if need be, or the part of it that `name` stands for, for this block.

    Where another process holds it, says which, and waits for its end or raises RuntimeError. On a network file system
    the lock holds for all machines if the file system passes `flock` on, as NFS does.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / name).open("a+") as file:
        told = False
        while not _taken(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise RuntimeError(f"{run} is in use by {holder}: wait for it to end, or choose another run folder")
            if not told:
                log.info("%s is in use by %s; waiting for it to end", run / name, holder)
                told = True
            time.sleep(1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
