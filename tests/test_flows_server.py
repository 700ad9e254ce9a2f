"""Whether a process knows that the worker which started it is gone, and that no server answers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.server import wait_for_answer
from shards.processes import free_port

ROOT = Path(__file__).resolve().parents[1]


def importing_flows(**variables: str) -> int:
    """The exit code of a process, started with such an environment, that does nothing but import `flows`."""
    started = os.environ | variables
    return subprocess.run([sys.executable, "-c", "import flows"], cwd=ROOT, env=started).returncode


def test_the_process_of_a_run_ends_where_no_worker_listens_any_more() -> None:
    assert importing_flows() == 0  # started by no worker
    with socket.create_server(("127.0.0.1", 0)) as worker:
        port = str(worker.getsockname()[1])
        assert importing_flows(PREFECT__CONTROL_PORT=port) == 0
    assert importing_flows(PREFECT__CONTROL_PORT=port) == -signal.SIGKILL


def test_a_server_that_is_away_is_waited_for_and_then_named() -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    with pytest.raises(RuntimeError, match=f"no Prefect server answers at {address}, which PREFECT_API_URL names"):
        wait_for_answer(address, seconds=0)

    def start_late() -> None:
        time.sleep(0.5)
        with HTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler) as server:  # it knows nothing, and says so
            server.handle_request()

    starting = threading.Thread(target=start_late)
    starting.start()
    wait_for_answer(address)
    starting.join()
