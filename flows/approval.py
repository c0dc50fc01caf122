"""A person between the exam and the promotion: `approve: true` of a campaign.

The flow run is suspended (its process ends, nothing is held) until somebody resumes it in the UI, where the form shows the
exam and asks for promote or refuse, a name and a note. The answer is kept in `data/decisions/answers.yaml`, to be
committed, and obeyed: a promoted round is in force as by `flywheel promote`, a refused one is never champion.

Asked about is what the gates promoted, once for each model: a round that they held back is not promoted anyway.
"""

from pathlib import Path
from typing import Literal

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows import events
from flows.publish import publish
from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.project import champion
from tasks.views import boards


class Approval(RunInput):
    """The form of a suspended campaign."""

    answer: Literal["promote", "refuse"] = Field("promote", description="What becomes of the round.")
    by: str = Field(min_length=1, description="Your name, which is kept with the answer.")
    note: str = Field("", description="Why, in your words; kept with the answer.")


def check_possible() -> None:
    """Only a deployed flow can be suspended, for somebody must start it again.

    Raises:
        FlywheelError: in a flow that was called from Python or the command line.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        raise FlywheelError(
            "approve=True: a run that waits for a person must be one of a deployment, which Prefect's worker resumes; "
            "`flywheel up`, then `prefect deployment run campaign/campaign --param approve=true`"
        )


def ask(root: Path, name: str) -> None:
    """Suspends the flow run until a person has decided about a round, keeps the answer, and publishes what follows from it.
    Returns at once where the gates held the round back, or its model was decided about before.

    Raises:
        FlywheelError: when the answer names nobody.
    """
    gate = store.manifests(root, name).get("gate")
    if not gate or gate.metrics.get("promoted") != 1:
        get_run_logger().info(f"{name} was held back by its gates: nobody is asked")
    elif champion.answer_about(root, name) is None:
        form = Approval.with_initial_data(description=boards.exam(root, name))
        given = suspend_flow_run(wait_for_input=form, key=f"{name}-{gate.outputs['decisions'].digest[:12]}")
        kept = champion.keep_answer(root, name, given.answer, given.by, given.note)
        get_run_logger().info(f"{kept.by}: {kept.answer} {name}. Commit {champion.ANSWERS}, which keeps it")
        events.decided(root, name)
        publish(root, [name])
