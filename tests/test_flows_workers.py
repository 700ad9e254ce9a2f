"""Blocks on a real Prefect server and real workers, with very small models: the same bytes, each model loaded once a
block, and a worker or the planning process killed by SIGKILL in the middle.

`make workers` runs it: minutes, most of them of waiting for Prefect to notice that a killed worker is silent.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from tiny_profile import as_arguments, tiny_settings

from datagen.block import Block
from datagen.dataset import STAGES, Dataset
from flows.profiles import load_profile
from shards.processes import ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = 4
SIZES = {"shards": BLOCKS, "shards_per_block": 1, "captions_per_shard": 8}
# Says at its end whether the process that only plans has imported torch.
PLANNING = "import sys, flows.cli\ntry:\n flows.cli.main()\nfinally:\n print('torch' in sys.modules)"

pytestmark = pytest.mark.workers


def bytes_of(run: Path) -> dict[str, bytes]:
    """What a run made, without the markers, which tell when and how long."""
    files = [file for stage in STAGES for file in sorted((run / stage).glob("0*")) if file.suffix in (".jsonl", ".tar")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def until(reached: Callable[[], object], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes that one process makes."""
    run = tmp_path_factory.mktemp("alone")
    dataset = Dataset(load_profile("miniature", tiny_settings() | SIZES).dataset, run)
    for indices in dataset.blocks():
        block = Block(dataset)
        for stage in STAGES:
            for index in indices:
                block.make(stage, index, lambda done, total: None)
    return bytes_of(run)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with its work pool and the deployment of prefect.yaml, as the environment of their users."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    own = {"PREFECT_HOME": str(home), "PREFECT_CLI_PROMPT": "false", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    # On a busy machine SQLite's locks last longer than Prefect's server waits by default.
    own |= {"PREFECT_SERVER_DATABASE_TIMEOUT": "120", "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60"}
    variables = {**os.environ, **own, "PREFECT_UI_ENABLED": "false", "PYTHONPATH": str(ROOT)}
    serve = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    server = ServerProcess("Prefect server", serve, home / "server.log", variables)
    try:
        server.wait_until_healthy(f"http://127.0.0.1:{port}/api/health", seconds=300)
        variables["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        for words in ("work-pool create dreamcache-gpu --type process", "--no-prompt deploy --name gpu"):
            command = [sys.executable, "-m", "prefect", *words.split()]
            done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        yield variables
    finally:
        server.stop()


class Site:
    """A run folder with the workers that are started for it and the processes that plan it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.run, self.folder, self.environment = folder / "run", folder, environment
        self.workers: list[ServerProcess] = []
        self.open = ExitStack()

    def add_workers(self, count: int) -> None:
        for number in range(len(self.workers), len(self.workers) + count):
            start = [
                "worker",
                "start",
                "--pool",
                "dreamcache-gpu",
                "--limit",
                "1",
                "--name",
                f"{self.folder.name}-{number}",
            ]
            log = self.folder / f"worker-{number}.log"
            worker = ServerProcess("worker", [sys.executable, "-m", "prefect", *start], log, self.environment)
            self.open.callback(worker.stop)
            self.workers.append(worker)

    def plan(self, number: int = 0) -> "subprocess.Popen[str]":
        settings = tiny_settings() | SIZES | {"workers.deployment": "build-block/gpu"}
        command = [sys.executable, "-c", PLANNING, "build-dataset", "--run", str(self.run), *as_arguments(settings)]
        with (self.folder / f"plan-{number}.log").open("w") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, text=True)
        self.open.callback(process.kill)
        return process

    def said(self, number: int = 0) -> str:
        return (self.folder / f"plan-{number}.log").read_text()

    def ask(self, path: str, **question: object) -> list[dict[str, str]]:
        answer = httpx.post(f"{self.environment['PREFECT_API_URL']}/{path}/filter", json=question, timeout=60)
        return list(answer.raise_for_status().json())

    def loads(self) -> dict[str, int]:
        """How often each stage loaded its models, from the logs of all block runs for this folder."""
        found: Counter[str] = Counter()
        for block_run in self.ask("flow_runs", flow_runs={"tags": {"all_": [f"run:{self.run}"]}}):
            lines = self.ask("logs", logs={"flow_run_id": {"any_": [block_run["id"]]}})
            found.update(line["message"].partition(":")[0] for line in lines if ": models loaded in" in line["message"])
        return dict(found)


def process_at_images(run: Path) -> int | None:
    """The block's process that is writing a shard of images."""
    for path in (run / "images").glob("*.tar.tmp-*"):
        return int(path.name.split(".tmp-")[1].partition("-")[0])
    return None


@pytest.fixture
def site(tmp_path: Path, environment: dict[str, str]) -> Iterator[Site]:
    place = Site(tmp_path, environment)
    with place.open:
        yield place


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_make_the_bytes_of_one_process(site: Site, expected: dict[str, bytes], workers: int) -> None:
    site.add_workers(workers)
    assert site.plan().wait() == 0, site.said()
    assert bytes_of(site.run) == expected
    assert site.loads() == {"captions": BLOCKS, "images": BLOCKS, "masks": BLOCKS}
    assert site.said().endswith("False\n"), "planning imported torch"


def test_a_worker_killed_and_one_added(site: Site, expected: dict[str, bytes]) -> None:
    site.add_workers(2)
    plan = site.plan()
    until(lambda: process_at_images(site.run), "images")
    block = process_at_images(site.run)
    status = Path(f"/proc/{block}/status")
    victim = next(worker for worker in site.workers if f"PPid:\t{worker.pid}\n" in status.read_text())
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: not status.exists(), "the end of its block", 10)
    site.add_workers(1)
    second = site.plan(number=1)
    assert second.wait() == 1 and re.search(r"run is in use by process \d+ on \S+: wait", site.said(1))
    assert plan.wait() == 0, site.said()
    assert "failed (nothing was heard of it for 0:02:00); again in 10 s" in site.said()
    assert bytes_of(site.run) == expected


def test_a_killed_plan_is_started_again(site: Site, expected: dict[str, bytes]) -> None:
    site.add_workers(2)
    first = site.plan()
    until(lambda: list((site.run / "captions").glob("*.done.json")), "captions")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert site.plan(number=1).wait() == 0, site.said(1)
    assert re.search(r"cancelled \d block runs that an earlier start left", site.said(1))
    assert bytes_of(site.run) == expected
