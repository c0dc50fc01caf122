"""Sections of a page on the rows of the rounds: exploration, the funnel, gaps of pairs, lengths, entropy, costs."""

from collections.abc import Callable
from typing import Any

from tasks.core.stage import stages
from tasks.evaluate._measures import Z
from tasks.project.costs import money, read_prices
from tasks.project.costs import of as costs_of
from tasks.views._page_base import render
from tasks.views._page_charts import Point, Series, Step, Value, dots, forest, funnel, ranges
from tasks.views._page_data import PROMPTS, Data, Section, point
from tasks.views._report_facts import Facts
from tasks.views._report_rows import groups

EXPLORATION = {
    "distinct_answers": ("Exam: different answers a problem", "answers"),
    "exploration_distinct": ("Different right answers a prompt", "answers"),
    "exploration_balance": ("Balance score (B-STaR)", "%"),
}
"""Measures of exploration, with titles and units."""
FUNNELS = 4
"""Rounds with a funnel of their own, the last ones."""
STEPS: dict[str, tuple[str, str | None]] = {
    "prompts written": ("written", "prompts"),
    "answers sampled": ("responses", "kept"),
    "critiques": ("critiques", "critiques_kept"),
    "pairs": ("pairs", None),
    "rows to train on": ("training", "training_rows"),
    "preferences": ("preference_rows", "preferences"),
}
"""Steps of the funnel: the metric of what came, and of what went on."""


def exploration(data: Data) -> Section:
    """Whether a round's own answers still differ and reach a right one, and whether its reward and filter pick the right."""
    title = "Exploration and exploitation"
    per_prompt = data.rows("""
        select round, avg(answers) as answers, stddev_samp(answers) / sqrt(count(answers)) as answers_error,
               avg(hit) as hit, stddev_samp(hit) / sqrt(count(hit)) as hit_error,
               avg(share) as share, stddev_samp(share) / sqrt(count(share)) as share_error
        from (select round, prompt_id, count(distinct answer)::double as answers, max(truth::int)::double as hit,
                     avg(truth::int) as share
              from page_answers where error is null group by all) group by round
    """)
    kept = data.rows("""
        select round, avg(share) as kept, stddev_samp(share) / sqrt(count(share)) as kept_error
        from (select round, prompt_id, avg(truth::int) as share from page_answers where kept group by all) group by round
    """)
    by_round: dict[str, dict[str, Any]] = {row["round"]: row for row in per_prompt}
    for row in kept:
        by_round.setdefault(row["round"], {}).update(row)
    if not by_round:
        return Section("exploration", title, missing="the stage generate samples answers to a round's own prompts")
    plots = {
        "answers": ("Explores: different answers a prompt", "answers"),
        "hit": ("Explores: one of the answers is right", "%"),
        "share": ("Exploits: share of all answers that is right", "%"),
        "kept": ("Exploits: share of the kept answers that is right", "%"),
    }
    charts = [c for key, (label, unit) in plots.items() if (c := _means(data, by_round, key, label, unit))]
    charts += [c for name, (label, unit) in EXPLORATION.items() if (c := _measure(data, name, label, unit))]
    intro = (
        "Of the answers to a round's own prompts, which its parent wrote. Right is what the judge that is the domain's "
        f"verifier passes; means over at most {PROMPTS:,} prompts a round, with 95 % intervals."
    )
    return Section("exploration", title, render("charts.html", intro=intro, rows=[charts]))


def _means(data: Data, by_round: dict[str, dict[str, Any]], key: str, title: str, unit: str) -> Any:
    values = []
    for name, colour in data.colours.items():
        row = by_round.get(name, {})
        if (mean := row.get(key)) is None:
            continue
        half = Z * (row.get(f"{key}_error") or 0)
        values.append(
            Value(
                name, colour, Point(0, mean, max(0, mean - half), mean + half if unit != "%" else min(1, mean + half))
            )
        )
    return forest(title, values, unit) if values else None


def _measure(data: Data, name: str, title: str, unit: str) -> Any:
    rounds = data.measured(name).get(name, {})
    values = [Value(n, colour, p) for n, colour in data.colours.items() if (p := point(0, rounds.get(n, {}).get(None)))]
    return forest(title, values, unit) if values else None


# The funnel


def funnels(data: Data) -> Section:
    """From prompts to training rows: how many came to each step and went on, and why the others did not."""
    title = "From prompts to training rows"
    drawn = [f for f in data.facts if f.block.name in data.colours and _steps(f)][-FUNNELS:]
    if not drawn:
        return Section("funnel", title, missing="a round that has run")
    charts = [funnel(f.block.name, _steps(f), data.colours[f.block.name]) for f in drawn]
    rows = next((g for g in groups(data.facts) if g.title == "rows"), None)
    body = render("funnel.html", charts=charts, rows=rows, names=data.names)
    return Section("funnel", title, body)


def _steps(facts: Facts) -> list[Step]:
    metrics = dict(facts.metrics)
    if "prompts" in metrics:
        metrics["written"] = metrics["prompts"] + _total(metrics, "prompts_rejected/")
    metrics["training"] = metrics.get("training_rows", 0) + _total(metrics, "training_dropped/")
    metrics["preference_rows"] = metrics.get("preferences", 0) + _total(metrics, "preferences_dropped/")
    rows = [(name, metrics.get(total, 0), metrics.get(left or total, 0)) for name, (total, left) in STEPS.items()]
    return [Step(name, total, left) for name, total, left in rows if total]


def _total(metrics: dict[str, float], prefix: str) -> float:
    return sum(value for name, value in metrics.items() if name.startswith(prefix))


# Distributions


def gap(data: Data) -> Section:
    """How far apart chosen and rejected completions are: in score and in length."""
    score = data.spreads(
        "select round, chosen_score - rejected_score as value from pairs semi join page_prompts using (round, prompt_id)"
    )
    if not score:
        return Section("gap", "Chosen and rejected", missing="the stage pair makes preference pairs")
    length = data.spreads("""
        select round, len(chosen[-1].content) - len(rejected[-1].content) as value from pairs semi join page_prompts using (round, prompt_id)
    """)
    intro = "Pairs whose score gap is small teach little; a length gap to one side teaches length."
    charts = [
        ranges("Score: chosen − rejected", score, "score"),
        ranges("Length: chosen − rejected", length, "characters"),
    ]
    return Section("gap", "Chosen and rejected", render("charts.html", intro=intro, rows=[charts]))


def lengths(data: Data) -> Section:
    """Tokens of sampled answers, of kept ones, and of training rows."""
    queries = {
        "Sampled answers": "select round, tokens as value from page_answers",
        "Kept answers": "select round, tokens as value from page_answers where kept",
        "Training rows, prompt and completion": "select round, tokens as value from training semi join drawn using (round) where error is null",
        "Exam, sampled": "select round, tokens as value from evals semi join drawn using (round) where mode = 'sampled'",
    }
    charts = [ranges(title, found, "tokens") for title, sql in queries.items() if (found := data.spreads(sql))]
    if not charts:
        return Section("lengths", "Lengths", missing="answers or training rows")
    return Section("lengths", "Lengths", render("charts.html", intro="", rows=[charts]))


def entropy(data: Data) -> Section:
    """How sure the models are: the mean entropy of their tokens."""
    found = {
        "Sampled answers, by the parent": data.spreads("select round, entropy as value from page_answers"),
        "Exam, sampled, by the round's model": data.spreads(
            "select round, entropy as value from evals semi join drawn using (round) where mode = 'sampled'"
        ),
    }
    charts = [ranges(title, spreads, "nats a token") for title, spreads in found.items() if spreads]
    if not charts:
        return Section("entropy", "Entropy", missing="an engine that gives the entropy of tokens")
    intro = "An entropy that falls from round to round is a model that explores less."
    return Section("entropy", "Entropy", render("charts.html", intro=intro, rows=[charts]))


# Costs


def costs(data: Data) -> Section:
    """Seconds, tokens and money of each stage and round."""
    rows = data.rows("from stages semi join drawn using (round)")
    if not rows:
        return Section("costs", "Costs", missing="a stage that has run")
    names = [s for s in stages() if any(row["stage"] == s for row in rows)]

    def chart(title: str, value: Callable[[dict[str, Any]], float], unit: str) -> Any:
        series = [
            Series(
                name,
                colour,
                [Point(names.index(r["stage"]), value(r)) for r in rows if r["round"] == name and value(r)],
            )
            for name, colour in data.colours.items()
        ]
        return dots(title, names, [s for s in series if s.points], unit) if any(s.points for s in series) else None

    prices = read_prices(data.root)
    charts = [
        chart("Seconds, start-up included", lambda r: r["seconds"], "seconds"),
        chart("Tokens generated", lambda r: r["completion_tokens"], "tokens"),
        chart("Tokens read", lambda r: r["prompt_tokens"], "tokens"),
    ]
    if prices:
        manifests = {(f.block.name, s): m for f in data.facts for s, m in f.stages.items()}
        spent = {key: money(m, prices) for key, m in manifests.items()}
        charts.append(chart("Money", lambda r: spent.get((r["round"], r["stage"]), 0), prices.currency or "money"))
    totals = [(f.block.name, costs_of(f.stages.values(), prices)) for f in data.facts]
    body = render(
        "costs.html", charts=[c for c in charts if c], totals=totals, currency=prices.currency if prices else ""
    )
    return Section("costs", "Costs", body)
