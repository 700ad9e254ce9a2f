"""Pieces of work as runs of a deployment on a Prefect work pool, submitted and followed by the run that plans them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.block_runs import HOPELESS
from flows.heartbeats import HEARTBEAT_SECONDS, watch_for_dead_blocks
from flows.profiles import Profile, WorkersConfig, changed_settings
from shards.store import place_of

log = logging.getLogger(__name__)

POLL_SECONDS = 2
FIRST_DELAY = timedelta(seconds=10)
PATIENCE = timedelta(minutes=10)
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]


@dataclass(frozen=True)
class Workers:
    """The workers behind a deployment, and what all its runs for a run folder are told."""

    deployment: str
    config: WorkersConfig
    parameters: dict[str, Any]
    tag: str

    @classmethod
    def of(cls, profile: Profile, run: Path, deployment: str | None) -> Workers | None:
        """Those of a deployment that a profile names, or None where it names none: then all is made in one process."""
        if deployment is None:
            return None
        # The same folder has to be meant on every machine, whatever the working directory there.
        folder = place_of(run.resolve())
        parameters = {"profile": profile.name, "run": folder, "settings": changed_settings(profile)}
        return cls(deployment, profile.workers, parameters, f"run:{folder}")


class Piece(Protocol):
    """Work that one run does: a name for people, parameters beside those of all, and whether it is done."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any]: ...

    def is_made(self) -> bool:
        """By the markers, whatever Prefect says of the run."""


AnyPiece = TypeVar("AnyPiece", bound=Piece)
Answer = TypeVar("Answer")


def made_on_workers(
    workers: Workers,
    next_piece: Callable[[], AnyPiece | None],
    so_far: Callable[[], str],
    look_again: Callable[[], object] = lambda: None,
) -> Generator[AnyPiece]:
    """Have pieces made, within a flow; yields each, in whatever order, when it is there.

    `next_piece` is asked while fewer than `blocks_in_flight` runs are under way, and again after each piece: it has
    None to give where nothing can be begun for now, and all is done when no run is under way then. `so_far` says how
    far the whole is; `look_again` is called before a piece is judged whose run has ended. A run that dies or fails for
    a reason that may pass is submitted again, ever later. When this generator ends, by an exception too, so do the runs
    under way. Raises ValueError for a deployment that is not there and a failure that would come again, RuntimeError
    for a piece that failed too often.
    """
    with get_client(sync_client=True) as client:
        _check_deployment(client, workers.deployment)
        watch_for_dead_blocks(client, workers.deployment.partition("/")[0])
        if count := _cancel_unfinished(client, workers.tag):
            log.info("workers: cancelled %d block runs that an earlier start left", count)
        try:
            yield from _Dispatch(client, workers, next_piece, so_far, look_again).made()
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


def _delay_after(failures: int) -> timedelta:
    """How long the next run of a piece waits that failed so often."""
    return FIRST_DELAY * 2 ** (failures - 1) if failures else timedelta()


def _waits_too_long(state: State[Any], failures: int) -> bool:
    """Whether a run that has not begun waits for a moment further away than it ever was, by the clock as it is now."""
    planned = state.state_details.scheduled_time
    if state.type not in (StateType.SCHEDULED, StateType.PENDING) or planned is None:
        return False
    return planned > datetime.now(UTC) + _delay_after(failures)


class _Dispatch(Generic[AnyPiece]):
    """Which pieces have runs under way, and how often each failed before."""

    def __init__(
        self,
        client: SyncPrefectClient,
        workers: Workers,
        next_piece: Callable[[], AnyPiece | None],
        so_far: Callable[[], str],
        look_again: Callable[[], object],
    ) -> None:
        self.client, self.workers, self.next_piece, self.so_far = client, workers, next_piece, so_far
        self.look_again = look_again
        self.under_way: dict[UUID, tuple[AnyPiece, int]] = {}
        self._told: Counter[str] = Counter()

    def made(self) -> Iterator[AnyPiece]:
        """Submit and follow until all is made."""
        yield from self._submit_next()
        while self.under_way:
            time.sleep(POLL_SECONDS)
            yield from self._follow()
            yield from self._submit_next()

    def _submit_next(self) -> Iterator[AnyPiece]:
        """Submit as many runs as may be under way; what is up to date needs none."""
        while len(self.under_way) < self.workers.config.blocks_in_flight:
            if (piece := self.next_piece()) is None:
                return
            if piece.is_made():
                log.info("workers: %s are up to date", piece.name)
                yield piece
            else:
                self._submit(piece, failures=0)

    def _submit(self, piece: AnyPiece, failures: int) -> None:
        def submit() -> Any:
            return run_deployment(
                self.workers.deployment,
                parameters={**self.workers.parameters, **piece.parameters},
                flow_run_name=f"{piece.name} of {Path(self.workers.parameters['run']).name}",
                tags=[self.workers.tag],
                scheduled_time=datetime.now(UTC) + _delay_after(failures),
                timeout=0,
                job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}},
            )

        # Where an answer was lost, there are two runs of the piece: one waits for the other's lock, and finds it made.
        self.under_way[_patiently(submit).id] = (piece, failures)

    def _follow(self) -> Iterator[AnyPiece]:
        """Look once at the runs under way: pass finished ones on, submit those again that failed."""
        chosen = FlowRunFilter.model_validate({"id": {"any_": [*self.under_way]}})
        runs = _patiently(lambda: self.client.read_flow_runs(flow_run_filter=chosen))
        states = {run.id: run.state for run in runs}
        for number, (piece, failures) in list(self.under_way.items()):
            state = states.get(number)
            if state is not None and not state.is_final():
                if _waits_too_long(state, failures):
                    self._call_again(number, piece, failures)
                continue
            del self.under_way[number]
            self.look_again()
            if piece.is_made():
                yield piece
            else:
                self._submit_again(piece, failures, state)
        left = [state for number, state in states.items() if number in self.under_way and state is not None]
        counts = Counter("at work" if state.is_running() else "waiting for a worker" for state in left)
        if counts != self._told:
            said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            log.info("workers: block runs: %s; %s", said or "none under way", self.so_far())
            self._told = counts

    def _call_again(self, number: UUID, piece: AnyPiece, failures: int) -> None:
        """Submit a run anew that waits for what a clock which was set back has made a far future.

        It is cancelled, since a worker may have it already: then it sleeps until that moment, whatever the server says.
        """
        log.warning("workers: a clock was set back, and %s would wait for the old time: submitted again", piece.name)
        del self.under_way[number]
        _patiently(lambda: self.client.set_flow_run_state(number, State(type=StateType.CANCELLING)))
        self._submit(piece, failures)

    def _submit_again(self, failed: AnyPiece, failures: int, state: State[Any] | None) -> None:
        message = "its run was deleted" if state is None else state.message or str(state.name)
        if state is not None and state.is_cancelled():
            raise RuntimeError(f"{failed.name}: its run was cancelled; start again to go on")
        if state is not None and state.name == HOPELESS:
            raise ValueError(f"{failed.name}: {message}")
        if state is not None and state.is_completed():
            message = "its worker made other shards: are version, models and run folder the same there?"
        if failures == self.workers.config.retries:
            raise RuntimeError(f"{failed.name} failed {failures + 1} times, at last: {message}")
        seconds = _delay_after(failures + 1).total_seconds()
        log.warning("workers: %s failed (%s); again in %.0f s", failed.name, message, seconds)
        self._submit(failed, failures + 1)
