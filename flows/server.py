"""A Prefect server that dies with the command that started it: quiet, its database in a folder of ours."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flows.lock import first_free
from shards.processes import ServerProcess, end_with_parent, free_port

# By default a server has the leases of concurrency slots in its memory: killed, it leaves dead runs' slots taken for
# ever, and living runs end when they cannot renew theirs.
LEASES_IN_FILES = "prefect.server.concurrency.lease_storage.filesystem"

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLI_PROMPT": "false",
}


def start_server(folder: Path, port: int, app: str, environment: Mapping[str, str]) -> ServerProcess:
    """Start a server of the app that a factory makes; its database is `folder/prefect.db`, its log beside it."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(__file__).parents[1]), "--factory", app]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    database = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder.resolve() / 'prefect.db'}"}
    return ServerProcess("Prefect server", command, folder / "prefect.log", {**os.environ, **database, **environment})


@contextmanager
def prefect_server(folder: Path, meanwhile: Callable[[], object]) -> Iterator[str]:
    """Yield the address of the Prefect API: the configured one, or that of a server which lives as long as this block.

    Where another process's server has the folder, FOLDER-2 is taken. The server takes seconds to start; `meanwhile` is
    called while it does, to import what the block needs. Prefect's own temporary server outlives a killed parent; this
    one does not. `dreamcache ui --folder FOLDER` shows its runs later. Raises RuntimeError if it does not answer within
    ten minutes.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if configured := PREFECT_API_URL.value():
        meanwhile()
        wait_for_answer(configured)
        yield configured
        return
    port = free_port()
    environment = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",  # without the services that only a long-lived server needs
        "PREFECT__SERVER_FINAL": "1",
    }
    # One server a database: SQLite's are not for several, least of all on a network's file system.
    with first_free(folder) as place:
        server = start_server(place, port, "prefect.server.api.server:create_app", QUIET | environment)
        try:
            meanwhile()
            address = f"http://127.0.0.1:{port}/api"
            server.wait_until_healthy(f"{address}/health", seconds=600)  # one that ends is noticed at once
            # The variable is for children that run flows of their own.
            os.environ["PREFECT_API_URL"] = address
            with temporary_settings({PREFECT_API_URL: address}):
                yield address
        finally:
            # Logs and events travel in threads of their own; what is still on its way would find nobody there.
            APILogWorker.drain_all(timeout=5)
            EventsWorker.drain_all(timeout=5)
            os.environ.pop("PREFECT_API_URL", None)
            server.stop()


def wait_for_answer(address: str, seconds: float = 30) -> None:
    """Wait for a Prefect API that may just be starting; RuntimeError where nobody answers, whatever the answer."""
    import httpx

    deadline = time.monotonic() + seconds
    while True:
        try:
            httpx.get(f"{address.rstrip('/')}/health", timeout=10)
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no Prefect server answers at {address}, which PREFECT_API_URL names: start it, or unset the "
                    "variable for a server of this command's own; then start again to go on"
                ) from None
            time.sleep(1)


def end_with_worker() -> None:
    """Have a process that a worker started for a flow run end with that worker, also by kill -9; done by `flows`.

    It has a session of its own, and may sleep in Prefect for as long as the run is to wait, before any flow is called.
    """
    if (port := _port_of_worker()) is not None:
        end_with_parent()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
                # It died while this process was still starting, and another has its place.
                os.kill(os.getpid(), signal.SIGKILL)


def _port_of_worker() -> int | None:
    """Where a worker listens to the process that it started, or None in any other process.

    Prefect takes the port out of the environment at once; Linux keeps what a process was started with.
    """
    started_with = Path("/proc/self/environ")
    told = re.search(rb"PREFECT__CONTROL_PORT=(\d+)", started_with.read_bytes()) if started_with.exists() else None
    return None if told is None else int(told[1])
