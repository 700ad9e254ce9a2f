"""`make demo` killed by SIGKILL in every stage and started again, with the miniature's real checkpoints.

`make kills` runs it, in half an hour. DREAMCACHE_KILLS_SETTINGS makes the demo smaller while this test
is worked on: "--set shards=2 --set training.steps=20".
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect_site import processes_with

ROOT = Path(__file__).resolve().parents[1]
DATA = ("captions", "dedup", "images", "masks", "gates", "triplets")
# How far a run has come when it is killed: in the middle of each stage.
REACHED: dict[str, Callable[[Path], bool]] = {
    **{stage: lambda run, stage=stage: (run / stage / "00000.done.json").exists() for stage in DATA},
    "training": lambda run: (run / "training" / "state" / "training.pt").exists(),
    "evaluation": lambda run: len(list((run / "evaluation" / "images").glob("**/*.done.json"))) > 2,
}

pytestmark = pytest.mark.kills


def start(run: Path) -> "subprocess.Popen[bytes]":
    settings = os.environ.get("DREAMCACHE_KILLS_SETTINGS", "")
    command = ["make", "demo", f"RUN={run}", f"SETTINGS={settings}"]
    # What the demo starts inherits the mark, so that none of it can hide.
    environment = {**os.environ, "DREAMCACHE_KILLED_RUN": str(run)}
    with (run.parent / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def kill_at(run: Path, stage: str) -> None:
    """Start the demo, kill it by SIGKILL once it is in the middle of a stage, and see all of it end."""
    assert not REACHED[stage](run), f"the kill before came after {stage} had begun"
    demo = start(run)
    while not REACHED[stage](run):
        assert demo.poll() is None, f"the demo ended before {stage}: see {run.name}.log"
        time.sleep(0.005)
    demo.send_signal(signal.SIGKILL)
    demo.wait()
    time.sleep(10)
    assert not processes_with("DREAMCACHE_KILLED_RUN", str(run)), f"alive ten seconds after a kill in {stage}"


def bytes_of(run: Path) -> dict[str, bytes]:
    """What a run made, without the markers, which tell when and how long."""
    files = [file for stage in DATA for file in sorted((run / stage).glob("*")) if not file.name.endswith(".done.json")]
    files = [file for file in files if file.is_file() and file.suffix in (".jsonl", ".tar")]
    files += [run / "training" / "adapters" / "adapters.safetensors", run / "evaluation" / "rows.jsonl"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def test_make_demo_killed_in_each_stage_makes_the_same_bytes(tmp_path: Path) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for stage in REACHED:
        kill_at(killed, stage)
    for run in (killed, undisturbed):
        assert start(run).wait() == 0, (tmp_path / f"{run.name}.log").read_text()[-2000:]
        assert (run / "report.html").exists()
    made, expected = bytes_of(killed), bytes_of(undisturbed)
    assert made.keys() == expected.keys() and len(made) > 2 * len(DATA)
    assert [name for name in made if made[name] != expected[name]] == []
