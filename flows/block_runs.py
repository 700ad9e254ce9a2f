"""What the flows of blocks share on a worker: the lock, and which failures would come again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prefect.states import Failed, State

from flows.lock import locked
from shards.run_folder import run_folder

log = logging.getLogger(__name__)

# The name of the failure that would come again on every worker.
HOPELESS = "Hopeless"


def block_run(run: str, lock: str, make: Callable[[Path], None]) -> State[Any] | None:
    """Do a block's work on a worker, under a lock in the run folder; a failure that would come again is a state."""
    try:
        folder = run_folder(run)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"there is no run folder {folder} here: the machines of all workers have to share it"
            )
        # A block of a run that was given up may still be at work here: its end is waited for, and its shards are kept.
        with locked(folder, lock, wait=True):
            make(folder)
    except Exception as error:
        if retry_may_help(error):
            raise
        log.error("%s", error)
        return Failed(name=HOPELESS, message=f"{error}")
    return None


def retry_may_help(error: Exception) -> bool:
    """Whether an error comes from the machine (memory, disk, network, a dead server) and not from what was asked."""
    passing = (OSError, RuntimeError, MemoryError, httpx.HTTPError)
    return isinstance(error, passing) and not isinstance(error, FileNotFoundError)
