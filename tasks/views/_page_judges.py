"""The section of a page on judges: do they say pass of what is right, and how sure are they?"""

from typing import Any

from markupsafe import Markup

from tasks.core import labels
from tasks.evaluate._measures import wilson
from tasks.views._labels import NAMES, by_labels
from tasks.views._page_base import render
from tasks.views._page_charts import Point, Series, lines
from tasks.views._page_data import PROMPTS, Data, Section
from tasks.views._report_rows import groups

LEAST = 5
"""Answers of a bin that is drawn."""
BINS = 10
GOLD = "select round, judge, score, truth from audits semi join drawn using (round) where score is not null and truth is not null"
OWN = """
    select j.round, j.member as judge, j.score, a.truth from page_judgments j
    join page_answers a on a.round = j.round and a.id = j.response_id
    join drawn d on d.round = j.round where j.score is not null and a.truth is not null and j.member <> d.verifier
"""
"""Scores of judges beside what is true: of the gold set, and of the round's own answers by the verifier."""
BINNED = """
    with scored as ({rows}),
    judges as (select judge, min(score) >= 0 and max(score) <= 1 as shares from scored group by judge),
    binned as (select round, judge, shares, score, truth,
                      case when shares then greatest(1, ceil(score * {bins}))
                           else ntile({bins}) over (partition by judge order by score) end as bin
               from scored join judges using (judge))
    select judge, shares, round, bin, avg(score) as score, count(*) as n, count(*) filter (truth) as hits
    from binned group by all having count(*) >= {least} order by judge, round, bin
"""
"""Bins of equal width where a judge's scores are shares, else ten with equally many scores."""
TOLD = """
    with scored as ({rows}),
    ranked as (select round, judge, score, truth, ceil(score * {bins}) as bin,
                      rank() over (partition by round, judge order by score)
                      + (count(*) over (partition by round, judge, score) - 1) / 2 as place from scored),
    bins as (select round, judge, min(score) >= 0 and max(score) <= 1 as shares, abs(sum(truth::int - score)) as miss
             from ranked group by round, judge, greatest(1, bin)),
    errors as (select round, judge, case when bool_and(shares) then sum(miss) end as missed from bins group by all)
    select round, judge, count(*) as n, any_value(missed) / count(*) as calibration_error,
           (sum(place) filter (truth) - count(*) filter (truth) * (count(*) filter (truth) + 1) / 2)
           / nullif(count(*) filter (truth) * count(*) filter (not truth), 0) as auroc
    from ranked join errors using (round, judge) group by all
"""
"""AUROC by the sum of ranks (Mann and Whitney 1947), ties counting half, and the expected calibration error of `evaluate`."""


def judges(data: Data) -> Section:
    """Every judge's calibration: the share of right answers by score, and its measures on the gold set."""
    title = "Judges"
    rewards = {row["member"] for row in data.rows("select distinct member from page_judgments where reward")}
    charts = _charts(data, GOLD, "gold answers", rewards) + _charts(data, OWN, "own answers", rewards)
    known = next((g for g in groups(data.facts) if g.title.startswith("on known answers")), None)
    by_people = by_labels(data.con, labels.read(data.root / labels.FOLDER))
    errors = data.rows("""
        select round, member, count(error) / count(*) as share, count(*) as n from page_judgments
        group by all order by member, round
    """)
    told = _told(data)
    if not charts and not known and not by_people:
        return Section(
            "judges", title, missing="an exam with the member judging, or a judge that is the domain's verifier"
        )
    body = render(
        "judges.html",
        told=told,
        own=[n for n in data.names if any(n in rounds for rounds in told.values())], charts=charts, group=known,
        by_people=by_people, measures=NAMES, names=data.names, prompts=PROMPTS,
        errors=[e for e in errors if e["share"] > 0], rewards=sorted(rewards),
    )  # fmt: skip
    return Section("judges", title, body)


def _told(data: Data) -> dict[str, dict[str, dict[str, Any]]]:
    """Judge → round → how well its scores tell right answers from wrong ones among the round's own."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in data.rows(TOLD.format(rows=OWN, bins=BINS)):
        found.setdefault(row["judge"], {})[row["round"]] = row
    return dict(sorted(found.items()))


def _charts(data: Data, rows: str, whose: str, rewards: set[str]) -> list[Markup]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in data.rows(BINNED.format(rows=rows, bins=BINS, least=LEAST)):
        found.setdefault(row["judge"], []).append(row)
    charts = []
    for judge, bins in found.items():
        shares = bins[0]["shares"]
        series = [
            Series(name, colour, [_point(b, shares) for b in bins if b["round"] == name])
            for name, colour in data.colours.items()
            if any(b["round"] == name for b in bins)
        ]
        title = f"{judge}{' (the reward)' if judge in rewards else ''}, {whose}"
        charts.append(
            lines(f"{title}: right, %", series, "score, %" if shares else "score", "right, %", diagonal=shares)
        )
    return charts


def _point(row: dict[str, Any], shares: bool) -> Point:
    low, high = wilson(row["hits"], row["n"])
    return Point(100 * row["score"] if shares else row["score"], row["hits"] / row["n"], low, high)
