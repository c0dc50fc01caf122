"""Runs rounds one from the other: what params.yaml has as it is written, then new ones from the last promoted round.

A chain that params.yaml has already is one graph: a round is evaluated while the next one writes its prompts. A round
that is appended waits for the gate of the one before, because the gate's decision chooses its parent.
"""

from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal

from prefect import get_run_logger

from flows.connection import HereFlow
from flows.round import bring_up_to_date, run_round
from tasks import plan, store
from tasks.params import add_round, load_params


@partial(HereFlow, name="campaign", flow_run_name="{rounds} rounds")
def run_campaign(
    rounds: int = 3,
    on_refusal: Literal["branch", "stop"] = "branch",
    concurrency: int = 2,
    retries: int = 1,
) -> list[str]:
    """Run rounds until there are as many as wanted; append to params.yaml those that it lacks.

    Args:
        rounds: How many rounds the campaign shall have.
        on_refusal: After a round that its gate refused: branch off from the last promoted one, or stop.
        concurrency: How many stages may run at the same time; each is a process of its own.
        retries: How often a stage is tried again when its engine could not answer or it was killed.

    Returns:
        The names of the rounds.
    """
    root = Path()
    names = plan.rounds(root)[:rounds]
    bring_up_to_date(names, concurrency, retries)
    while len(names) < rounds and (parent := next_parent(root, on_refusal)):
        names.append(append(root, parent))
        get_run_logger().info(f"{names[-1]} starts from {parent}")
        run_round(names[-1], concurrency, retries)
    return names


def next_parent(root: Path, on_refusal: Literal["branch", "stop"]) -> str | None:
    """The round or base that the next round starts from; None where a refused round stops the campaign."""
    names = plan.rounds(root)
    if not names:
        return next(iter(load_params(root).blocks))
    if on_refusal == "stop" and not promoted(root, names[-1]):
        return None
    passed = [name for name in names if promoted(root, name)]
    return passed[-1] if passed else load_params(root).block(names[-1]).base


def promoted(root: Path, name: str) -> bool:
    """Whether a round's gate let it pass."""
    gate = store.manifests(root, name).get("gate")
    return gate is not None and gate.metrics.get("promoted") == 1


def append(root: Path, parent: str) -> str:
    """Appends a round like the last one to params.yaml, with the given parent; gives its name."""
    known, names = load_params(root).blocks, plan.rounds(root)
    name = next(n for i in count(1) if (n := f"r{i}") not in known)
    add_round(root, name, parent, [], like=names[-1] if names else None)
    return name
