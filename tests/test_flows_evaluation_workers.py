"""Evaluations on a real Prefect server and real workers, with very small models: the bytes of one process, each model
loaded once a block, and a worker killed by SIGKILL in the middle.

`make workers` runs it: minutes.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_site import ROOT, Site, server_of_blocks, until
from tiny_profile import as_arguments, tiny_settings

from shards.files import TEMPORARY

pytestmark = pytest.mark.workers


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The tiny profile, of whose benchmark's masks nothing is known, in blocks of two of its four subjects."""
    benchmark = tmp_path_factory.mktemp("workers") / "benchmark"
    shutil.copytree(tiny_settings()["benchmark"], benchmark)
    for mask in benchmark.glob("*/*.mask.png"):
        mask.unlink()
    changed = {"benchmark": str(benchmark), "sweep.text_scales": [], "sweep.image_scales": [0.5]}
    return tiny_settings() | changed | {"workers.subjects_per_block": 2}


@pytest.fixture(scope="module")
def alone(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by one process, the adapters trained and evaluated."""
    run = tmp_path_factory.mktemp("alone") / "run"
    for command in ("build-dataset", "train-adapters"):
        _dreamcache(command, run, settings)
    shutil.copytree(run, run.with_name("trained"))
    _dreamcache("evaluate-adapters", run, settings)
    return run


def _dreamcache(command: str, run: Path, settings: dict[str, object]) -> None:
    words = [sys.executable, "-m", "flows.cli", command, "--run", str(run), *as_arguments(settings)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with server_of_blocks(tmp_path_factory.mktemp("prefect")) as variables:
        yield variables


@pytest.fixture
def site(tmp_path: Path, alone: Path, environment: dict[str, str], settings: dict[str, object]) -> Iterator[Site]:
    place = Site(tmp_path, environment, settings)
    shutil.copytree(alone.with_name("trained"), place.run)
    with place.open:
        yield place


def evaluated(run: Path) -> dict[str, bytes]:
    """What the evaluations made, without the markers, which tell when and how long."""
    folders = [run / name for name in ("evaluation", "evaluation-compared", "sweep", "real")]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".tar", ".jsonl", ".json")]
    kept = [file for file in files if not file.name.endswith(("done.json", "begun.json"))]
    return {str(file.relative_to(run)): file.read_bytes() for file in kept}


def loads(site: Site) -> list[dict[str, int]]:
    """How often each block run for this folder loaded which models, from the logs."""
    found = []
    for block_run in site.ask("flow_runs", flow_runs={"tags": {"all_": [f"run:{site.run}"]}}):
        lines = site.ask("logs", logs={"flow_run_id": {"any_": [block_run["id"]]}})
        said = [line["message"].partition(":")[0] for line in lines if ": models loaded in" in line["message"]]
        found.append(dict(Counter(said)))
    return found


def process_at_images(run: Path) -> int | None:
    """The block's process that is writing a shard of images."""
    for path in (run / "evaluation" / "images").glob(f"*/*{TEMPORARY}*"):
        return int(path.name.split(TEMPORARY)[1].partition("-")[0])
    return None


def test_workers_make_the_bytes_of_one_process(site: Site, alone: Path) -> None:
    site.add_workers(2)
    assert site.plan("evaluate-adapters").wait() == 0, site.said()
    found = evaluated(site.run)
    assert found == evaluated(alone) and {"evaluation/rows.jsonl", "evaluation/summary.json"} <= found.keys()
    everything = {"images": 1, "masks": 1, "embeddings": 1}
    plain = {"images": 1, "embeddings": 1}  # a sweep's point has no masked metrics
    expected = [{"masks": 1}] * 2 + [everything] * 4 + [plain]
    assert sorted(map(sorted, loads(site))) == sorted(map(sorted, expected))
    assert all(count == 1 for block in loads(site) for count in block.values())
    assert site.said().endswith("False\n"), "planning imported torch"


def test_a_killed_block_is_made_again_and_what_is_finished_stays(site: Site, alone: Path) -> None:
    site.add_workers(2)
    plan = site.plan("evaluate-adapters")
    until(lambda: list((site.run / "evaluation" / "images").glob("*/*.done.json")), "a shard of images")
    until(lambda: process_at_images(site.run), "images")
    block = process_at_images(site.run)
    before = {path: path.read_bytes() for path in (site.run / "evaluation" / "images").glob("*/*.done.json")}
    status = Path(f"/proc/{block}/status")
    victim = next(worker for worker in site.workers if f"PPid:\t{worker.pid}\n" in status.read_text())
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: not status.exists(), "the end of its block", 10)
    site.add_workers(1)
    assert plan.wait() == 0, site.said()
    assert "failed (nothing was heard of it for 0:02:00); again in 10 s" in site.said()
    assert evaluated(site.run) == evaluated(alone)
    assert {path: path.read_bytes() for path in before} == before
