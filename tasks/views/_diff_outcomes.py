"""What differs in the outcome of two rounds: majority answers and verdicts that flipped, pairs whose sides are swapped, items of
the exam that were won and lost.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from tasks.core import champion
from tasks.evaluate._measures import difference
from tasks.gate import MODES, per_item, score
from tasks.gate.improves import mcnemar
from tasks.views._diff_tables import Database, Example


@dataclass(frozen=True)
class MajorityFlip:
    """A prompt whose most frequent answer is another; with the share of the prompt's votes that it has."""

    prompt_id: str
    problem: str | None
    old: str
    old_share: float
    new: str
    new_share: float


@dataclass(frozen=True)
class Majorities:
    """Prompts that both rounds answered with a majority: one answer is more frequent than every other. A tie is none."""

    prompts: int
    flipped: int
    examples: list[MajorityFlip] = field(default_factory=list)


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of a judge on answers that both rounds have in one place; the texts may differ."""

    judge: str
    both: int
    """Places with a verdict on both sides."""
    to_pass: int
    to_fail: int
    same_text: int
    """Flips where the judged text is the same: the judge changed its mind."""
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Swaps:
    """Pairs of the same two texts of which the chosen one is the other's rejected one."""

    both: int
    swapped: int
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """A problem of the exam that was won or lost: its mean score, and an answer of each round."""

    item: str
    level: int | None
    old: float
    new: float
    problem: str | None = None
    old_response: str | None = None
    new_response: str | None = None


@dataclass(frozen=True)
class Exam:
    """The items that both rounds answered, paired: those won and lost, and the mean change with a 95 % interval."""

    member: str
    split: str
    mode: str
    items: int
    won: int
    lost: int
    old: float
    new: float
    change: float
    low: float | None
    high: float | None
    p: float
    """Two-sided."""
    test: str
    examples: list[Item] = field(default_factory=list)


# Majorities

MAJORITY = """
    select prompt_id, arg_max(answer, votes) as answer, max(votes) / sum(votes) as share
    from (select prompt_id, answer, count(*) as votes from {side}_responses
          where answer is not null and error is null group by all)
    group by prompt_id having len(max(votes, 2)) = 1 or max(votes, 2)[1] > max(votes, 2)[2]
"""


def majorities(db: Database, examples: int) -> Majorities | None:
    """Majority answers that flipped; None where not both rounds have responses, or they are the same."""
    if not db.has("responses") or db.is_equal("responses"):
        return None
    db.load("responses")
    db.con.execute(f"""
        create or replace table work.majorities as
        select prompt_id, o.answer as old, o.share as old_share, n.answer as new, n.share as new_share
        from ({MAJORITY.format(side="old")}) o join ({MAJORITY.format(side="new")}) n using (prompt_id)
    """)
    [(prompts, flipped)] = db.con.execute(
        "select count(*), count(*) filter (old <> new) from work.majorities"
    ).fetchall()
    worst = db.rows(f"""
        from work.majorities where old <> new order by least(old_share, new_share) desc, prompt_id limit {examples}
    """)
    problems = _problems(db, [row["prompt_id"] for row in worst])
    return Majorities(prompts, flipped, [MajorityFlip(**row, problem=problems.get(row["prompt_id"])) for row in worst])


def _problems(db: Database, ids: Sequence[str]) -> dict[str, str]:
    """The problems of prompts, by id."""
    if not ids or not db.has("prompts"):
        return {}
    db.load("prompts")
    return dict(
        db.con.execute("select id, problem from new_prompts where list_contains(?, id)", [list(ids)]).fetchall()
    )


# Verdicts and pairs


def verdicts(db: Database, examples: int) -> list[Verdicts]:
    """Verdicts that flipped, by judge; the judge that flipped most first."""
    if not db.has("judgments") or db.is_equal("judgments"):
        return []
    db.match("judgments")
    split = [f"split_part(reason_{side}, ': ', -1)" for side in ("old", "new")]
    rows = db.con.execute(f"""
        select substr(reason_new, 1, len(reason_new) - 6) as judge, count(*), count(*) filter ({split[0]} < {split[1]}),
               count(*) filter ({split[0]} > {split[1]}),
               count(*) filter ({split[0]} <> {split[1]} and extra_old is not distinct from extra_new)
        from work.match_judgments
        where change in ('same', 'changed') and {split[0]} in ('pass', 'fail') and {split[1]} in ('pass', 'fail')
        group by all order by judge
    """).fetchall()
    flips = []
    for judge, both, to_pass, to_fail, same_text in sorted(rows, key=lambda r: (-(r[2] + r[3]), r[0])):
        name = judge.replace("'", "''")
        where = f"(reason_old, reason_new) in (('{name}: pass', '{name}: fail'), ('{name}: fail', '{name}: pass'))"
        shown = [_with_response(db, e) for e in db.examples("judgments", where, examples)] if to_pass + to_fail else []
        flips.append(Verdicts(judge, both, to_pass, to_fail, same_text, shown))
    return flips


def _with_response(db: Database, example: Example) -> Example:
    """A changed judgment with the text that was judged, in the column `response`."""
    rows = {"old": example.old or {}, "new": example.new or {}}
    texts = {
        side: db.con.execute(f"select response from {side}_responses where id = ?", [row["response_id"]]).fetchall()
        for side, row in rows.items()
    }
    old, new = ({**rows[side], "response": found[0][0] if found else None} for side, found in texts.items())
    columns = ["response", *example.columns] if old["response"] != new["response"] else example.columns
    return replace(example, columns=columns, old=old, new=new)


def swaps(db: Database, examples: int) -> Swaps | None:
    """Pairs whose sides are swapped; None where not both rounds have pairs, or they are the same."""
    if not db.has("pairs") or db.is_equal("pairs"):
        return None
    db.match("pairs")
    swapped = "change = 'changed' and extra_old <> extra_new"
    [(both, count)] = db.con.execute(f"""
        select count(*) filter (change in ('same', 'changed')), count(*) filter ({swapped}) from work.match_pairs
    """).fetchall()
    return Swaps(both, count, db.examples("pairs", swapped, examples) if count else [])


# The exam


def exams(before: pl.LazyFrame, after: pl.LazyFrame, examples: int) -> list[Exam]:
    """Won and lost items of each set of the exam, sampled and greedy; held-out sets first. Frames are as the table `evals`."""
    kinds = [
        rows.filter(pl.col("mode").is_in(MODES)).select("member", "split", "mode").unique() for rows in (before, after)
    ]
    both = kinds[0].join(kinds[1], on=["member", "split", "mode"]).collect().rows()
    ordered = sorted(
        both, key=lambda kind: (kind[0] != "answers", kind[0], kind[1] != "heldout", kind[1], kind[2] == "greedy")
    )
    compared = (exam(before, after, *kind, examples) for kind in ordered)
    return [found for found in compared if found]


def exam(before: pl.LazyFrame, after: pl.LazyFrame, member: str, split: str, mode: str, examples: int) -> Exam | None:
    """The paired comparison of one set; None without an item that both have. The rates and tests are those of the gate
    `improves`, two-sided: Wilcoxon's signed-rank test on sampled rates, McNemar's on greedy answers.
    """
    sides = [rows.filter(member=member) for rows in (before, after)]
    rates = champion.paired(*(per_item(rows, mode, split) for rows in sides))
    changes = (rates["child"] - rates["parent"]).to_list()
    mean = difference(mode, None, changes)
    if mean is None:
        return None
    won, lost = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    tests: dict[str, tuple[str, Callable[[], float]]] = {
        "greedy": ("McNemar", lambda: mcnemar(won, lost)),
        "sampled": ("signed-rank", lambda: champion.signed_rank(rates, "two-sided")),
    }
    test, p = tests[mode]
    return Exam(
        member, split, mode, len(rates), won, lost, float(rates["parent"].mean()), float(rates["child"].mean()),  # type: ignore[arg-type]
        mean.value, mean.low, mean.high, p(), test, _examples(sides, rates, mode, split, examples) if examples else [],
    )  # fmt: skip


def _examples(sides: list[pl.LazyFrame], rates: pl.DataFrame, mode: str, split: str, limit: int) -> list[Item]:
    """The items that were lost by most, with a right answer before and a wrong one after; then those that were won."""
    change = pl.col("child") - pl.col("parent")
    lost = rates.filter(change < 0).sort(change, "item").head(limit)
    won = rates.filter(change > 0).sort(-change, "item").head(limit)
    old, new = (rows.filter(mode=mode, split=split) for rows in sides)
    return [*_items(old, new, lost, best_first=True), *_items(old, new, won, best_first=False)]


def _items(old: pl.LazyFrame, new: pl.LazyFrame, rates: pl.DataFrame, best_first: bool) -> Iterator[Item]:
    """Items with an answer of each side: the old one's best and the new one's worst, or the other way round."""
    before, after = _answers(old, rates, best_first), _answers(new, rates, not best_first)
    for item, *scores in rates.select("item", "parent", "child").iter_rows():
        level, problem, response = after[item]
        yield Item(item, level, *scores, problem, before[item][2], response)


def _answers(
    rows: pl.LazyFrame, rates: pl.DataFrame, best: bool
) -> dict[str, tuple[int | None, str | None, str | None]]:
    """Item → level, problem and its best or worst response."""
    chosen = rows.filter(pl.col("item").is_in(rates["item"].to_list())).with_columns(worth=score())
    first = (
        chosen.sort(["worth", "sample", "id"], descending=[best, False, False], nulls_last=best)
        .group_by("item")
        .first()
    )
    return {
        item: tuple(rest) for item, *rest in first.select("item", "level", "problem", "response").collect().iter_rows()
    }
