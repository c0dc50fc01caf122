"""What `why-not` says of a row: its rules in words, an answer, and how it is printed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tasks.views._counterfactual import Change, Trial
from tasks.views._lineage import Key

NO_PARAMETER = "no parameter would have kept it"
FILTERS = {
    "error": "the generation failed",
    "format": "it has no answer that the domain can read, or was cut off",
    "short": "it has too few tokens",
    "long": "it has too many tokens",
    "unjudged": "it has no reward: the reward's judge has no score for it",
    "judge": "a judge that it must also pass scored it too low",
    "no_judge": "a judge that it must also pass has no score for it",
    "score": "its reward is too low",
    "duplicate": "a better response to the same prompt says the same",
    "rank": "enough better responses to its prompt were kept",
    "level": "enough better responses of its level were kept",
    "process": "enough responses to its prompt were kept that the process score puts before it",
    "no_correct": "no response to its prompt is correct",
    "novelty": "its banded score, of majority and novelty, is too low",
    "near": "it is too near to responses that were kept",
    "no_vector": "the model gave no hidden states for it",
}
"""Rule of a filter → what it objects to."""
PROMPTS = {
    "failed": "the engine gave nothing",
    "malformed": "the domain cannot read it as a problem",
    "duplicate": "it is a problem in use, or near one",
    "contaminated": "it is, or is near, a problem of the exam or an ill-posed one, which are kept out of training whatever the parameters",
}
"""Reason for which a prompt is rejected → what it means."""


@dataclass(frozen=True)
class Answer:
    """What became of a row at one stage."""

    key: Key
    kept: bool
    stage: str
    rule: str
    """The rule that dropped it; what became of it where it was kept."""
    facts: dict[str, str] = field(default_factory=dict)
    """Value, threshold, margin, and what else says why."""
    parameters: list[Change] = field(default_factory=list)
    """Values that would have kept it."""
    note: str = ""
    """Whether these were tried."""

    @property
    def changes(self) -> list[str]:
        """The parameters as a recipe or `set` has them."""
        return [change.text for change in self.parameters]

    def as_json(self) -> dict[str, Any]:
        """Everything that is known, as plain values."""
        row = dict(zip(("table", "round", "id"), self.key, strict=True))
        return row | {"kept": self.kept, "stage": self.stage, "rule": self.rule, "facts": self.facts} | {
            "changes": [asdict(change) for change in self.parameters], "note": self.note
        }  # fmt: skip


def tried(trial: Trial) -> str:
    """What came of the changes that were tried."""
    if trial.kept is None:
        return trial.reason
    if trial.kept:
        return "tried: it is kept then"
    return f"{'then ' if trial.changes else ''}{NO_PARAMETER}: rule {trial.reason}"


def number(value: float | None) -> str:
    """A number of few digits."""
    return "none" if value is None else f"{value:.6g}"


def lines(answer: Answer) -> Iterator[RenderableType]:
    """An answer as it is printed."""
    table, round, id = answer.key
    head = Text.assemble((table, "bold cyan"), " ", (round, "bold"), " ", (id, "yellow"), "  ")
    if answer.kept:
        yield head.append(answer.rule, "green")
    else:
        what = "in no pair" if answer.stage == "pair" else f"dropped by {answer.stage}"
        yield head.append(what, "bold red").append("" if answer.rule == "no pair" else f": {answer.rule}")
    for name, value in answer.facts.items():
        yield _indented(Text(name, style="dim"), Text(value))
    if answer.changes:
        yield _indented(Text("kept with", style="dim"), Text(", ".join(answer.changes), style="bold"))
    if answer.note:
        yield _indented(Text(), Text(answer.note, style="italic"))


def _indented(name: Text, value: Text) -> Table:
    """A name and a value that is wrapped beside it."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=14)
    grid.add_column(overflow="fold")
    grid.add_row(Text("  ") + name, value)
    return grid
