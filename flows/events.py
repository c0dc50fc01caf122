"""Events for automations, on the resource `flywheel.round.<name>` or `flywheel.campaign`.

    flywheel.promoted   the gates promoted a round, or a person did     labels: flywheel.round, .base, .champion, .by
    flywheel.refused    the gates held it back, or a person refused it  the same
    flywheel.budget     a campaign has spent its budget and stopped     payload: reason, rounds

`flywheel.champion` is `true` where the round is the champion of its base now, `.by` is `gates` or a person's name. Such an
event is sent once for each gate that ran, and each answer of a person. Prefect adds the flow run.
"""

from pathlib import Path

from prefect.events import emit_event

from tasks.core import store
from tasks.project.champion import answer_about, elections
from tasks.project.params import load_params
from tasks.views.report import outcome

PROMOTED, REFUSED, BUDGET = "flywheel.promoted", "flywheel.refused", "flywheel.budget"


def gated(root: Path, name: str) -> None:
    """Tells what the gates have decided about a round."""
    promoted = store.manifests(root, name)["gate"].metrics.get("promoted") == 1
    _round(root, name, PROMOTED if promoted else REFUSED, "gates")


def decided(root: Path, name: str) -> None:
    """Tells what a person has decided about a round."""
    if answer := answer_about(root, name):
        _round(root, name, PROMOTED if answer.answer == "promote" else REFUSED, answer.by, answer.note)


def budget_reached(names: list[str], reason: str) -> None:
    """Tells that a campaign has stopped for its budget."""
    resource = {"prefect.resource.id": "flywheel.campaign", "prefect.resource.name": "campaign"}
    emit_event(BUDGET, resource=resource, payload={"reason": reason, "rounds": names})


def _round(root: Path, name: str, event: str, by: str, note: str = "") -> None:
    pipeline = load_params(root)
    block = pipeline.block(name)
    election = elections(root, pipeline).get(block.base)
    resource = {
        "prefect.resource.id": f"flywheel.round.{name}",
        "prefect.resource.name": name,
        "flywheel.round": name,
        "flywheel.base": block.base,
        "flywheel.champion": str(bool(election and election.champion == name)).lower(),
        "flywheel.by": by,
    }
    emit_event(event, resource=resource, payload={"outcome": outcome(root, pipeline, block), "note": note})


__all__ = ["BUDGET", "PROMOTED", "REFUSED", "budget_reached", "decided", "gated"]
