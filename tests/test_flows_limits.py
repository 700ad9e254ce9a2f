"""The concurrency limit of prefect.yaml on a real Prefect server that is killed by SIGKILL: never more runs at once
than allowed, and the slot of a run that died with the server becomes free.

`make workers` runs it: ten minutes, six of which a dead run's lease takes to end.
"""

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_site import Site, deploy, prefect_variables, start_server, until
from tiny_profile import tiny_settings

from flows.build_dataset import build_dataset
from shards.processes import ServerProcess

LIMITED = "build-dataset/full"

pytestmark = pytest.mark.workers


class Limited:
    """A server that can be killed, and runs of a limited deployment, each of a folder of its own."""

    def __init__(self, folder: Path) -> None:
        waits = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5"}
        self.site = Site(folder, prefect_variables(folder / "prefect") | waits, {})
        self.server: ServerProcess = start_server(self.site.environment)
        self.site.open.callback(lambda: self.server.stop())
        deploy(self.site.environment, LIMITED)
        self.site.open.enter_context(temporary_settings({PREFECT_API_URL: self.site.environment["PREFECT_API_URL"]}))
        self.client: SyncPrefectClient = self.site.open.enter_context(get_client(sync_client=True))

    def submit(self, name: str) -> UUID:
        """A build of twelve small shards."""
        settings = tiny_settings() | {"shards": 12, "shards_per_block": 1}
        told = {"profile": "miniature", "run": str(self.site.folder / name), "settings": settings}
        deployment = self.client.read_deployment_by_name(LIMITED)
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=told, name=name).id

    def run(self, number: UUID) -> FlowRun:
        return self.client.read_flow_run(number)

    def state(self, number: UUID) -> str | None:
        return self.run(number).state_name

    def kill_server(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()

    def slots(self) -> int:
        deployment = self.client.read_deployment_by_name(LIMITED)
        assert deployment.global_concurrency_limit is not None
        return deployment.global_concurrency_limit.active_slots


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    place = Limited(tmp_path)
    with place.site.open:
        yield place


def test_the_limit_holds_across_kills_of_the_server(limited: Limited, tmp_path: Path) -> None:
    stored = limited.client.read_deployment_by_name(LIMITED).parameter_openapi_schema
    assert stored and stored["properties"] == build_dataset.parameters.properties  # with what test_flows_forms.py sees

    first, second = limited.submit("first"), limited.submit("second")
    limited.site.add_workers(2)
    states = {"Running", "AwaitingConcurrencySlot"}
    until(lambda: {limited.state(first), limited.state(second)} == states, "one at work and one that waits")
    if limited.state(first) != "Running":
        first, second = second, first
    until(lambda: list(tmp_path.glob("*/captions/*.done.json")), "the first captions")
    limited.kill_server()
    limited.server = start_server(limited.site.environment)
    assert limited.slots() == 1
    until(lambda: limited.state(first) == "Completed", "the end of the run that lived through it")
    until(lambda: limited.state(second) == "Running", "the other")
    over, begun = limited.run(first).end_time, limited.run(second).start_time
    assert over and begun and over <= begun

    third = limited.submit("third")
    until(lambda: limited.state(third) == "AwaitingConcurrencySlot", "the third to wait")
    (process, worker), *others = limited.site.blocks().items()
    assert others == []
    limited.kill_server()
    os.kill(worker, signal.SIGKILL)
    until(lambda: process not in limited.site.blocks(), "the end of the second", 10)
    died = datetime.now(UTC)
    limited.server = start_server(limited.site.environment)
    assert limited.slots() == 1 and limited.state(second) == "Running"  # as far as the server knows
    until(lambda: limited.state(third) in ("Pending", "Running"), "the dead run's slot", 600)
    assert (datetime.now(UTC) - died).total_seconds() < 450
    until(lambda: limited.state(third) == "Completed", "the third")
    until(lambda: limited.slots() == 0, "free slots")
