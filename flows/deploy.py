"""Registers the flows with a Prefect server: `python -m flows.deploy`, or `python -m flows.deploy --serve`.

    round/round         one round             prefect deployment run round/round --param round=r2
    campaign/campaign   several rounds
    campaign/nightly    one round more than there are; its schedule is there and off, until it is switched on in the UI
    exam/exam           evaluation and gates of the models that are there

They run as processes of the pool `flywheel` in this folder, one run of each at a time: a further run waits, a further
nightly one is left out, so that nights do not pile up. Every parameter has a default, so a schedule needs none. With them
come the limit `gpu` and the automation that marks crashed runs. Served ones (`round/served-round`) run for as long as this
process does. `infra/prefect.yaml` is the first kind for `prefect deploy`.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Flow, serve
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron
from prefect.utilities.callables import parameter_schema

from flows import HEARTBEAT, crashes, devices
from flows.services import POOL

SERVED = "served"
"""Prefix of the names of served deployments, so that one kind does not replace the other."""
NIGHTLY = "0 2 * * *"


@dataclass(frozen=True)
class Deployed:
    """A deployment: a flow with its own defaults."""

    entrypoint: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cron: str | None = None
    collision: ConcurrencyLimitStrategy = ConcurrencyLimitStrategy.ENQUEUE
    """What becomes of a run while another one of the deployment runs."""


DEPLOYMENTS = {
    "round": Deployed("flows/round.py:run_round", "Bring one round up to date."),
    "campaign": Deployed(
        "flows/campaign.py:run_campaign", "Run rounds, and append the missing ones from the champion."
    ),
    "nightly": Deployed(
        "flows/campaign.py:run_campaign",
        "One round more, from the champion; switch its schedule on.",
        {"more": 1},
        NIGHTLY,
        ConcurrencyLimitStrategy.CANCEL_NEW,
    ),
    "exam": Deployed("flows/round.py:run_exam", "Evaluation and gates again, for the models that are there."),
}
"""By name."""


def deploy(root: Path) -> list[str]:
    """Registers the deployments, with the pool, the limit and the automation that they need; returns their names. What a person
    changed about the limit and about schedules stays.
    """
    make_pool()
    devices.make_limit()
    crashes.watch()
    return [_deploy(root, name, deployed) for name, deployed in DEPLOYMENTS.items()]


def make_pool() -> None:
    """Creates the process work pool, unless it exists."""
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))


def _deploy(root: Path, name: str, deployed: Deployed) -> str:
    flow: Any = Flow.from_source(str(root.resolve()), deployed.entrypoint)
    title = f"{flow.name}/{name}"
    known = _known(title)
    flow.deploy(
        name,
        POOL,
        description=deployed.description,
        parameters=dict(deployed.parameters),
        schedules=_schedules(deployed, known),
        paused=bool(known and known.paused),
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=deployed.collision),
        enforce_parameter_schema=False,
        # Not a temporary folder, which ends with the process: a run that is resumed at once would lose its own.
        job_variables={"env": HEARTBEAT, "working_dir": str(root.resolve())},
        print_next_steps=False,
        ignore_warnings=True,
    )
    return title


def _known(title: str) -> DeploymentResponse | None:
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        return client.read_deployment_by_name(title)
    return None


def _schedules(deployed: Deployed, known: DeploymentResponse | None) -> list[DeploymentScheduleCreate]:
    """Those that a deployment has, for registering it again replaces them; a new one's own is off."""
    if known:
        kept = set(DeploymentScheduleCreate.model_fields) & set(DeploymentSchedule.model_fields)
        return [DeploymentScheduleCreate(**{field: getattr(s, field) for field in kept}) for s in known.schedules]
    return [DeploymentScheduleCreate(schedule=CronSchedule(cron=deployed.cron), active=False)] if deployed.cron else []


def refresh(root: Path) -> None:
    """Brings the drop-downs of the deployments up to date with params.yaml and recipes."""
    for name, deployed in DEPLOYMENTS.items():
        flow: Any = Flow.from_source(str(root.resolve()), deployed.entrypoint)
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):
            known = client.read_deployment_by_name(f"{flow.name}/{name}")
            schema = parameter_schema(flow.fn).model_dump(exclude_unset=True)
            client.update_deployment(known.id, DeploymentUpdate(parameter_openapi_schema=schema))


def serve_here(root: Path) -> None:
    """Serves the flows from this process until it is stopped."""
    make = partial(Flow.from_source, str(root.resolve()))
    deployments: list[Any] = [
        make(d.entrypoint).to_deployment(  # type: ignore[union-attr]
            f"{SERVED}-{name}",
            description=d.description,
            parameters=dict(d.parameters),
            schedule=d.cron and Cron(d.cron, active=False),
            enforce_parameter_schema=False,
        )
        for name, d in DEPLOYMENTS.items()
    ]
    serve(*deployments)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve_here(Path())
    else:
        for name in crashes.mark():
            print(f"{name}: its process is gone; marked as crashed")
        print("\n".join(deploy(Path())))
