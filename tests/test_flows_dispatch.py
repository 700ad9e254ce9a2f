"""Pieces of work on a real Prefect server, the test playing its workers: limits, failures, leftovers, its absence.

Real workers are in test_flows_workers.py and test_flows_evaluation_workers.py.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, State

from flows import dispatch
from flows.dispatch import Workers, made_on_workers
from flows.profiles import WorkersConfig, load_profile
from flows.server import prefect_server

DEPLOYMENT = "some-block/gpu"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    with (
        prefect_server(tmp_path_factory.mktemp("server"), meanwhile=lambda: None),
        get_client(sync_client=True) as client,
    ):
        client.create_deployment(client.create_flow_from_name("some-block"), "gpu")
        yield client


@dataclass
class Piece:
    name: str
    site: "Site"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"first": self.name}

    def is_made(self) -> bool:
        return self.name in self.site.made


@dataclass
class Site:
    """What is made, and workers that take what is due: by default they make it."""

    client: SyncPrefectClient
    run: Path
    made: set[str] = field(default_factory=set)
    most: int = 0
    taken: list[FlowRun] = field(default_factory=list)
    ends: dict[str, list[State]] = field(default_factory=dict)

    def runs(self) -> list[FlowRun]:
        chosen = FlowRunFilter.model_validate({"tags": {"all_": [f"run:{self.run}"]}})
        return self.client.read_flow_runs(flow_run_filter=chosen)

    def work(self, _: float) -> None:
        waiting = [run for run in self.runs() if run.state and run.state.is_scheduled()]
        self.most = max(self.most, len(waiting))
        for run in waiting:
            self.taken.append(run)
            name = str(run.parameters["first"])
            end = self.ends[name].pop(0) if self.ends.get(name) else None
            if end is None:
                self.made.add(name)
            self.client.set_flow_run_state(run.id, Running(), force=True)
            self.client.set_flow_run_state(run.id, end or Completed(), force=True)

    def make(self, *names: str, note: Callable[[Piece], None] = lambda _: None, **config: Any) -> list[str]:
        profile = load_profile("miniature", {f"workers.{name}": value for name, value in config.items()})
        workers = Workers.of(profile, self.run, DEPLOYMENT)
        assert workers is not None
        waiting, done = [Piece(name, self) for name in names], []
        for piece in made_on_workers(workers, lambda: waiting.pop(0) if waiting else None, lambda: "so far"):
            note(piece)
            done.append(piece.name)
        return done


@pytest.fixture
def site(client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    place = Site(client, tmp_path / "run")
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(sleep=place.work, monotonic=time.monotonic))
    return place


def test_no_more_than_allowed_and_none_for_what_is_there(site: Site) -> None:
    site.made.add("b")
    assert sorted(site.make("a", "b", "c", "d", "e", blocks_in_flight=2)) == ["a", "b", "c", "d", "e"]
    assert site.most == 2 and sorted(run.parameters["first"] for run in site.taken) == ["a", "c", "d", "e"]
    first = next(run for run in site.taken if run.name == "a of run")
    settings = {"workers.blocks_in_flight": 2}
    told = {"profile": "miniature", "run": str(site.run), "settings": settings, "first": "a"}
    assert first.parameters == told and first.tags == [f"run:{site.run}"]
    assert first.job_variables == {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}
    watches = {automation.name: automation.trigger for automation in site.client.read_automations()}
    names = ("silent runs", "runs that never start")
    silent, unstarted = (watches.pop(f"dreamcache: some-block: {name}") for name in names)
    assert not watches and silent.within == timedelta(minutes=2) and unstarted.within == timedelta(minutes=15)
    ends = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Hopeless", "Cancelled", "Crashed")}
    assert silent.expect == ends | {"prefect.flow-run.heartbeat"} and "prefect.flow-run.Running" in silent.after
    assert unstarted.expect == ends | {"prefect.flow-run.Running"}, "nobody waits for more than the end of a run"


def test_what_fails_is_made_again_ever_later(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.ends["a"] = [Crashed(message="killed"), Failed(message="disk"), Completed()]
    with caplog.at_level(logging.INFO, "flows"):
        assert site.make("a", "b") == ["b", "a"]
    again = [re.fullmatch(r"workers: a failed \((.*)\); again in (\d+) s", line) for line in caplog.messages]
    elsewhere = "its worker made other shards: are version, models and run folder the same there?"
    assert [found.groups() for found in again if found] == [("killed", "10"), ("disk", "20"), (elsewhere, "40")]
    due = [run.expected_start_time for run in site.taken if run.parameters["first"] == "a"]
    assert due[1] and due[0] and due[1] - due[0] > timedelta(seconds=5)


@pytest.mark.parametrize(
    ("end", "error", "text"),
    [
        (Failed(name="Hopeless", message="there is no model"), ValueError, "a: there is no model"),
        (Cancelled(), RuntimeError, "a: its run was cancelled; start again to go on"),
        (Crashed(message="killed"), RuntimeError, "a failed 2 times, at last: killed"),
    ],
)
def test_the_end_ends_all_runs(site: Site, end: State, error: type[Exception], text: str) -> None:
    site.ends = {"a": [end, end], "b": [Running()]}
    with pytest.raises(error, match=text):
        site.make("a", "b", retries=1)
    assert {run.state_name for run in site.runs() if run.parameters["first"] == "b"} <= {"Cancelling", "Cancelled"}


def test_leftovers_of_a_killed_start_are_cancelled(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    def fail(piece: Piece) -> None:
        raise KeyboardInterrupt

    site.ends["b"] = [Running()]
    with pytest.raises(KeyboardInterrupt):
        site.make("a", "b", note=fail)
    assert not [run for run in site.runs() if run.state and run.state.is_running()]
    site.client.create_flow_run_from_deployment(
        site.client.read_deployment_by_name(DEPLOYMENT).id, tags=[f"run:{site.run}"]
    )
    with caplog.at_level(logging.INFO, "flows"):
        assert site.make("b") == ["b"]
    assert "workers: cancelled 1 block runs that an earlier start left" in caplog.messages


def test_a_server_that_is_away_is_waited_for(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, ask = [httpx.ConnectError("refused")] * 3, SyncPrefectClient.read_flow_runs

    def read_flow_runs(self: SyncPrefectClient, **question: Any) -> list[FlowRun]:
        if "any_" in str(question) and "id=FlowRunFilterId" in str(question) and away:
            raise away.pop()
        return ask(self, **question)

    monkeypatch.setattr(SyncPrefectClient, "read_flow_runs", read_flow_runs)
    assert site.make("a") == ["a"] and away == []
    assert sum("does not answer (ConnectError); waiting for it" in line for line in caplog.messages) == 1


def test_a_server_is_waited_for_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], list[int]()
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + 100 * seconds))
    monkeypatch.setattr(dispatch, "time", clock)

    def answer(*codes: int) -> int:
        def ask() -> int:
            asked.append(codes[min(len(asked), len(codes) - 1)])
            request = httpx.Request("GET", "http://prefect/api")
            return httpx.Response(asked[-1], request=request).raise_for_status().status_code

        asked.clear()
        return dispatch._patiently(ask)

    assert answer(503, 500, 200) == 200 and len(asked) == 3
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        answer(422)
    assert len(asked) == 1, "what the server refuses it will refuse again"
    with pytest.raises(RuntimeError, match="the Prefect server did not answer for 0:10:00: .*503"):
        answer(503)
    assert len(asked) == 5, "every 200 s, for more than 10 minutes"


def test_a_deployment_that_is_not_there_is_named(site: Site) -> None:
    workers = Workers("some-block/other", WorkersConfig(), {"run": str(site.run)}, "run:x")
    with pytest.raises(ValueError, match="knows no deployment some-block/other: set PREFECT_API_URL"):
        list(made_on_workers(workers, lambda: Piece("a", site), lambda: ""))


def test_a_clock_that_is_set_back_keeps_no_run_waiting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that no worker has, nor one that has a worker, which waits for the moment by itself."""
    ahead = timedelta(days=1)

    def work(seconds: float) -> None:
        nonlocal ahead
        if ahead:
            ahead = timedelta()
            taken = next(run for run in site.runs() if run.parameters["first"] == "b")
            assert taken.state is not None
            waits = taken.state.state_details.scheduled_time
            site.client.set_flow_run_state(taken.id, Pending(state_details={"scheduled_time": waits}), force=True)
        else:
            site.work(seconds)

    monkeypatch.setattr(dispatch, "datetime", SimpleNamespace(now=lambda zone: datetime.now(zone) + ahead))
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(sleep=work, monotonic=time.monotonic))
    assert sorted(site.make("a", "b", blocks_in_flight=2)) == ["a", "b"]
    planned = [run.expected_start_time for run in site.taken]
    assert len(planned) == 2 and all(at is not None and at < datetime.now(UTC) for at in planned)
    left = [run.state.name for run in site.runs() if run.id not in {run.id for run in site.taken} and run.state]
    assert sorted(left) == ["Cancelled", "Cancelling"]  # a worker has to end the other
