"""Whether a flow run's process knows that the worker which started it is gone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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
