from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from tasks import tables
from tasks.domains.arithmetic import Arithmetic, tell
from tasks.domains.arithmetic import draw as story_of
from tasks.engines.fake import Fake
from tasks.prompts import prompts
from tasks.prompts.pool import Pool, agreement, nearness

SMALL = {"validation": 20, "heldout": 70, "gold": 10}


def author(messages, seed) -> str:
    import random

    rng = random.Random(seed)
    return tell(story_of(rng, int(messages[-1][1].split()[1].rstrip(",")))[0], rng)


def run(params: Pool, engine: Fake | None = None, *, parent=(), answers=(), seed=1) -> pl.DataFrame:
    given = {
        "parent_prompts": tables.frame(tables.prompts, parent),
        "parent_responses": tables.frame(tables.responses, answers),
        "parent_model": Path("m"),
        "engine": engine or Fake.scripted(author),
        "domain": Arithmetic(),
        "seed": seed,
        "cache": Path("c"),
    }
    return prompts(params, **given).collect()


def small(**fields) -> Pool:
    return Pool(**{"count": 30, "batch": 8, "seeds": 21, "evaluation": SMALL} | fields)


def test_it_stops_as_soon_as_enough_are_accepted():
    rows = run(small())

    good = rows.filter(pl.col("error").is_null())
    assert len(good) == 30
    assert good["problem"].map_elements(Arithmetic().structure, return_dtype=pl.String).n_unique() == 30
    assert set(good["level"]) <= set(range(2, 9))
    assert set(good["source"]) == {"model"}
    assert good["model"].n_unique() == 1


def test_it_gives_up_after_its_tries_and_every_failure_says_why():
    rows = run(small(count=10, tries=3), Fake(error_rate=0.3, garbage_rate=0.3))

    assert len(rows) == rows["id"].n_unique() == 30
    assert set(rows["error"].str.split(":").list.first()) == {"failed", "malformed"}
    assert set(rows.filter(pl.col("error").str.starts_with("failed"))["problem"]) == {""}


def test_no_seed_and_no_problem_of_the_parent_is_accepted_again():
    seeds = [i.problem for i in Arithmetic().items("seeds", 21, 0)]
    old = {"id": "old", "problem": "Tom has 1 pens.\nDay 1: 5 found\nDay 2: 5 lost\nHow many?", "level": 2}
    lines = [*seeds[:2], old["problem"], "Tom has 9 pens.\nDay 1: 5 found\nDay 2: 5 lost\nHow many?"]

    rows = run(small(count=20, tries=2), Fake.scripted(lambda messages, seed: lines[seed % 4]), parent=[old])

    reasons = dict(rows.group_by("problem").agg(pl.col("error").sort(nulls_last=False).first()).iter_rows())
    assert reasons[old["problem"]] == "duplicate: of old"
    assert [p for p, why in reasons.items() if why is None] == [lines[3]]


def test_evaluation_items_are_contaminated():
    items = {s: Arithmetic().items(s, n, 0) for s, n in SMALL.items()}
    texts = [items[s][0].problem for s in ("validation", "heldout", "gold")]

    rows = run(small(count=8, tries=3), Fake.scripted(lambda messages, seed: texts[seed % 3]))

    assert set(rows["error"]) == {f"contaminated: it is in or near {s}" for s in SMALL}


def test_examples_are_of_the_level_and_what_was_accepted_is_shown_later():
    rows = run(small(levels={3: 1.0}, seeds=200, examples=4, written=2))

    shown = Counter(p for row in rows["parents"] for p in row)
    own = set(shown) & set(rows["id"])
    assert all(len(row) == 4 for row in rows["parents"])
    assert own <= set(rows.filter(pl.col("error").is_null())["id"])
    assert sum(shown[p] for p in own) == 2 * (len(rows) - 8)  # none yet in the first batch of 8
    assert set(rows["level"]) == {3}


def test_equal_seeds_write_equal_problems_and_others_others():
    first, again, other = run(small()), run(small()), run(small(), seed=2)

    assert first.equals(again)
    assert set(first["problem"]) != set(other["problem"])


def votes(prompt_id: str, answers: list[str | None]) -> list[dict]:
    rows = [{"id": f"{prompt_id}{k}", "prompt_id": prompt_id, "answer": a} for k, a in enumerate(answers)]
    return [row | {"error": "down" if row["answer"] == "!" else None} for row in rows]


def test_agreement_by_level():
    asked = [{"id": n, "problem": n, "level": level} for n, level in [("a", 2), ("b", 2), ("c", 8), ("d", None)]]
    answered = [
        *votes("a", ["1", "1", "1", "2"]),
        *votes("b", ["1", None, "!"]),
        *votes("c", [None, None]),
        *votes("d", ["1"]),
    ]
    frames = (
        tables.frame(tables.prompts, asked),
        tables.frame(tables.responses, [r | {"answer": None} if r["error"] else r for r in answered]),
    )

    # level 2: (3/4 + 1/2) / 2, failed answers not counted; level 8: nobody answered
    assert agreement(*frames) == {2: 0.625, 8: 0.0}
    assert agreement(tables.frame(tables.prompts), tables.frame(tables.responses)) == {}


@pytest.mark.parametrize(
    ("agreed", "weight"), [(0.5, 1.0), (None, 1.0), (0.9, 0.6), (0.1, 0.6), (1.0, 0.1), (0.0, 0.1)]
)
def test_nearness_is_highest_where_half_agree(agreed, weight):
    assert nearness(agreed) == pytest.approx(weight)


def test_levels_near_the_frontier_are_asked_for_more_often():
    asked = [{"id": n, "problem": n, "level": level} for n, level in [("easy", 2), ("half", 5)]]
    answered = [*votes("easy", ["1"] * 8), *votes("half", ["1"] * 4 + ["2", "3", "4", "5"])]
    counts = {}
    for frontier in (True, False):
        params = small(count=200, batch=200, levels={2: 1.0, 5: 1.0}, frontier=frontier)
        levels = run(params, parent=asked, answers=answered)["level"]
        counts[frontier] = (levels == 2).mean()

    assert counts[True] == pytest.approx(0.1 / 1.1, abs=0.05)
    assert counts[False] == pytest.approx(0.5, abs=0.1)


def test_a_domain_without_levels_or_seeds():
    from tasks.domains import Domain

    class Blank(Domain):
        def items(self, split, count, seed):
            return []

    case = {"parent_prompts": tables.frame(tables.prompts), "parent_responses": tables.frame(tables.responses)}
    engine = Fake.scripted(lambda messages, seed: f"Write about {seed}, {seed // 7} and {seed // 11}.")
    rows = prompts(
        small(count=3), **case, parent_model=Path("m"), engine=engine, domain=Blank(), seed=1, cache=Path("c")
    )

    assert rows.collect()["error"].null_count() == 3


def test_a_real_model_that_cannot_write_gives_malformed_rows(tiny_model, tmp_path):
    from tasks.engines.transformers import Transformers

    none = {"parent_prompts": tables.frame(tables.prompts), "parent_responses": tables.frame(tables.responses)}
    given = {"parent_model": tiny_model, "engine": Transformers(), "domain": Arithmetic(), "seed": 1, "cache": tmp_path}
    rows = prompts(small(count=4, tries=2, max_tokens=8), **none, **given).collect()

    assert len(rows) == rows["id"].n_unique() == 8
    assert set(rows["error"]) == {"malformed: the domain cannot read it"}
