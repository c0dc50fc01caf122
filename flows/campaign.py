"""Runs the rounds of params.yaml, then appends new ones that start from the champion.

The rounds of params.yaml run as one graph: a round is evaluated while the next one writes its prompts. An appended round
waits for the gate of the round before it, which may elect a new champion.

With `approve`, a person decides about each round that the gates promote (`flows.approval`), so rounds run one after the
other. The flow run is suspended meanwhile, its process ends, and a new one begins here when it is resumed. What a flow run
is up to and has spent is therefore in `.flywheel/campaigns/<flow run>.json`: a resumed or retried run appends no further
round. `campaign.budget` of params.yaml is looked at after each stage.
"""

from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import BaseModel, Field

from flows import approval, events
from flows.choices import SAME, Recipe
from flows.connection import HereFlow
from flows.round import bring_up_to_date
from tasks.project import budget, champion, graph, recipes
from tasks.project.edit import STATE, add_round
from tasks.project.params import load_params
from tasks.project.prompt_files import check_rounds

BUDGET_REACHED = "Budget reached"
"""Name of the state in which a campaign ends that has spent its budget."""


class Campaign(BaseModel):
    """What a flow run of the campaign is up to, kept for the process that resumes it."""

    rounds: int
    """Number of rounds at its end."""
    ran: list[str] = []
    """Addresses of the stages that it has run."""

    def spent(self, address: str) -> str | None:
        """Counts a stage that ran; returns why no other one may start, or None."""
        self.ran.append(address)
        self.keep()
        return self.over_budget

    @property
    def over_budget(self) -> str | None:
        """A sentence where the budget is reached."""
        return budget.reached(Path(), self.ran)

    def keep(self) -> None:
        """Writes it to its file."""
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(self.model_dump_json())
        new.replace(path)


def _file() -> Path:
    return Path(STATE) / "campaigns" / f"{flow_run.id}.json"


def _title() -> str:
    values = flow_run.parameters
    more = values.get("more", 0)
    return f"{more} more" if more else f"{values.get('rounds', 3)} rounds"


@partial(HereFlow, name="campaign", flow_run_name=_title)
def run_campaign(
    rounds: Annotated[int, Field(ge=1)] = 3,
    more: Annotated[int, Field(ge=0)] = 0,
    recipe: Recipe = SAME,
    on_refusal: Literal["branch", "stop"] = "branch",
    approve: bool = False,
    concurrency: Annotated[int, Field(ge=1)] = 2,
    retries: Annotated[int, Field(ge=0)] = 1,
) -> Any:
    """Run rounds until there are `rounds` of them, or `more` than now; append the missing ones to params.yaml.

    Args:
        rounds: Number of rounds in the campaign. Those that params.yaml lacks are appended to it, each from the champion.
        more: Number of rounds to append to those of params.yaml, whatever `rounds` says; a nightly schedule has 1 here.
        recipe: How the appended rounds are made.
        on_refusal: When the gates or a person refuse a round: `branch` continues from the champion, `stop` ends the campaign.
        approve: Suspend the run before a round is promoted, until a person has looked at its exam and decided.
        concurrency: Number of stages that may run at the same time, each in its own process.
        retries: Number of retries of a stage whose engine could not answer; one that was killed is tried once more.

    Returns:
        The names of the rounds, as the data of a state named `Budget reached` where the campaign ended for that.
    """
    root = Path()
    if recipe != SAME:
        recipes.read(root, recipe)
    if approve:
        approval.check_possible()
    campaign = _begin(root, rounds, more)
    names = graph.rounds(root)[: campaign.rounds]
    check_rounds(root, names)
    stop = None
    for some in [[name] for name in names] if approve else [names]:
        stop = stop or _run(root, some, campaign, approve, concurrency, retries)
    while not stop and len(names) < campaign.rounds:
        parent = champion.next_parent(root, load_params(root), stop=on_refusal == "stop")
        if parent is None:
            get_run_logger().info(f"{names[-1]} was refused, so the campaign stops: on_refusal is {on_refusal}")
            break
        names.append(append(root, parent, None if recipe == SAME else recipe))
        get_run_logger().info(f"{names[-1]} starts from {parent}")
        stop = _run(root, names[-1:], campaign, approve, concurrency, retries)
    _deploy_again()
    return Completed(name=BUDGET_REACHED, message=stop, data=names) if stop else names


def _begin(root: Path, rounds: int, more: int) -> Campaign:
    """What this flow run is up to: as it began, where it was suspended or is tried again."""
    if _file().is_file():
        return Campaign.model_validate_json(_file().read_text())
    campaign = Campaign(rounds=len(graph.rounds(root)) + more if more else rounds)
    campaign.keep()
    return campaign


def _run(root: Path, names: list[str], campaign: Campaign, approve: bool, concurrency: int, retries: int) -> str | None:
    """Brings rounds up to date, and asks about them; returns why the campaign stops here, or None."""
    bring_up_to_date(names, concurrency, retries, spent=campaign.spent, hold=approve)
    if approve:
        for name in names:
            if f"gate@{name}" in campaign.ran:
                approval.ask(root, name)
    reason = campaign.over_budget if graph.stale(root, *names) or len(graph.rounds(root)) < campaign.rounds else None
    if reason:
        get_run_logger().warning(reason)
        print(reason)
        events.budget_reached(names, reason)
    return reason


def append(root: Path, parent: str, recipe: str | None = None) -> str:
    """Appends a copy of the last round with another parent to params.yaml, or a round of a recipe; returns its name."""
    known, names = load_params(root).blocks, graph.rounds(root)
    name = next(n for i in count(1) if (n := f"r{i}") not in known)
    add_round(root, name, parent, recipe=recipe, like=names[-1] if names and not recipe else None)
    return name


def _deploy_again() -> None:
    """Brings the drop-downs of a deployed campaign up to date with the rounds that it appended."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return
    from flows.deploy import refresh

    try:
        refresh(Path())
    except Exception as error:  # nothing but a list of names is old
        get_run_logger().warning(f"the drop-downs of the deployments do not show new rounds yet: {error}")
