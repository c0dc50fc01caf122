"""What a stage would have decided with another parameter: the filter and the pairings run again over a round's stored rows.

A filter that compares hidden states opens its model again, whose vectors are in the request cache; where it cannot, nothing
is tried. What is run is today's code: where that does not come to what the round has stored, nothing is concluded.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.core.plan import Plan
from tasks.core.plugin import load
from tasks.core.stage import Strategy, stages
from tasks.filter import NO_MODELS, better_first
from tasks.project.execute import _models as models_of

DIGITS = 6
"""Decimals of a proposed parameter."""
TRIES = 8
"""Most parameters that are changed one after the other."""


@dataclass(frozen=True)
class Change:
    """A value of a parameter with which a rule would not have objected."""

    parameter: str
    value: Any
    bound: str = ""
    """`or less` or `or more`: other values that would do."""
    now: Any = None

    @property
    def text(self) -> str:
        """As a recipe or `set` has it."""
        value = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        return f"{self.parameter}: {value}" + (f" {self.bound}" if self.bound else "")


@dataclass(frozen=True)
class Trial:
    """Changes that were tried, and what came of them."""

    changes: list[Change] = field(default_factory=list)
    kept: bool | None = None
    """None where nothing was tried."""
    reason: str = ""
    """Why nothing was tried, or the rule that no parameter overcomes."""


class Filter:
    """The filter of a round."""

    def __init__(self, root: Path, round: str, prompt_id: str) -> None:
        self.plan = stored_plan(root, round, "filter")
        [(self.member, values)] = self.plan.members.items()
        self.strategy = strategy_of("filter", self.member, values)
        self.tables = {name: store.read(root, round, name) for name in ("prompts", "responses", "judgments")}
        if self.strategy.per_prompt_only():
            self.tables = {name: of_prompt(rows, prompt_id) for name, rows in self.tables.items()}
        stage = stages()["filter"]
        self._models = models_of(root, stage, self.plan) if self.strategy.opened_models() else NO_MODELS

    def close(self) -> None:
        """Lets go of the models that it asked."""
        self._models.close()

    @property
    def place(self) -> str:
        """The dotted path of its parameters."""
        return f"filter.{self.member}"

    def decide(self, strategy: Strategy) -> pl.DataFrame:
        """The decisions of a strategy on the round's responses."""
        tables = {name: rows.lazy() for name, rows in self.tables.items()}
        return stages()["filter"](strategy, **tables, models=self._models).collect()

    def trial(self, decision: dict[str, Any]) -> Trial:
        """Changes parameters until the response of a recorded decision is kept."""
        try:
            again = self._row(self.strategy, decision["id"])
        except FlywheelError as error:  # of opening or asking its model
            change = self.known_change(decision)
            return Trial([change] if change else [], reason=f"not tried: {error}")
        if again["reason"] != decision["reason"]:
            return Trial(reason="not tried: today's code drops it for another reason than the round's did")
        changes: dict[str, Change] = {}
        strategy = self.strategy
        for _ in range(TRIES):
            change = self.change(strategy, again)
            if change is None or changes.get(change.parameter) == change:
                return Trial(list(changes.values()), False, again["reason"])
            name = change.parameter.rpartition(".")[2]
            changes[change.parameter] = change
            strategy = strategy.model_copy(update={name: change.value})
            again = self._row(strategy, decision["id"])
            if again["kept"]:
                return Trial(list(changes.values()), True)
        return Trial(list(changes.values()), False, again["reason"])

    def response(self, id: str) -> dict[str, Any]:
        """A row of `responses`."""
        return self.tables["responses"].row(by_predicate=pl.col("id") == id, named=True)

    def score(self, id: str, judge: str) -> float | None:
        """A judge's score of a response."""
        rows = self.tables["judgments"].filter(response_id=id, member=judge)["score"]
        return rows[0] if len(rows) else None

    def _row(self, strategy: Strategy, id: str) -> dict[str, Any]:
        return self.decide(strategy).row(by_predicate=pl.col("id") == id, named=True)

    def change(self, strategy: Any, decision: dict[str, Any]) -> Change | None:
        """What would take a rule's objection away; None where no parameter does."""
        reason, _, judge = (decision["reason"] or "").partition("/")
        found = getattr(self, f"_{reason}", lambda *_: None)(strategy, decision, judge)
        if found is None or not hasattr(strategy, found[0]):
            return None
        name, value, bound = found
        return Change(f"{self.place}.{name}", value, bound, getattr(strategy, name))

    def known_change(self, decision: dict[str, Any]) -> Change | None:
        """As `change`, of the round's own filter, where that asks no model."""
        return None if decision["reason"] == "near" else self.change(self.strategy, decision)

    # One method for each rule: (parameter, value, bound)

    def _short(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str]:
        return "min_tokens", self.response(decision["id"])["tokens"], "or less"

    def _long(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str]:
        return "max_tokens", self.response(decision["id"])["tokens"], "or more"

    def _format(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        return ("complete_only", False, "") if self.response(decision["id"])["answer"] is not None else None

    def _judge(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        score = self.score(decision["id"], judge)
        return None if score is None else ("require", strategy.require | {judge: floor(score)}, "or less")

    def _no_judge(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        rest = {name: score for name, score in strategy.require.items() if name != judge}
        return None if rest == strategy.require else ("require", rest, "")

    def _score(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        if hasattr(strategy, "min_reward"):
            return "min_reward", floor(decision["score"]), "or less"
        ids = self._candidates(strategy.model_copy(update={"fraction": 1.0}))["id"].to_list()
        if decision["id"] not in ids:  # by today's code
            return None
        share = (ids.index(decision["id"]) + 1) / len(ids)
        return "fraction", min(1.0, math.ceil(share * 10**DIGITS) / 10**DIGITS), "or more"

    def _candidates(self, strategy: Any) -> pl.DataFrame:
        """What a strategy that keeps all candidates keeps, better ones first."""
        from tasks.filter import FilterCase

        case = FilterCase(**{name: rows.lazy() for name, rows in self.tables.items()})
        return better_first(strategy(case).filter(pl.col("reason").is_null())).collect()

    def _rank(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str]:
        return "per_prompt", strategy.per_prompt + int(decision["margin"]), "or more"

    def _level(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        levels = self.tables["prompts"].select("level", prompt_id="id")
        rows = self._candidates(strategy.model_copy(update={"per_level": None}))
        rows = rows.join(levels, on="prompt_id", how="left", maintain_order="left")
        level = rows.filter(id=decision["id"])["level"]
        if level.is_empty():  # by today's code
            return None
        ids = rows.filter(pl.col("level").eq_missing(level[0]))["id"].to_list()
        return "per_level", ids.index(decision["id"]) + 1, "or more"

    def _process(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str]:
        return "per_prompt", strategy.per_prompt + 1, "or more"

    def _no_correct(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        best = self.decide(strategy).filter(prompt_id=decision["prompt_id"], reason="no_correct")["score"].max()
        return None if best is None else ("min_reward", floor(best), "or less")

    def _novelty(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str]:
        return "min_score", floor(strategy.min_score - decision["margin"]), "or less"

    def _near(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        """The candidates are chosen in one order, whatever their number: the first number with which the row is among them is
        found by halving.
        """
        if not self._models.names:
            return None
        rows = self.decide(strategy)
        least = int(rows["kept"].sum())
        most = least + len(rows.filter(reason="near"))
        count = bisect_left(range(most), True, least + 1, key=lambda n: self._is_chosen(strategy, n, decision["id"]))
        if strategy.count is not None:
            return "count", count, "or more"
        return "fraction", min(1.0, math.ceil(count / most * 10**DIGITS) / 10**DIGITS), "or more"

    def _is_chosen(self, strategy: Any, count: int, id: str) -> bool:
        return bool(self._row(strategy.model_copy(update={"count": count}), id)["kept"])

    def _duplicate(self, strategy: Any, decision: dict[str, Any], judge: str) -> tuple[str, Any, str] | None:
        own = self.response(decision["id"])["response"]
        same = self.tables["responses"].filter(prompt_id=decision["prompt_id"], response=own)
        return ("distinct", "text", "") if strategy.distinct == "path" and len(same) == 1 else None


class Pairings:
    """The pairings of a round, on one prompt."""

    def __init__(self, root: Path, round: str, prompt_id: str) -> None:
        self.plan = stored_plan(root, round, "pair")
        self.members = {n: strategy_of("pair", n, values) for n, values in self.plan.members.items()}
        names = ("prompts", "responses", "judgments", "filtered", "refinements")
        self.tables = {name: store.read(root, round, name) for name in names}
        if all(member.per_prompt_only() for member in self.members.values()):
            self.tables = {name: of_prompt(rows, prompt_id) for name, rows in self.tables.items()}
        anchor = self.plan.ancestors.get("anchor")
        self.anchor = {
            f"anchor_{t}": store.read(root, anchor, t).lazy() if anchor and f"anchor_{t}" in self.plan.reads else None
            for t in ("responses", "judgments")
        }
        self.prompt_id = prompt_id

    def candidates(self, member: str, min_margin: float) -> pl.DataFrame:
        """The pairs that a member makes of the prompt with another `min_margin`."""
        relaxed = self.members[member].model_copy(update={"min_margin": min_margin})
        tables = {name: rows.lazy() for name, rows in self.tables.items()}
        pairs = stages()["pair"](members={member: relaxed}, **tables, **self.anchor)
        return pairs.filter(prompt_id=self.prompt_id).collect()

    def nearest(self, response_id: str | None) -> Iterator[tuple[str, float, Change]]:
        """Members that would have paired the prompt, or this response of it, were `min_margin` smaller: with the gap."""
        for name, strategy in self.members.items():
            rows = self.candidates(name, 1e-12)
            if response_id is not None:
                rows = rows.filter((pl.col("chosen_id") == response_id) | (pl.col("rejected_id") == response_id))
            gap = (rows["chosen_score"] - rows["rejected_score"]).max()
            if gap is not None and gap < strategy.min_margin:  # type: ignore[attr-defined,operator]
                now = strategy.min_margin  # type: ignore[attr-defined]
                yield name, float(gap), Change(f"pair.{name}.min_margin", floor(float(gap)), "or less", now)  # type: ignore[arg-type]


def stored_plan(root: Path, round: str, stage: str) -> Plan:
    """The plan by which a round's stage was run.

    Raises:
        FlywheelError: when it has not run.
    """
    manifest = store.manifests(root, round).get(stage)
    if manifest is None:
        raise FlywheelError(f"{stage}@{round} has not run yet; `flywheel run {round}` runs it")
    return manifest.plan


def strategy_of(stage: str, member: str, values: dict[str, Any]) -> Strategy:
    """A strategy with its parameters, as a plan has them."""
    parameters = {name: value for name, value in values.items() if name != "strategy"}
    return load(stage, values.get("strategy", member))(**parameters)


def of_prompt(rows: pl.DataFrame, prompt_id: str) -> pl.DataFrame:
    """The rows that are about one prompt."""
    return rows.filter(pl.col("prompt_id" if "prompt_id" in rows.columns else "id") == prompt_id)


def floor(value: float) -> float:
    """A number with few decimals that is not above it."""
    return math.floor(value * 10**DIGITS) / 10**DIGITS
