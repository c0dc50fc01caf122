"""Runs the rounds of params.yaml, then appends new ones that start from the champion.

The rounds of params.yaml run as one graph: a round is evaluated while the next one writes its prompts. An appended round
waits for the gate of the round before it, which may elect a new champion.
"""

from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal

from prefect import get_run_logger

from flows.connection import HereFlow
from flows.round import bring_up_to_date, run_round
from tasks.project import champion, graph
from tasks.project.edit import add_round
from tasks.project.params import load_params


@partial(HereFlow, name="campaign", flow_run_name="{rounds} rounds")
def run_campaign(
    rounds: int = 3,
    on_refusal: Literal["branch", "stop"] = "branch",
    concurrency: int = 2,
    retries: int = 1,
) -> list[str]:
    """Run rounds until there are `rounds` of them; append the missing ones to params.yaml.

    Args:
        rounds: Number of rounds in the campaign.
        on_refusal: When the gates refuse a round: `branch` continues from the champion, `stop` ends the campaign.
        concurrency: Number of stages that may run at the same time, each in its own process.
        retries: Number of retries of a stage whose engine could not answer or that was killed.

    Returns:
        The names of the rounds.
    """
    root = Path()
    names = graph.rounds(root)[:rounds]
    bring_up_to_date(names, concurrency, retries)
    while len(names) < rounds and (parent := champion.next_parent(root, load_params(root), stop=on_refusal == "stop")):
        names.append(append(root, parent))
        get_run_logger().info(f"{names[-1]} starts from {parent}")
        run_round(names[-1], concurrency, retries)
    return names


def append(root: Path, parent: str) -> str:
    """Appends a copy of the last round with another parent to params.yaml; returns its name."""
    known, names = load_params(root).blocks, graph.rounds(root)
    name = next(n for i in count(1) if (n := f"r{i}") not in known)
    add_round(root, name, parent, like=names[-1] if names else None)
    return name
