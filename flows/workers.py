"""Blocks of shards on workers: deployment runs on a Prefect work pool, submitted and followed by the run that plans."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from datagen.block import Block
from datagen.dataset import Dataset
from flows.build_block import HOPELESS, build_stages
from flows.heartbeats import HEARTBEAT_SECONDS, watch_for_dead_blocks
from flows.profiles import Profile, WorkersConfig, changed_settings
from shards.store import url_of

log = logging.getLogger(__name__)

# Dedup alone needs all captions before a block's own: it parts the block's work in two, and is done here.
BEFORE, DEDUP, AFTER = ("captions",), ("dedup",), ("images", "masks", "gates", "triplets")
POLL_SECONDS = 2
FIRST_DELAY = timedelta(seconds=10)
PATIENCE = timedelta(minutes=10)
Answer = TypeVar("Answer")
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]


@dataclass(frozen=True)
class Workers:
    """The workers behind a deployment of build-block, and what all their runs for a run folder are told."""

    config: WorkersConfig
    parameters: dict[str, Any]
    tag: str

    @classmethod
    def of(cls, profile: Profile, run: Path) -> Workers | None:
        """Those that a profile names, or None where all is made in one process."""
        if profile.workers.deployment is None:
            return None
        # The same folder has to be meant on every machine, whatever the working directory there.
        folder = url_of(run) or str(run.resolve())
        parameters = {"profile": profile.name, "run": folder, "settings": changed_settings(profile)}
        return cls(profile.workers, parameters, f"run:{folder}")


def built_on_workers(dataset: Dataset, workers: Workers) -> Iterator[range]:
    """Have a dataset's blocks made, within a flow; yields each, in whatever order, when its triplets are there.

    At most `blocks_in_flight` runs are under way. One that dies or fails for a reason that may pass is submitted again,
    ever later. When this generator ends, by an exception too, so do the runs under way. Raises ValueError for a
    deployment that is not there and a failure that would come again, RuntimeError for a block that failed too often.
    """
    with get_client(sync_client=True) as client:
        _check_deployment(client, str(workers.config.deployment))
        watch_for_dead_blocks(client)
        if count := _cancel_unfinished(client, workers.tag):
            log.info("workers: cancelled %d block runs that an earlier start left", count)
        try:
            yield from _Dispatch(client, dataset, workers).finished_blocks()
        finally:
            with contextlib.suppress(httpx.HTTPError):  # without a server, the next start sees to them
                _cancel_unfinished(client, workers.tag)


def _check_deployment(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_deployment_by_name(name)
    except ObjectNotFound:
        server = f"the Prefect server at {PREFECT_API_URL.value()} knows no deployment {name}"
        raise ValueError(f"{server}: set PREFECT_API_URL to the right one, or `prefect deploy --all` there") from None


def _cancel_unfinished(client: SyncPrefectClient, tag: str) -> int:
    """Cancel the block runs of a run folder; the caller holds its lock, so nobody waits for them. Returns how many.

    Prefect itself ends those that a living worker has, and after minutes calls those of a dead one cancelled.
    """
    count = 0
    state = {"type": {"any_": UNFINISHED}}
    chosen = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": state})
    while found := client.read_flow_runs(flow_run_filter=chosen):
        for run in found:
            client.set_flow_run_state(run.id, State(type=StateType.CANCELLING))
        count += len(found)
    return count


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """The server's answer, also where it comes late: a server may be overloaded, or be started again."""
    deadline, told = time.monotonic() + PATIENCE.total_seconds(), False
    while True:
        try:
            return ask()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
            if time.monotonic() > deadline:
                raise RuntimeError(f"the Prefect server did not answer for {PATIENCE}: {error}") from None
            if not told:
                log.warning("workers: the Prefect server does not answer (%s); waiting for it", type(error).__name__)
                told = True
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class _BlockRun:
    """Stages of a block that a worker makes or is to make, and how often that failed before."""

    block: range
    stages: tuple[str, ...]
    failures: int = 0

    @property
    def name(self) -> str:
        return f"{self.stages[0]} {self.block.start:05d} to {self.block.stop - 1:05d}"


class _Dispatch:
    """Which blocks of a dataset have come how far, and which runs are under way."""

    def __init__(self, client: SyncPrefectClient, dataset: Dataset, workers: Workers) -> None:
        self.client, self.dataset, self.workers = client, dataset, workers
        self.begun: list[range] = []
        self.captioned: set[range] = set()
        self.ready: deque[range] = deque()  # their captions are deduplicated
        self.accepted: dict[range, int] = {}
        self.under_way: dict[UUID, _BlockRun] = {}
        self._block = Block(dataset)
        self._deduplicated = 0
        self._told: Counter[str] = Counter()

    def finished_blocks(self) -> Iterator[range]:
        """Submit and follow until all is made."""
        yield from self._submit_next()
        while self.under_way:
            time.sleep(POLL_SECONDS)
            yield from self._follow()
            yield from self._submit_next()

    def _submit_next(self) -> Iterator[range]:
        """Submit as many runs as may be under way, those of begun blocks first; what is up to date needs none."""
        while len(self.under_way) < self.workers.config.blocks_in_flight:
            if self.ready:
                wanted = _BlockRun(self.ready.popleft(), AFTER)
            elif (block := self.dataset.next_block(self.begun, self.accepted)) is not None:
                self.begun.append(block)
                wanted = _BlockRun(block, BEFORE)
            else:
                return
            if self._is_made(wanted):
                log.info("workers: %s are up to date", wanted.name)
                yield from self._advance(wanted)
            else:
                self._submit(wanted, timedelta())

    def _submit(self, wanted: _BlockRun, delay: timedelta) -> None:
        block = {"first": wanted.block.start, "last": wanted.block.stop - 1, "stages": wanted.stages}

        def submit() -> Any:
            return run_deployment(
                str(self.workers.config.deployment),
                parameters={**self.workers.parameters, **block},
                flow_run_name=f"{wanted.name} of {self.dataset.run.name}",
                tags=[self.workers.tag],
                scheduled_time=datetime.now(UTC) + delay,
                timeout=0,
                job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}},
            )

        # Where an answer was lost, there are two runs of the block: one waits for the other's lock, and finds it made.
        self.under_way[_patiently(submit).id] = wanted

    def _follow(self) -> Iterator[range]:
        """Look once at the runs under way: pass finished ones on, submit those again that failed."""
        chosen = FlowRunFilter.model_validate({"id": {"any_": [*self.under_way]}})
        runs = _patiently(lambda: self.client.read_flow_runs(flow_run_filter=chosen))
        states = {run.id: run.state for run in runs}
        for number, done in list(self.under_way.items()):
            state = states.get(number)
            if state is not None and not state.is_final():
                continue
            del self.under_way[number]
            self.dataset.look_again()
            if self._is_made(done):
                yield from self._advance(done)
            else:
                self._submit_again(done, state)
        left = [state for number, state in states.items() if number in self.under_way and state is not None]
        counts = Counter("at work" if state.is_running() else "waiting for a worker" for state in left)
        if counts != self._told:
            said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            done_so_far = f"{len(self.accepted)} of {len(self.begun)} blocks finished"
            log.info("workers: block runs: %s; %s", said or "none under way", done_so_far)
            self._told = counts

    def _is_made(self, wanted: _BlockRun) -> bool:
        """By the markers, whatever Prefect says of the run."""
        return all(
            self.dataset.plan(stage, index).state() == "done" for stage in wanted.stages for index in wanted.block
        )

    def _advance(self, done: _BlockRun) -> Iterator[range]:
        """Take note of what was made, and deduplicate the captions that may be by now."""
        if done.stages == AFTER:
            self.accepted[done.block] = sum(self.dataset.records_out("triplets", done.block))
            yield done.block
            return
        self.captioned.add(done.block)
        while self._deduplicated < len(self.begun) and self.begun[self._deduplicated] in self.captioned:
            build_stages(self._block, self.begun[self._deduplicated], DEDUP)
            self.ready.append(self.begun[self._deduplicated])
            self._deduplicated += 1

    def _submit_again(self, failed: _BlockRun, state: State[Any] | None) -> None:
        message = "its run was deleted" if state is None else state.message or str(state.name)
        if state is not None and state.is_cancelled():
            raise RuntimeError(f"{failed.name}: its run was cancelled; start again to go on")
        if state is not None and state.name == HOPELESS:
            raise ValueError(f"{failed.name}: {message}")
        if state is not None and state.is_completed():
            message = "its worker made other shards: are version, models and run folder the same there?"
        again = replace(failed, failures=failed.failures + 1)
        if again.failures > self.workers.config.retries:
            raise RuntimeError(f"{failed.name} failed {again.failures} times, at last: {message}")
        delay = FIRST_DELAY * 2**failed.failures
        log.warning("workers: %s failed (%s); again in %.0f s", failed.name, message, delay.total_seconds())
        self._submit(again, delay)
