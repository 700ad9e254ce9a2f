"""A Prefect server for one command: a child that dies with it, quiet, its database in the run's folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.processes import ServerProcess, free_port

QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_CLI_PROMPT": "false"}


@contextmanager
def prefect_server(folder: Path, meanwhile: Callable[[], object]) -> Iterator[str]:
    """Yield the address of the Prefect API: the configured one, or that of a server which lives as long as this block.

    The server takes seconds to start; `meanwhile` is called while it does, to import what the block needs.
    Prefect's own temporary server outlives a killed parent; this one does not. Its database is `folder/prefect.db`:
    `prefect server start` shows its runs later, given that file's address, `sqlite+aiosqlite:///...`, as
    PREFECT_API_DATABASE_CONNECTION_URL. Raises RuntimeError if it does not answer within three minutes.
    """
    import prefect
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if configured := PREFECT_API_URL.value():
        meanwhile()
        yield configured
        return
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(prefect.__file__).parents[1]), "--factory"]
    command += ["prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--log-level", "error", "--lifespan", "on"]
    environment = (
        os.environ
        | QUIET
        | {
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder.resolve() / 'prefect.db'}",
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",  # without the services that only a long-lived server needs
            "PREFECT__SERVER_FINAL": "1",
        }
    )
    server = ServerProcess("Prefect server", command, folder / "prefect.log", environment)
    try:
        meanwhile()
        address = f"http://127.0.0.1:{port}/api"
        server.wait_until_healthy(f"{address}/health", seconds=180)
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
