"""A build on Prefect workers whose wall clock jumps under server, workers, blocks and planning process alike."""

import os
import signal
import time
from pathlib import Path

import pytest
from jumping_clock import COMPILER, JumpingClock
from kill_points import begun_again, in_a_child, points_reached, watched
from prefect_site import Site, bytes_of, deploy, prefect_variables, processes_with, start_server, until
from tiny_datagen import build_alone
from tiny_profile import tiny_settings

from flows.profiles import load_profile

MINUTE, HOUR, DAY = 60, 3600, 86400
JUMPS = (DAY, -HOUR, 10 * MINUTE, 0)
SECONDS_BETWEEN = 20  # in which the server's services look at the runs several times

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(not COMPILER, reason="a C compiler is missing (cc)")]


def test_a_build_goes_on_when_the_clock_jumps(tmp_path: Path) -> None:
    settings = tiny_settings() | {"captions_per_shard": 16, "shards": 12, "shards_per_block": 2}
    config = load_profile("miniature", settings).dataset
    assert in_a_child(lambda: build_alone(config, tmp_path / "expected"), tmp_path / "expected.log") == 0

    for folder in ("prefect", "points", "site"):
        (tmp_path / folder).mkdir()
    clock, log = JumpingClock(tmp_path), tmp_path / "points" / "points.log"
    environment = prefect_variables(tmp_path / "prefect") | watched(tmp_path / "points") | clock.environment
    site = Site(tmp_path / "site", environment, settings | {"workers.blocks_in_flight": 2})
    with site.open:
        server = start_server(environment)
        site.open.callback(server.stop)
        deploy(environment)
        site.add_workers(2)
        plan = site.plan()

        def go_on_for(seconds: float) -> None:
            """Let the build go on; a process that stops with its one line is started again, like a user would."""
            nonlocal plan
            deadline = time.monotonic() + seconds
            while (code := plan.poll()) != 0 and time.monotonic() < deadline:
                if code is not None:
                    said = site.said(site.plans - 1)
                    assert "\ndreamcache: " in said, said
                    plan = site.plan()
                time.sleep(0.1)

        def signal_workers(number: int) -> None:
            for worker in site.workers:
                os.kill(worker.pid, number)

        def all_wait() -> bool:
            return site.said(site.plans - 1).rpartition("workers: block runs: ")[2].startswith("2 waiting")

        until(lambda: points_reached(log), "the first point")
        for jump in JUMPS:
            if jump < 0:  # to catch runs that no worker has begun: they would wait for the old time
                signal_workers(signal.SIGSTOP)
                until(all_wait, "runs under way that all wait for a worker", 60)
            clock.jump_to(jump)
            signal_workers(signal.SIGCONT)
            go_on_for(SECONDS_BETWEEN)
            assert plan.poll() is None
        go_on_for(600)
        assert plan.poll() == 0
    said = "".join(site.said(number) for number in range(site.plans))
    assert "a clock was set back" in said
    assert begun_again(points_reached(log)) == []
    until(lambda: not processes_with("PREFECT_HOME", environment["PREFECT_HOME"]), "the end of all processes", 10)
    assert bytes_of(site.run) == bytes_of(tmp_path / "expected")
