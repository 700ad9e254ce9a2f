"""A dataset of very small models under kill -9: at every named point of every stage, then at random moments on a real
Prefect server, over the flow, blocks, workers and the server, each started again.

`make chaos` runs it and leaves its tables in build/chaos. DREAMCACHE_CHAOS_KILLS, DREAMCACHE_CHAOS_SEED and
DREAMCACHE_CHAOS_MINUTES say how many kills at random there are, which, and how long they and the build may take.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kill_points import begun_again, in_a_child, points_reached, watched
from prefect_site import ROOT, Site, bytes_of, deploy, prefect_variables, processes_with, start_server, until
from tiny_datagen import build_alone, tiny_dataset_config, tiny_models
from tiny_profile import tiny_settings

from datagen.dataset import STAGES, Dataset, DatasetConfig
from flows.profiles import load_profile
from shards.files import TEMPORARY
from shards.processes import ServerProcess
from shards.verify import STRAY, shard_faults

KILLS = int(os.environ.get("DREAMCACHE_CHAOS_KILLS", 25))
SEED = int(os.environ.get("DREAMCACHE_CHAOS_SEED", 0))
MINUTES = float(os.environ.get("DREAMCACHE_CHAOS_MINUTES", 30))
KINDS = ("flow", "block", "worker", "server")
MOST_POINTS = 10  # that lie between two kills
WORKERS = 2  # with a block each
ALL = WORKERS + 1
TABLES = ROOT / "build" / "chaos"

pytestmark = pytest.mark.chaos


def write_table(name: str, columns: tuple[str, ...], rows: list[tuple[object, ...]], *ends: str) -> None:
    TABLES.mkdir(parents=True, exist_ok=True)
    lines = [f"| {' | '.join(map(str, row))} |" for row in (columns, ("---",) * len(columns), *rows)]
    (TABLES / name).write_text("\n".join([*lines, "", *ends]) + "\n")


def check_accounts(dataset: Dataset) -> list[str]:
    """See that all is made, all bytes, counts and keys are right, and in = out + rejected; a line a stage of it."""
    assert dataset.remaining() == []
    assert [fault for fault in shard_faults(dataset.run) if fault.problem != STRAY] == []
    lines = []
    for stage in STAGES:
        markers = dataset.markers(stage, range(dataset.config.shards or 0))
        entered, left = sum(m.records_in for m in markers), sum(m.records_out for m in markers)
        rejected = sum(sum(m.rejected.values()) for m in markers)
        assert entered == left + rejected
        lines.append(f"{stage}: {entered} in = {left} out + {rejected} rejected")
    return lines


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "over-an-older-one"])
def test_a_kill_at_every_point_of_every_stage(tmp_path: Path, earlier: bool) -> None:
    """Of a dataset's last shard, so that there is finished work before it; each kill is in the next start's way."""
    config, other = tiny_dataset_config(tiny_models()), {"seed": 8}
    run, log = tmp_path / "run", tmp_path / "points.log"
    if earlier:
        build_alone(config.model_copy(update=other), run)
    assert in_a_child(lambda: build_alone(config, tmp_path / "undisturbed"), tmp_path / "undisturbed.log") == 0
    points = [str(point) for point in points_reached(tmp_path / "undisturbed.log") if point.shard.endswith("/00001")]
    assert len(points) == len(set(points)) and {point.partition("/")[0] for point in points} == set(STAGES)

    for point in points:
        assert in_a_child(lambda: build_alone(config, run), log, kill_at=point) == -signal.SIGKILL, point
    reached = points_reached(log)
    assert in_a_child(lambda: build_alone(config, run), log) == 0
    assert points_reached(log) == reached  # the last point is the last marker
    assert bytes_of(run) == bytes_of(tmp_path / "undisturbed")
    assert not list(run.rglob(f"*{TEMPORARY}*"))
    accounts = check_accounts(Dataset(config, run))

    again = {before.pid: before.shard for _, before in begun_again(reached)}
    last = {point.pid: point for point in reached}
    rows = [(str(last[pid]), again.get(pid, "nothing")) for pid in last]
    assert [at for at, _ in rows] == points
    assert [at for at, redone in rows if redone == "nothing"] == [f"{stage}/00001 marked" for stage in STAGES]
    write_table(
        f"points-{'over-an-older-one' if earlier else 'first'}.md", ("killed at", "made again"), rows, *accounts
    )


@dataclass
class Blow:
    """A kill, or a flow that stopped by itself after one: which processes it may end, and what was made again for it.

    `in_flight` is how many shards these can have in hand: a block has one, and so has the flow when it deduplicates.
    """

    what: str
    seconds: float
    at: str
    points_before: int
    hit: set[int]
    in_flight: int
    again: list[str] = field(default_factory=list)

    @property
    def of_all(self) -> bool:
        """Whether all blocks are broken off: a flow that starts again cancels them, also those that just begin."""
        return self.in_flight > 1


class Chaos:
    """A build on workers, the processes that are killed, and the account of it."""

    def __init__(self, site: Site, log: Path) -> None:
        self.site, self.log, self.random = site, log, random.Random(SEED)
        self.started = time.monotonic()
        self.blows: list[Blow] = []
        self.server = start_server(site.environment)
        self.site.open.callback(lambda: self.server.stop())
        deploy(site.environment)
        self.site.add_workers(WORKERS)
        self.plan = self.site.plan()

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Wait while the build goes on; a flow that stops with its one line is started again, like a user would."""
        while True:
            code = self.plan.poll()
            if reached():
                return
            assert code != 0, f"the build ended before {what}"
            spent = time.monotonic() - self.started
            assert spent < 60 * MINUTES, f"{MINUTES} minutes did not suffice for {what}: set DREAMCACHE_CHAOS_MINUTES"
            if code is not None:
                said = self.site.said(self.site.plans - 1)
                lines = [line for line in said.splitlines() if line.startswith("dreamcache: ")]
                assert lines, f"the flow stopped without its one line: {said[-2000:]}"
                self.note(
                    f"(stopped: {lines[-1].removeprefix('dreamcache: ')})", self.plan.pid, self.site.blocks(), ALL
                )
                self.plan = self.site.plan()
            for worker in list(self.site.workers):
                try:
                    worker.check()
                except RuntimeError:  # it gives up where the server is away for long
                    self.replace(worker)
            time.sleep(0.1)

    def replace(self, worker: ServerProcess) -> None:
        self.site.workers.remove(worker)
        self.site.add_workers(1)

    def note(self, what: str, victim: int, hit: Iterable[int], in_flight: int = 1) -> None:
        """Enter a blow, with the last point of its victim or else of the processes that it hits."""
        points, hit = points_reached(self.log), {victim, *hit}
        own = [point for point in points if point.pid == victim] or [point for point in points if point.pid in hit]
        at = str(own[-1]) if own else "before its first point"
        self.blows.append(Blow(what, time.monotonic() - self.started, at, len(points), hit, in_flight))

    def kill(self, kind: str) -> None:
        """Kill a process of a kind, see that what it started ends too, and start again what nobody else would."""
        while not (blocks := self.site.blocks()) and kind == "block":
            self.until(self.site.blocks, "a block to kill")
        if kind == "block":
            pid = self.random.choice(sorted(blocks))
            self.note(kind, pid, ())
            os.kill(pid, signal.SIGKILL)
        elif kind == "worker":
            worker = self.random.choice(self.site.workers)
            own = {block for block, parent in blocks.items() if parent == worker.pid}
            self.note(kind, worker.pid, own)
            os.kill(worker.pid, signal.SIGKILL)
            # One that is still importing ends when it has done so.
            until(lambda: not own & self.site.blocks().keys(), "the end of a killed worker's block", 120)
            self.replace(worker)
        elif kind == "flow":
            self.note(kind, self.plan.pid, blocks, ALL)
            self.plan.send_signal(signal.SIGKILL)
            self.plan.wait()
            self.plan = self.site.plan()
        else:
            self.note(kind, self.server.pid, {*blocks, self.plan.pid}, ALL)
            os.kill(self.server.pid, signal.SIGKILL)
            self.server.stop()
            self.server = start_server(self.site.environment)

    def run(self) -> None:
        """All kills, each some points after the one before, and the build to its end."""
        kinds = [KINDS[number % len(KINDS)] for number in range(KILLS)]
        self.random.shuffle(kinds)
        for number, kind in enumerate(kinds):
            wanted = len(points_reached(self.log)) + self.random.randint(1, MOST_POINTS)
            self.until(lambda wanted=wanted: len(points_reached(self.log)) >= wanted, f"kill {number + 1} of {KILLS}")
            time.sleep(self.random.uniform(0, 1))
            self.kill(kind)
        self.until(lambda: self.plan.poll() == 0, "the end of the build")

    def account(self) -> None:
        """Enter what was made again with the last blow that broke it off before.

        AssertionError where there is none, where a process broke off two shards, or where more was made again than
        was in flight.
        """
        found = begun_again(points_reached(self.log))
        for place, before in found:
            earlier = [blow for blow in self.blows if blow.points_before <= place]
            causes = [blow for blow in earlier if before.pid in blow.hit] or [blow for blow in earlier if blow.of_all]
            assert causes, f"{before.shard} was made again, and nothing had hit process {before.pid}"
            causes[-1].again.append(before.shard)
        assert len({before.pid for _, before in found}) == len(found)
        assert len(found) <= sum(blow.in_flight for blow in self.blows)

    def table(self) -> None:
        rows = [
            (n, f"{blow.seconds:.0f} s", blow.what, blow.at, ", ".join(blow.again) or "nothing")
            for n, blow in enumerate(self.blows, 1)
        ]
        shards = {point.shard for point in points_reached(self.log)}
        again = sum(len(blow.again) for blow in self.blows)
        end = f"{len(shards)} shards, {again} made again; {time.monotonic() - self.started:.0f} s; seed {SEED}"
        write_table("random.md", ("", "after", "killed", "at", "made again"), rows, end)


def test_random_kills_over_flow_blocks_workers_and_server(tmp_path: Path) -> None:
    # Between two kills lie at most MOST_POINTS points, and a shard has 36: enough shards that the kills end first. The
    # detector's weights are random, and a block needs some record for which it finds a box.
    settings = tiny_settings() | {"captions_per_shard": 16, "shards": 2 + KILLS // 2, "shards_per_block": 2}
    config: DatasetConfig = load_profile("miniature", settings).dataset
    expected = tmp_path / "undisturbed"
    assert in_a_child(lambda: build_alone(config, expected), tmp_path / "undisturbed.log") == 0

    for folder in ("prefect", "points", "site"):
        (tmp_path / folder).mkdir()
    environment = prefect_variables(tmp_path / "prefect") | watched(tmp_path / "points")
    site = Site(tmp_path / "site", environment, settings | {"workers.blocks_in_flight": 2 * WORKERS})
    with site.open:
        chaos = Chaos(site, tmp_path / "points" / "points.log")
        try:
            chaos.run()
            chaos.account()
        finally:
            chaos.table()
    until(lambda: not processes_with("PREFECT_HOME", environment["PREFECT_HOME"]), "the end of all processes", 10)
    assert bytes_of(site.run) == bytes_of(expected)
    check_accounts(Dataset(config, site.run))
