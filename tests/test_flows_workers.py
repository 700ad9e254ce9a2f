"""Blocks on a real Prefect server and real workers, with very small models: the same bytes, each model loaded once a
block, and a worker or the planning process killed by SIGKILL in the middle.

`make workers` runs it: minutes, most of them of waiting for Prefect to notice that a killed worker is silent.
"""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_site import Site, bytes_of, server_of_blocks, until
from tiny_datagen import build_alone
from tiny_profile import tiny_settings

from flows.profiles import load_profile

BLOCKS = 4

pytestmark = pytest.mark.workers


@pytest.fixture(scope="module")
def settings() -> dict[str, object]:
    return tiny_settings() | {"shards": BLOCKS, "shards_per_block": 1, "captions_per_shard": 16}


@pytest.fixture(scope="module")
def expected(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes that one process makes."""
    run = tmp_path_factory.mktemp("alone")
    build_alone(load_profile("miniature", settings).dataset, run)
    return bytes_of(run)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with server_of_blocks(tmp_path_factory.mktemp("prefect")) as variables:
        yield variables


def loads(site: Site) -> dict[str, int]:
    """How often each stage loaded its models, from the logs of all block runs for this folder."""
    found: Counter[str] = Counter()
    for block_run in site.ask("flow_runs", flow_runs={"tags": {"all_": [f"run:{site.run}"]}}):
        lines = site.ask("logs", logs={"flow_run_id": {"any_": [block_run["id"]]}})
        found.update(line["message"].partition(":")[0] for line in lines if ": models loaded in" in line["message"])
    return dict(found)


def process_at_images(run: Path) -> int | None:
    """The block's process that is writing a shard of images."""
    for path in (run / "images").glob("*.tar.tmp-*"):
        return int(path.name.split(".tmp-")[1].partition("-")[0])
    return None


@pytest.fixture
def site(tmp_path: Path, environment: dict[str, str], settings: dict[str, object]) -> Iterator[Site]:
    place = Site(tmp_path, environment, settings)
    with place.open:
        yield place


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_make_the_bytes_of_one_process(site: Site, expected: dict[str, bytes], workers: int) -> None:
    site.add_workers(workers)
    assert site.plan().wait() == 0, site.said()
    assert bytes_of(site.run) == expected
    assert loads(site) == {"captions": BLOCKS, "images": BLOCKS, "masks": BLOCKS}
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
    second = site.plan()
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
    assert site.plan().wait() == 0, site.said(1)
    assert re.search(r"cancelled \d block runs that an earlier start left", site.said(1))
    assert bytes_of(site.run) == expected
