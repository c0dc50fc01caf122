"""The limit `gpu`: how many stages may hold a model at the same time, over all flow runs of a Prefect server.

Stages that load weights, or train, are task runs with the tag `gpu`. `flywheel up` and `flows.deploy` make the limit where
there is none: a slot for each GPU that this machine has, or as many as a flow runs stages at once where it has none. It can
be changed in the UI (Concurrency, Task Run) and stays as it is then.
"""

from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from tasks.core import devices
from tasks.core.errors import FlywheelError
from tasks.core.plan import Plan
from tasks.core.plugin import load

TAG = "gpu"
WITHOUT_GPU = 2


def tags(root: Path, address: str) -> set[str]:
    """The tags of a stage's task run."""
    return {TAG} if holds_model(root, address) else set()


def holds_model(root: Path, address: str) -> bool:
    """Whether a stage trains, or runs a model in its own process rather than at a server."""
    group, _, name = address.partition("@")
    try:
        plan = Plan.read(root, name, group.removesuffix("-base"))
    except FlywheelError:  # the stage says so
        return False
    engines = [plan.engine, *(model["engine"] for model in plan.models.values())]
    return plan.stage == "train" or any(load("engines", e["strategy"]).loads for e in engines if e)


def make_limit() -> None:
    """Makes the limit, unless there is one."""
    with get_client(sync_client=True) as client:
        try:
            client.read_concurrency_limit_by_tag(TAG)
        except ObjectNotFound:
            client.create_concurrency_limit(TAG, len(devices.devices()) or WITHOUT_GPU)
