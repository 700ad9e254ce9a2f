"""Whether a process knows that the worker which started it is gone, and that no server answers."""

import os
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
# Prefect takes the variable out of the environment before any flow is called.
ASK = "import os; os.environ.pop('PREFECT__CONTROL_PORT', None); from flows.server import _worker_is_gone as gone"


def is_gone(**variables: str) -> str:
    command = [sys.executable, "-c", f"{ASK}; print(gone())"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_worker_is_gone_when_nobody_listens_where_it_did() -> None:
    assert is_gone() == "False"  # started by no worker
    with socket.create_server(("127.0.0.1", 0)) as worker:
        port = str(worker.getsockname()[1])
        assert is_gone(PREFECT__CONTROL_PORT=port) == "False"
    assert is_gone(PREFECT__CONTROL_PORT=port) == "True"


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
