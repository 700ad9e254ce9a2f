"""One writer a run folder: a lock that ends with the process that holds it, also by kill -9."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder, made if need be, for this block; RuntimeError naming the process that holds it already."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            text = f"{run} is in use by {holder}: wait for it to end, or choose another run folder"
            raise RuntimeError(text) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
