"""What the sections of a page read: facts of the rounds, and DuckDB over their tables, which sums up before Python sees a row.

Of each round that a page draws, the first prompts by id are looked at, at most `PROMPTS`; ids are hashes, so these are a
sample without preference.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from markupsafe import Markup

from tasks.core.champion import Election
from tasks.project.champion import elections
from tasks.project.params import Pipeline, load_params
from tasks.project.plan import Plans, plans
from tasks.views import catalog
from tasks.views._page_base import EMPTY
from tasks.views._page_charts import SERIES, Point, Spread
from tasks.views._report_facts import Facts, gather
from tasks.views.report import shown

DRAWN = len(SERIES)
"""Rounds in charts: each has a colour of its own."""
PROMPTS = 10_000
"""Prompts of a round whose answers are looked at."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of a page; without a body, `missing` says what would fill it."""

    id: str
    title: str
    body: Markup = EMPTY
    missing: str = ""


@dataclass(frozen=True)
class Data:
    """What sections read."""

    root: Path
    pipeline: Pipeline
    facts: list[Facts]
    """Of every base and round that is shown and has a manifest, parents first."""
    elections: Mapping[str, Election]
    con: duckdb.DuckDBPyConnection
    colours: dict[str, int]
    """Of the rounds that charts draw."""
    left_out: int = 0
    """Earlier rounds, which the page does not show."""

    @property
    def names(self) -> list[str]:
        """Every base and round that is shown, parents first."""
        return [f.block.name for f in self.facts]

    def rows(self, sql: str, **values: Any) -> list[Row]:
        """The rows of a query as dicts; `$name` in it is a value."""
        result = self.con.execute(sql, values or None)
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def measured(self, *names: str) -> dict[str, dict[str, dict[int | None, Row]]]:
        """Measures of these names: name → round → level (None for all) → its row of `measures`."""
        found: dict[str, dict[str, dict[int | None, Row]]] = {}
        wanted = self.rows("from measures where list_contains($names, name)", names=list(names))
        for row in wanted:
            found.setdefault(row["name"], {}).setdefault(row["round"], {})[row["level"]] = row
        return found

    def spreads(self, sql: str) -> list[Spread]:
        """How a value is distributed in each drawn round, from a query of (round, value) rows."""
        quantiles = "quantile_cont(value, [0.05, 0.25, 0.5, 0.75, 0.95])"
        rows = self.rows(f"""
            select round, {quantiles} as q, avg(value) as mean, count(*) as n from ({sql})
            where value is not null and isfinite(value::double) group by round
        """)
        by_round = {row["round"]: row for row in rows}
        drawn = [(name, colour, by_round[name]) for name, colour in self.colours.items() if name in by_round]
        return [Spread(name, colour, *row["q"], row["mean"], row["n"]) for name, colour, row in drawn]


@dataclass(frozen=True)
class Known:
    """What a caller that looked at all rounds knows of them."""

    pipeline: Pipeline
    plans: Plans
    elections: Mapping[str, Election]


@contextmanager
def opened(root: Path, whole: bool = False, known: Known | None = None) -> Iterator[Data]:
    """The data of a project: of the rounds that its table shows, or with `whole` of all.

    Raises:
        ParamsError: when the folder is no project.
        StoreError: when a file of a manifest is missing or damaged.
    """
    known = known or look(root)
    names = None if whole else shown(root, known.pipeline, known.elections)
    every = gather(root, known.pipeline, known.elections, known.plans, names)
    facts = [f for f in every if names is None or f.block.name in names]
    rounds = None if len(facts) == len(every) else [f.block.name for f in facts]
    with closing(catalog.connect(root, rounds)) as con:
        drawn = colours(facts, known.elections)
        data = Data(root, known.pipeline, facts, known.elections, con, drawn, len(every) - len(facts))
        _prepare(data)
        yield data


def look(root: Path) -> Known:
    """Looks at all rounds of a project."""
    pipeline = load_params(root)
    current = plans(root, pipeline)
    return Known(pipeline, current, elections(root, pipeline, current))


def colours(facts: list[Facts], results: Mapping[str, Election]) -> dict[str, int]:
    """The rounds to draw, parents first, each with the number of its colour: where there are more than colours, champions
    and their bases, and the last ones.
    """
    names = [f.block.name for f in facts]
    first = [*dict.fromkeys([*(e.champion for e in results.values()), *results, *reversed(names)])]
    chosen = set([name for name in first if name in names][:DRAWN])
    return {name: i for i, name in enumerate(n for n in names if n in chosen)}


def point(x: float, row: Row | None) -> Point | None:
    """A measure at a place of a chart."""
    return None if row is None or row["value"] is None else Point(x, row["value"], row["low"], row["high"])


def _prepare(data: Data) -> None:
    """Makes the tables `page_prompts` (round, prompt_id) and `page_answers`, the answers to these prompts: round, id,
    prompt_id, sample, answer, tokens, entropy, kept, reason, reward, truth. Truth is the verdict of the judge that is the
    domain's verifier, null without one.
    """
    data.con.execute("create temp table drawn (round varchar, verifier varchar)")
    for facts in data.facts:
        if facts.block.name in data.colours:
            data.con.execute("insert into drawn values (?, ?)", [facts.block.name, verifier(facts)])
    data.con.execute(f"""
        create temp table page_prompts as
        select round, unnest(min(id, {PROMPTS})) as prompt_id from prompts semi join drawn using (round)
        where error is null group by round
    """)
    data.con.execute("""
        create temp table page_judgments as
        select j.round, j.prompt_id, j.response_id, j.member, j.reward, j.score, j.verdict, j.error
        from judgments j semi join page_prompts using (round, prompt_id)
    """)
    data.con.execute("""
        create temp table page_answers as
        select r.round, r.id, r.prompt_id, r.sample, r.answer, r.tokens, r.entropy, r.error, f.kept, f.reason,
               w.score as reward, v.verdict = 'pass' as truth
        from (select round, id, prompt_id, sample, answer, tokens, entropy, error from responses
              semi join page_prompts using (round, prompt_id)) r
        left join (select round, id, kept, reason from filtered semi join page_prompts using (round, prompt_id)) f using (round, id)
        left join (select round, response_id, score from page_judgments where reward) w
            on w.round = r.round and w.response_id = r.id
        left join (select j.round, response_id, verdict from page_judgments j join drawn d
                   on d.round = j.round and d.verifier = j.member) v on v.round = r.round and v.response_id = r.id
    """)


def verifier(facts: Facts) -> str | None:
    """The name of the judge that is the domain's verifier, in this round."""
    if "judge" not in facts.stages:
        return None
    members = facts.stages["judge"].plan.members
    return next((name for name, values in members.items() if values.get("strategy", name) == "verifier"), None)
