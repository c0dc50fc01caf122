"""Registers the flows with a Prefect server: `python -m flows.deploy`, or `python -m flows.deploy --serve`.

Deployed flows run as processes of the pool `flywheel` in this folder (`prefect deployment run round/local -p
round=r2`); served ones (`round/served`) for as long as this process does. `infra/prefect.yaml` is the first kind for
`prefect deploy`.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import Flow, serve
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from flows.services import POOL

NAME, SERVED = "local", "served"
"""Deployment names. They differ, so that one kind does not replace the other."""
FLOWS = {
    "flows/round.py:run_round": "Bring one round up to date.",
    "flows/campaign.py:run_campaign": "Run rounds, one after the other.",
}


def deploy(root: Path) -> list[str]:
    """Creates the pool if it is missing, registers both flows for it, and returns the deployments' names."""
    make_pool()
    return [_deploy(root, entrypoint, text) for entrypoint, text in FLOWS.items()]


def make_pool() -> None:
    """Creates the process work pool, unless it exists."""
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))


def _deploy(root: Path, entrypoint: str, text: str) -> str:
    flow: Any = Flow.from_source(str(root.resolve()), entrypoint)
    # One run at a time: a second run of the same round would fail at its locks.
    flow.deploy(NAME, POOL, description=text, concurrency_limit=1, print_next_steps=False, ignore_warnings=True)
    return f"{flow.name}/{NAME}"


def serve_here(root: Path) -> None:
    """Serves both flows from this process until it is stopped."""
    flows: list[Any] = [Flow.from_source(str(root.resolve()), entrypoint) for entrypoint in FLOWS]
    serve(*(flow.to_deployment(SERVED, description=text) for flow, text in zip(flows, FLOWS.values(), strict=True)))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve_here(Path())
    else:
        print("\n".join(deploy(Path())))
