"""Sections of a page on single rows: answers with all their verdicts side by side, and what differs from the parent."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tasks.views import _diff_html, diff
from tasks.views._page_base import render
from tasks.views._page_data import Data, Row, Section
from tasks.views._report_rows import groups

SHOWN, READ = 8, 64
"""Different texts of a prompt that are shown, and answers that are read for them."""
CUT = 2000
"""Characters of a text that are read."""
REASONS, DISPUTED = 5, 3
"""Prompts chosen for a reason of the filter, and for judges that disagree."""
EXAMPLES = 3
"""Of each kind of difference."""
COMPARED = 2_000_000
"""Rows of a table up to which a page compares it with the parent's: more take longer than who opens a page waits."""


@dataclass
class Answer:
    """One text among the answers to a prompt, with what became of each answer of this text."""

    row: Row
    """Of the first of them."""
    fates: Counter[str] = field(default_factory=Counter)
    verdicts: dict[str, list[Row]] = field(default_factory=dict)
    """Judge → its judgments, without those that say the same."""

    @property
    def count(self) -> int:
        """Answers of this text."""
        return self.fates.total()


@dataclass
class Sample:
    """A prompt with its answers, each with its judgments by judge."""

    id: str
    why: str
    problem: str = ""
    length: int = 0
    answers: list["Answer"] = field(default_factory=list)
    others: int = 0
    """Different texts that are not shown."""
    critiques: list[Row] = field(default_factory=list)


def samples(data: Data) -> Section:
    """Prompts of the last round: one for each fate of an answer, and those on which judges disagree most."""
    title = "Samples"
    rounds = {row["round"] for row in data.rows("select distinct round from page_answers")}
    name = next((n for n in reversed(data.names) if n in rounds), None)
    if name is None:
        return Section("samples", title, missing="the stage generate samples answers")
    chosen = _chosen(data, name)
    _fill(data, name, chosen)
    judges = [r["member"] for r in data.rows(
        "select member, bool_or(reward) as reward from page_judgments where round = $round group by member "
        "order by reward desc, member", round=name,
    )]  # fmt: skip
    rejected = data.rows(f"""
        select split_part(error, ':', 1) as reason, count(*) as n, arg_min(error, id) as error,
               left(arg_min(problem, id), {CUT}) as problem, length(arg_min(problem, id)) as length
        from prompts where round = $round and error is not null group by reason order by n desc
    """, round=name)  # fmt: skip
    body = render(
        "samples.html", name=name, samples=list(chosen.values()), judges=judges, rejected=rejected, shown=SHOWN
    )
    return Section("samples", f"{title} of {name}", body)


def _chosen(data: Data, name: str) -> dict[str, Sample]:
    """Prompts to show, with the reason why."""
    chosen: dict[str, Sample] = {}
    fates = data.rows(f"""
        select coalesce(reason, case when kept then 'kept' end) as fate, count(*) as n, min(prompt_id, {SHOWN}) as ids
        from page_answers where round = $round and kept is not null group by fate order by fate <> 'kept', n desc limit {REASONS}
    """, round=name)  # fmt: skip
    disputed = data.rows(f"""
        select prompt_id, count(*) as n from (
            select prompt_id, response_id from page_judgments where round = $round group by all having count(distinct verdict) > 1)
        group by prompt_id order by n desc, prompt_id limit {SHOWN}
    """, round=name)  # fmt: skip
    for row in fates:
        id = next((id for id in row["ids"] if id not in chosen), None)
        why = "has a kept answer" if row["fate"] == "kept" else f"has an answer dropped by {row['fate']}"
        if id is not None:
            chosen[id] = Sample(id, why)
    for row in [row for row in disputed if row["prompt_id"] not in chosen][:DISPUTED]:
        chosen[row["prompt_id"]] = Sample(row["prompt_id"], f"judges disagree on {row['n']} of its answers")
    if not chosen:
        first = data.rows(
            f"select distinct prompt_id from page_answers where round = $round order by all limit {SHOWN}", round=name
        )
        chosen = {row["prompt_id"]: Sample(row["prompt_id"], "") for row in first}
    return chosen


def _fill(data: Data, name: str, chosen: dict[str, Sample]) -> None:
    """Reads problems, answers with their judgments, and critiques; of long texts the beginning alone."""
    values: dict[str, Any] = {"round": name, "ids": list(chosen)}
    mine = "round = $round and list_contains($ids, prompt_id)"
    for row in data.rows(f"""
        select id, left(problem, {CUT}) as problem, length(problem) as length from prompts
        where round = $round and list_contains($ids, id)
    """, **values):  # fmt: skip
        chosen[row["id"]].problem, chosen[row["id"]].length = row["problem"], row["length"]
    answers: dict[str, Answer] = {}
    texts: dict[tuple[str, str | None, str | None], Answer] = {}
    for row in data.rows(f"""
        select r.*, f.kept, f.reason, f.margin
        from (select id, prompt_id, sample, left(answer, 200) as answer, left(response, {CUT}) as text, md5(response) as whole,
                     length(response) as length, error from responses where {mine}) r
        left join (select id, kept, reason, margin, rank from filtered where {mine}) f using (id)
        qualify row_number() over (partition by prompt_id order by kept desc nulls last, rank, sample, id) <= {READ}
        order by kept desc nulls last, rank, sample, r.id
    """, **values):  # fmt: skip
        place = (row["prompt_id"], row["whole"], row["error"])
        if place not in texts:
            texts[place] = Answer(row)
            chosen[row["prompt_id"]].answers.append(texts[place])
        answers[row["id"]] = texts[place]
        texts[place].fates[_fate(row)] += 1
    for row in data.rows(f"""
        select response_id, member, score, verdict, error, left(rationale, {CUT}) as rationale, length(rationale) as length
        from judgments where {mine} order by response_id, member
    """, **values):  # fmt: skip
        if row["response_id"] in answers:
            own = answers[row["response_id"]].verdicts.setdefault(row["member"], [])
            if all((row["verdict"], row["score"]) != (v["verdict"], v["score"]) for v in own):
                own.append(row)
    for row in data.rows(f"select distinct chosen_id, rejected_id from pairs where {mine}", **values):
        for side in ("chosen", "rejected"):
            if answer := answers.get(row[f"{side}_id"]):
                answer.row.setdefault("sides", set()).add(side)
    for row in data.rows(f"""
        select prompt_id, response_id, left(critique, {CUT}) as critique, length(critique) as length, verdict, wrong_step,
               refinements, successes, kept, error
        from critiques where {mine} qualify row_number() over (partition by prompt_id order by kept desc, id) <= 2
    """, **values):  # fmt: skip
        chosen[row["prompt_id"]].critiques.append(row)

    for sample in chosen.values():
        sample.answers, sample.others = sample.answers[:SHOWN], max(0, len(sample.answers) - SHOWN)


def _fate(row: Row) -> str:
    """What became of an answer: kept, or the rule that dropped it and by how much it missed that."""
    if row["kept"] is None:
        return "not filtered"
    missed = "" if row["margin"] is None else f", missed by {row['margin']:.3g}"
    return "kept" if row["kept"] else f"{row['reason']}{missed}"


def difference(data: Data) -> Section:
    """What differs between the last round with rows and its parent; where that has no rows of its own, the round before it."""
    title = "What changed"
    made = {f.block.name: f for f in data.facts}
    last = next((f.block for f in reversed(data.facts) if f.block.parent in made), None)
    if last is None or last.parent is None:
        return Section("diff", title, missing="a round and its parent")
    rows = max(
        (
            o.rows or 0
            for name in (last.parent, last.name)
            for m in made[name].stages.values()
            for o in m.outputs.values()
        ),
        default=0,
    )
    if rows > COMPARED:
        command = f"flywheel diff {last.parent} {last.name} --html FILE"
        return Section("diff", title, missing=f"for {rows:,} rows, `{command}` makes a page of its own")
    found = diff.compare(data.root, last.parent, last.name, EXAMPLES)
    return Section("diff", f"What changed from {last.parent} to {last.name}", _diff_html.body(found, level=3))


def figures(data: Data) -> Section:
    """Every figure of the table that `flywheel report` prints."""
    body = render("figures.html", groups=groups(data.facts), names=data.names)
    return Section("figures", "All figures", body)
