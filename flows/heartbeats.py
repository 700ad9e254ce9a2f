"""Block runs whose process or machine died without a word: Prefect's own automations call them crashed."""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

HEARTBEAT_SECONDS = 30  # the least that Prefect allows
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Hopeless", "Cancelled", "Crashed")}


def watch_for_dead_blocks(client: SyncPrefectClient, flow: str) -> None:
    """Make sure that the server calls a flow's run crashed that falls silent, or is taken by a worker and never starts.

    One that lives after all, and was cut off for a while, does no harm: the run that takes its place waits for its
    lock, and finds its shards made.
    """
    pending, running, heartbeat = (f"prefect.flow-run.{event}" for event in ("Pending", "Running", "heartbeat"))
    # It may die before its first heartbeat, which it sends when it runs.
    silence = timedelta(seconds=4 * HEARTBEAT_SECONDS)
    _watch(client, flow, "silent runs", {running, heartbeat}, {heartbeat} | ENDS, silence)
    # A container's image may take minutes to come.
    _watch(client, flow, "runs that never start", {pending}, {running} | ENDS, timedelta(minutes=15))


def _watch(
    client: SyncPrefectClient, flow: str, what: str, after: set[str], expect: set[str], within: timedelta
) -> None:
    name = f"dreamcache: {flow}: {what}"
    if client.read_automations_by_name(name):
        return
    of_blocks = {"prefect.resource.role": "flow", "prefect.resource.name": flow}
    trigger = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification(of_blocks),
        for_each={"prefect.resource.id"},
        after=after,
        expect=expect,
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )
    message = f"nothing was heard of it for {within}"
    crashed = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=True)
    client.create_automation(AutomationCore(name=name, trigger=trigger, actions=[crashed]))
