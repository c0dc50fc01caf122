"""Gate: whether a round's model is better than its parent's, and whether anything was lost on the way.

A gate says yes or no and why; it never fails, and nothing is undone by it. What follows from it (the alias of the model
registry, the parent of the next round) is for others to do. Where the evidence that a gate asks for is missing, a
model is not promoted.

What follows from gates is a choice, so they look at the validation set: the held-out set, on which a champion is
reported, has then not chosen it.

Two decisions are the stage's own, whatever gates there are: `trained` refuses a round that answered with its parent's
weights, for a second draw from one model is now and then better by chance; `errors` refuses one too many of whose
answers have no score, because the engine failed, or because nobody could check or grade what it gave. Scores are missing
on hard problems more often than on easy ones, and a model can learn to write what cannot be graded. So an answer of the
round without a score counts as wrong, and one of its parent or base is left out. A problem of which the parent has no
score at all says nothing of either, and is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import polars as pl
from pydantic import Field

from tasks.core import champion, frames, tables
from tasks.core.errors import ParamsError, suggest
from tasks.core.plugin import Params
from tasks.core.stage import Result, Strategy, stage

Split = Literal["validation", "heldout"]
MODES = ("greedy", "sampled")
"""Of `evals`: answers to the problem itself, not refinements."""
TOLERANCE = 1e-9
"""For falls of exactly what is allowed, which floats miss."""
GRADER = "nothing here can be checked without a grader: set evaluate.answers.examiner of the base"


@dataclass(frozen=True)
class GateCase:
    """What gates look at: this round's evaluation, its parent's and the base's, and both rounds' pairs."""

    evals: pl.LazyFrame
    measures: pl.LazyFrame
    pairs: pl.LazyFrame
    filtered: pl.LazyFrame
    parent_evals: pl.LazyFrame
    parent_measures: pl.LazyFrame
    parent_pairs: pl.LazyFrame
    """Empty where the parent is a base."""
    base_evals: pl.LazyFrame
    base_measures: pl.LazyFrame
    split: Split = "validation"
    member: str = "answers"
    """The member of the exam whose answers these are."""

    def unanswered(self) -> str | None:
        """Who answered no problem of the split, and what to do; None where all did."""
        evals = {"this round": self.evals, "its parent": self.parent_evals, "the base": self.base_evals}
        without = [who for who, rows in evals.items() if answers(rows, self.split).limit(1).collect().is_empty()]
        if not without:
            return None
        return (
            f"evaluate.{self.member} has no answer to a {self.split} problem by {', '.join(without)}: name {self.split} in "
            f"evaluate.{self.member}.splits of the base, or another set in its gate.split, or the member that answers in "
            "its gate.member"
        )


@dataclass(frozen=True)
class Decision:
    """What one gate says: `value` is what it looked at, `threshold` what that had to reach."""

    gate: str
    passed: bool
    reason: str
    value: float | None = None
    threshold: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Gating(Strategy):
    """A gate: its decisions are named as its file, or begin with that name and a slash."""

    reserved_names: ClassVar[frozenset[str]] = frozenset({"all", "errors", "trained"})
    """Decisions of the stage itself, which no member may be named as."""

    def __call__(self, case: GateCase) -> list[Decision]:
        """One decision or several. A round is promoted when all decisions of all gates pass."""
        raise NotImplementedError


class GateOptions(Params):
    """What holds for all gates."""

    split: Split = "validation"
    """The frozen set whose answers are looked at. Held-out ones choose the lineage that is then reported on them."""
    member: str = "answers"
    """The member of `evaluate` whose answers and measures are looked at, here and by the champion's test."""
    max_error_share: float = Field(0.05, ge=0, le=1)
    """Largest share of the round's answers that may have no score: they failed in the engine, or could not be graded
    though the parent's to the same problem could."""


@stage(outputs=[tables.decisions])
def gate(
    members: dict[str, Gating],
    options: GateOptions,
    evals: pl.LazyFrame,
    measures: pl.LazyFrame,
    pairs: pl.LazyFrame,
    filtered: pl.LazyFrame,
    parent_evals: pl.LazyFrame,
    parent_measures: pl.LazyFrame,
    parent_pairs: pl.LazyFrame,
    base_evals: pl.LazyFrame,
    base_measures: pl.LazyFrame,
) -> Result:
    """Asks every gate; the row `all` is the conjunction of their decisions and the stage's own.

    Raises:
        ParamsError: when a member is named as a decision of the stage's own.
    """
    if clashes := sorted(members.keys() & Gating.reserved_names):
        raise ParamsError(f"gate.{clashes[0]} is named as a decision of the stage's own; give the member another name")
    member, split = options.member, options.split
    ours, parents, bases = (rows.filter(member=member) for rows in (evals, parent_evals, base_evals))
    now, before, first = (named_after(rows, member) for rows in (measures, parent_measures, base_measures))
    case = GateCase(ours, now, pairs, filtered, parents, before, parent_pairs, bases, first, split, member)
    decisions = [trained(case), errors(case, options.max_error_share), *decide(members, case)]
    rows = [{c: getattr(d, c) for c in tables.decisions.schema.names} for d in [*decisions, together(decisions)]]
    metrics = {name: value for d in decisions for name, value in d.metrics.items()}
    return Result({"decisions": frames.frame(tables.decisions, rows).sort("gate")}, metrics)


def decide(members: Mapping[str, Gating], case: GateCase) -> list[Decision]:
    """The decisions of all gates, by member; refusals where there are no answers to look at."""
    if unanswered := case.unanswered():
        return [Decision(name, False, unanswered) for name in sorted(members)]
    return [under(name, members[name], d) for name in sorted(members) for d in members[name](case)]


def under(member: str, gate: Gating, decision: Decision) -> Decision:
    """A member that is not named as its strategy has its own name in its decisions and behind its metrics."""
    strategy = gate.strategy_name()
    if member == strategy:
        return decision
    metrics = {f"{name}/{member}": value for name, value in decision.metrics.items()}
    return replace(decision, gate=member + decision.gate.removeprefix(strategy), metrics=metrics)


def together(decisions: Sequence[Decision]) -> Decision:
    """The decision on the round: promoted when none refuses."""
    refused = [d.gate for d in decisions if not d.passed]
    reason = f"refused by {', '.join(refused)}" if refused else "every gate passed"
    passed = float(len(decisions) - len(refused))
    return Decision("all", not refused, reason, passed, float(len(decisions)))


# The stage's own decisions


def trained(case: GateCase) -> Decision:
    """Whether other weights answered than the parent's. Where the digests are not known, it passes."""
    ours, parents = weights(case.evals), weights(case.parent_evals)
    if ours and ours == parents:
        return Decision("trained", False, f"same weights as its parent ({', '.join(sorted(ours))})")
    return Decision("trained", True, "other weights than its parent" if ours else "the weights' digest is not known")


def weights(evals: pl.LazyFrame) -> set[str]:
    """Digests of the weights that answered."""
    return set(evals.filter(pl.col("mode").is_in(MODES)).select("model").drop_nulls().unique().collect()["model"])


def errors(case: GateCase, max_share: float) -> Decision:
    """Whether few enough of the round's answers to the split have no score, where the parent has one to that problem."""
    scored = answers(case.parent_evals, case.split).filter(score().is_not_null()).select("item").unique()
    rows = answers(case.evals, case.split).join(scored.with_columns(gradable=True), on="item", how="left")
    ungraded = ~failed() & score().is_null() & pl.col("gradable").fill_null(False)
    lost = rows.select(failed=failed(), ungraded=ungraded).collect()
    if lost.is_empty():
        return Decision(
            "errors", False, f"evaluate.{case.member} has no answer to a {case.split} problem by this round"
        )
    failures, unread = int(lost["failed"].sum()), int(lost["ungraded"].sum())
    share = (failures + unread) / len(lost)
    reason = f"of {len(lost)} answers {failures} failed in the engine and {unread} could not be graded; allowed {max_share:.0%}"
    return Decision("errors", share <= max_share, reason, share, max_share)


# What gates look at


def answers(evals: pl.LazyFrame, split: str) -> pl.LazyFrame:
    """The greedy and sampled answers to a split."""
    return evals.filter((pl.col("split") == split) & pl.col("mode").is_in(MODES))


def failed() -> pl.Expr:
    """Whether the engine gave no answer."""
    return pl.col("response").is_null() & pl.col("error").is_not_null()


def score() -> pl.Expr:
    """What an answer is worth, in [0, 1]: its score, or 1 and 0 for right and wrong where it has none. Null where it
    could neither be checked nor graded, and where the engine gave none.
    """
    return pl.when(~failed()).then(pl.coalesce("score", pl.col("correct").cast(pl.Float64)))


def per_item(evals: pl.LazyFrame, mode: str, split: str) -> pl.DataFrame:
    """item, level, rate (mean score of its answers, null where none has one), unscored (share of its answers without a
    score): of each item of a split, by item. As `Candidate.rates` of the champion.
    """
    rows = evals.filter(split=split, mode=mode).with_columns(score=score()).sort("id")
    unscored = pl.col("score").is_null().mean()
    rates = rows.group_by("item").agg(pl.col("level").first(), rate=pl.mean("score"), unscored=unscored)
    return rates.sort("item").collect()


def paired(case: GateCase, mode: str) -> pl.DataFrame:
    """item, parent, child: rates of the items of which the parent has a score, by item."""
    return champion.paired(per_item(case.parent_evals, mode, case.split), per_item(case.evals, mode, case.split))


def named_after(measures: pl.LazyFrame, member: str) -> pl.LazyFrame:
    """The measures by the names that they have where the member of the exam is named as its strategy."""
    prefix = f"{member}_"
    own = measures.filter(pl.col("name").str.starts_with(prefix))
    renamed = own.with_columns(pl.col("name").str.strip_prefix(prefix))
    return pl.concat([renamed, measures.join(renamed, on=["name", "level"], how="anti", nulls_equal=True)])


def overall(measures: pl.LazyFrame, split: str) -> dict[str, float]:
    """The measures over all levels, by name: those of a split's answers, and those that are of no split's answers, such
    as a judge's on the gold set.
    """
    rows = measures.filter(pl.col("level").is_null()).drop_nulls("value").select("name", "value").sort("name").collect()
    values: dict[str, float] = dict(rows.rows())
    validation = {n.removeprefix("validation_"): v for n, v in values.items() if n.startswith("validation_")}
    rest = {n: v for n, v in values.items() if not n.startswith("validation_")}
    return rest | validation if split == "validation" else rest


def unmeasured(
    gate: str,
    measure: str,
    ours: Mapping[str, float],
    reference: Mapping[str, float],
    key: str = "",
    ancestor: str = "parent",
) -> Decision | None:
    """The decision where a measure cannot be compared with an ancestor's; None where it can. A measure that only the
    ancestor lacks passes. A measure that both lack is refused if the parameter `key` names it.
    """
    if measure in ours and measure in reference:
        return None
    if measure in ours:
        return Decision(gate, True, f"the {ancestor} was not measured by {measure}")
    if measure in reference:
        return Decision(gate, False, f"not measured by {measure}; the {ancestor}'s is {reference[measure]:.3f}")
    if not key:
        return Decision(gate, True, f"neither this round nor the {ancestor} was measured by {measure}")
    nearest = suggest(measure, {*ours, *reference})
    return Decision(
        gate, False, f"neither this round nor the {ancestor} was measured by {measure!r} of {key}; {nearest}"
    )
