"""Flow runs whose process is gone are marked as crashed: within 90 seconds, and when the services start.

A flow run sends a sign of life every 30 seconds (`flows.HEARTBEAT`). An automation of the server marks a run of these flows,
and of no others that the server may have, that has sent none for `SILENCE` seconds and has not ended. What the server could
not see, for it did not run either, is marked when the flows are deployed, which `flywheel up` and the containers do before
their worker starts. A marked run loses nothing: what its stages made stays, and the next run goes on from there.
"""

from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.states import Cancelled, Crashed

FLOWS = ["round", "campaign", "exam"]
SILENCE = timedelta(seconds=70)
"""Without a sign of life, after which a run counts as crashed; two signs are missing then."""
ALIVE = "prefect.flow-run.heartbeat"
ENDED = ["Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused", "Budget reached", "AwaitingRetry"]
"""Names of states in which a run sends no sign of life."""
NAME = "flywheel: mark crashed runs"
MESSAGE = "The flow's process is gone: no sign of life. What its stages made stays; run it again to go on from there."


def watch() -> None:
    """Makes the automation, or brings it up to date."""
    automation = AutomationCore(
        name=NAME,
        description="A run that has sent no sign of life and has not ended is marked as crashed.",
        trigger=EventTrigger(
            after={ALIVE},
            expect={ALIVE, *(f"prefect.flow-run.{name}" for name in ENDED)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=MESSAGE)],
    )
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(NAME)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)


def mark(since: datetime | None = None) -> list[str]:
    """Marks the runs of these flows that are running and have sent no sign of life since then, by default for `SILENCE`;
    returns their names.
    """
    since = since or datetime.now(UTC) - SILENCE
    unfinished = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Running", "Cancelling"])))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)), flow_run_filter=unfinished
        )
        gone = [run for run in runs if not _is_alive(client, run, since)]
        for run in gone:
            cancelled = run.state is not None and run.state.is_cancelling()
            client.set_flow_run_state(
                run.id, Cancelled(message=MESSAGE) if cancelled else Crashed(message=MESSAGE), force=True
            )
    return [run.name for run in gone]


def _is_alive(client: SyncPrefectClient, run: FlowRun, since: datetime) -> bool:
    """Whether a run began, or sent a sign of life, after a time."""
    if run.state is None or run.state.timestamp > since:
        return True
    query = {
        "event": {"name": [ALIVE]},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
        "occurred": {"since": since.isoformat()},
    }
    response = client.request("POST", "/events/filter", json={"filter": query, "limit": 1})
    return bool(response.raise_for_status().json()["events"])


__all__ = ["mark", "watch"]
