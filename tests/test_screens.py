"""`dreamcache ui` as an operator meets it: a deployment run on it, stopped, started again, looked at, killed.

`make screens` runs it, and leaves its screenshots in build/screens.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import IMAGES, NARROW, WIDE, Page, browser_program, chromium
from prefect_site import processes_with
from tiny_profile import tiny_settings

from shards.processes import free_port

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("runs/screens")
SHOTS = ROOT / "build" / "screens"
LOADED = f"document.readyState == 'complete' && {IMAGES}.every(image => image.complete && image.naturalWidth)"
# Prefect's page of an artifact that a flow made, not one of its tasks, asks for the task "" and is told that it errs.
ASKS_FOR_NO_TASK = r"status of 422 \(Unprocessable Entity\) http://127\.0\.0\.1:\d+/api/task_runs/filter$"

pytestmark = pytest.mark.screens


class Ui:
    """The command in a process of its own, up and running."""

    def __init__(self, folder: Path, port: int) -> None:
        self.mark = folder
        command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port), "--folder", str(folder)]
        # What it starts inherits the mark, so that none of it can hide.
        environment = {**os.environ, "DREAMCACHE_KILLED_RUN": str(folder)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        self.said = ""
        while "Ctrl-C" not in self.said:
            assert (line := self.process.stdout.readline()), f"it ended: {self.said}"
            self.said += line
        self.address = f"http://127.0.0.1:{port}"

    def start(self, deployment: str, run: Path, **changed: Any) -> None:
        """Run a deployment by the command that the UI names."""
        command = re.search(rf"\S+ deployment run {deployment}\b", self.said)
        assert command and f"export PREFECT_API_URL={self.address}/api" in self.said
        settings = json.dumps({**tiny_settings(), **changed})
        parameters = ["--param", f"run={run}", "--param", f"settings={settings}"]
        environment = {**os.environ, "PREFECT_API_URL": f"{self.address}/api"}
        subprocess.run([*command[0].split(), *parameters], env=environment, check=True, capture_output=True)

    def asked(self, kind: str) -> list[dict[str, Any]]:
        return list(httpx.post(f"{self.address}/api/{kind}/filter", json={}, timeout=60).raise_for_status().json())

    def run_named(self, name: str) -> dict[str, Any]:
        """The newest flow run of a name, once it has one: a run takes its name when it starts."""
        return wait_for(lambda: next((run for run in self.asked("flow_runs") if run["name"] == name), None))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        wait_for(lambda: not processes_with("DREAMCACHE_KILLED_RUN", str(self.mark)), seconds=15)
        return code


def wait_for(condition: Any, seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Ui]]:
    """Starts `dreamcache ui` on one folder and port; none outlives the test, however it ends."""
    started, port = list[Ui](), free_port()

    def open_ui() -> Ui:
        started.append(Ui(tmp_path / "server", port))
        return started[-1]

    yield open_ui
    for ui in started:
        if ui.process.poll() is None:
            ui.end(signal.SIGKILL)


def test_the_ui_from_its_first_start_to_its_death(tmp_path: Path, opened: Callable[[], Ui]) -> None:
    assert browser_program()
    for folder in (ROOT / RUN, SHOTS):
        shutil.rmtree(folder, ignore_errors=True)
    ui = opened()
    ui.start("dreamcache-pipeline/miniature", RUN)
    wait_for(lambda: ui.run_named(f"all of {RUN}")["state_type"] in ("COMPLETED", "FAILED", "CRASHED"))
    assert ui.run_named(f"all of {RUN}")["state_type"] == "COMPLETED", (
        tmp_path / "server/worker-dreamcache.log"
    ).read_text()
    assert ui.end(signal.SIGINT) == 0

    ui = opened()  # it finds everything again
    ui.start("train-adapters/miniature", tmp_path / "nothing")
    wait_for(lambda: ui.run_named(f"adapters of {tmp_path / 'nothing'}")["state_type"] == "FAILED")
    with chromium(tmp_path / "browser") as page:
        look(page, ui)
        assert {where for where in page.asked if where.startswith("http")} == {ui.address}

    ui.start("build-dataset/miniature", tmp_path / "broken-off", shards=50)
    wait_for((tmp_path / "broken-off/captions/00000.done.json").exists)
    assert ui.end(signal.SIGKILL) == -signal.SIGKILL


def look(page: Page, ui: Ui) -> None:
    """Open what an operator looks at, wide and light, narrow and dark; fail on whatever the console says in red."""
    runs = {name: ui.run_named(f"{name} {RUN}")["id"] for name in ("all of", "dataset in")}
    failed = next(run["id"] for run in ui.asked("flow_runs") if run["state_type"] == "FAILED")
    newest = {found["key"]: found for found in ui.asked("artifacts")}
    assert newest["report-screens"]["data"] == f"[Report of {RUN}]({ui.address}/reports/{RUN})"
    places = {
        "dashboard": ("/v2/dashboard", "Active Work Pools"),
        "runs": ("/v2/runs", f"all of {RUN}"),
        "pipeline": (f"/v2/runs/flow-run/{runs['all of']}?tab=Logs", "Completed"),
        "dataset-tasks": (f"/v2/runs/flow-run/{runs['dataset in']}?tab=TaskRuns", "captions 00000"),
        "dataset-artifacts": (f"/v2/runs/flow-run/{runs['dataset in']}?tab=Artifacts", "dataset-accounts"),
        "failed": (
            f"/v2/runs/flow-run/{failed}?tab=Logs",
            "the dataset is not finished: run build-dataset for it first",
        ),
        "deployments": ("/v2/deployments", "evaluate-adapters"),
        "artifacts": ("/v2/artifacts", "held-out-loss-curves"),
        "report": (f"/reports/{RUN}", "Rejects by reason"),
    }
    texts = {
        "dataset-accounts": "rejected for",
        "triplets": "",
        "training-loss": "",
        "held-out-loss": "wrong",
        "evaluation-scores": "CLIP-I",
        "report-screens": f"Report of {RUN}",
    }
    for key, text in texts.items():
        places[key] = (f"/v2/artifacts/artifact/{newest[key]['id']}", text or key)
    for name, (path, text) in places.items():
        graph = "document.querySelector('canvas') && " if "flow-run" in path else ""
        picture = f"{IMAGES}.length > 0 && " if name in ("triplets", "training-loss", "report") else ""
        for size, dark in ((WIDE, False), (NARROW, True)):
            page.open(ui.address + path, size, dark)
            shown = f"document.body.innerText.includes({json.dumps(text)})"
            page.wait_for(f"{graph}{picture}{shown} && {LOADED}", seconds=180)
            page.settle()
            look_of = f"{name}-{'narrow-dark' if dark else 'wide-light'}"
            page.screenshot(SHOTS / f"{look_of}.png", whole=name == "report")
            own = path.startswith("/v2/artifacts/artifact/")
            assert [said for said in page.errors if not (own and re.search(ASKS_FOR_NO_TASK, said))] == [], look_of
            if name == "failed":
                assert not page.evaluate("document.body.innerText.includes('Traceback')")
            if name == "report":
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the report is too wide"
