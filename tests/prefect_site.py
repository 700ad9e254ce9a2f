"""A real Prefect server with a work pool and the deployment of prefect.yaml, workers, and processes that plan."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from tiny_profile import as_arguments

from datagen.dataset import STAGES
from flows.server import LEASES_IN_FILES
from shards.processes import ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[1]
# Says at its end whether the process that only plans has imported torch.
PLANNING = "import sys, flows.cli\ntry:\n flows.cli.main()\nfinally:\n print('torch' in sys.modules)"


def bytes_of(run: Path) -> dict[str, bytes]:
    """What a run made, without the markers, which tell when and how long."""
    files = [file for stage in STAGES for file in sorted((run / stage).glob("0*")) if file.suffix in (".jsonl", ".tar")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def until(reached: Callable[[], object], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


def processes_with(variable: str, value: str) -> dict[int, str]:
    """The living processes that were started with a variable of that value: process id -> their whole environment.

    What a process starts inherits its environment, so none of that can hide.
    """
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = "\0" + (process / "environ").read_text(errors="replace")
            if f"\0{variable}={value}\0" in environment and (process / "cmdline").read_bytes():
                found[int(process.name)] = environment
        except OSError:
            continue  # ended in the meantime
    return found


def prefect_variables(home: Path) -> dict[str, str]:
    """The environment of a Prefect server whose database is in `home`, and of all who use it."""
    own = {"PREFECT_HOME": str(home), "PREFECT_CLI_PROMPT": "false", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    # On a busy machine SQLite's locks last longer than Prefect's server waits by default.
    own |= {"PREFECT_SERVER_DATABASE_TIMEOUT": "120", "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60"}
    own |= {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_IN_FILES}
    own |= {"PREFECT_UI_ENABLED": "false", "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT)}


def start_server(variables: dict[str, str]) -> ServerProcess:
    """The server of an environment, started and healthy; what an earlier one knew is in its database."""
    address = variables["PREFECT_API_URL"]
    port = address.rpartition(":")[2].removesuffix("/api")
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", port]
    others = {name: value for name, value in variables.items() if name != "PREFECT_API_URL"}
    server = ServerProcess("Prefect server", command, Path(variables["PREFECT_HOME"]) / "server.log", others)
    try:
        server.wait_until_healthy(f"{address}/health", seconds=600)
    except BaseException:
        server.stop()
        raise
    return server


def deploy(variables: dict[str, str], *names: str) -> None:
    """Make the work pool of machines with GPUs, and deployments: by default those of blocks."""
    chosen = " ".join(f"--name {name}" for name in names or ("build-block/gpu", "evaluate-block/gpu"))
    for words in ("work-pool create dreamcache-gpu --type process", f"--no-prompt deploy {chosen}"):
        command = [sys.executable, "-m", "prefect", *words.split()]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def server_of_blocks(home: Path) -> Iterator[dict[str, str]]:
    """A server with the deployments of blocks that workers take, as the environment of its users."""
    variables = prefect_variables(home)
    server = start_server(variables)
    try:
        deploy(variables)
        yield variables
    finally:
        server.stop()


class Site:
    """A run folder with the workers that are started for it and the processes that plan it."""

    def __init__(self, folder: Path, environment: dict[str, str], settings: dict[str, object]) -> None:
        self.run, self.folder, self.environment = folder / "run", folder, environment
        self.settings = settings | {"workers.deployment": "build-block/gpu", "workers.evaluation": "evaluate-block/gpu"}
        self.workers: list[ServerProcess] = []
        self.open = contextlib.ExitStack()
        self.plans = self._workers = 0

    def add_workers(self, count: int) -> None:
        for number in range(self._workers, self._workers + count):
            words = f"worker start --pool dreamcache-gpu --limit 1 --name {self.folder.name}-{number}"
            command, log = [sys.executable, "-m", "prefect", *words.split()], self.folder / f"worker-{number}.log"
            worker = ServerProcess("worker", command, log, self.environment)
            self.open.callback(worker.stop)
            self.workers.append(worker)
        self._workers += count

    def plan(self, command: str = "build-dataset") -> "subprocess.Popen[str]":
        arguments = [command, "--run", str(self.run), *as_arguments(self.settings)]
        with (self.folder / f"plan-{self.plans}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", PLANNING, *arguments],
                cwd=ROOT, env=self.environment, stdout=log, stderr=log, text=True,
            )  # fmt: skip
        self.plans += 1
        self.open.callback(process.kill)
        return process

    def said(self, number: int = 0) -> str:
        return (self.folder / f"plan-{number}.log").read_text()

    def blocks(self) -> dict[int, int]:
        """The living processes of block runs, also while they start: process id -> that of their parent, the worker."""
        found = {}
        for pid, environment in processes_with("PREFECT_HOME", self.environment["PREFECT_HOME"]).items():
            if "\0PREFECT__FLOW_RUN_ID=" in environment:
                with contextlib.suppress(OSError):  # ended in the meantime
                    status = Path(f"/proc/{pid}/status").read_text()
                    found[pid] = int(status.split("PPid:\t")[1].partition("\n")[0])
        return found

    def ask(self, path: str, **question: object) -> list[dict[str, str]]:
        answer = httpx.post(f"{self.environment['PREFECT_API_URL']}/{path}/filter", json=question, timeout=60)
        return list(answer.raise_for_status().json())
