from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from tasks.core import frames, roster, tables
from tasks.core.ids import content_id
from tasks.domains.arithmetic import Arithmetic, tell
from tasks.domains.arithmetic import draw as story_of
from tasks.engines.fake import Fake
from tasks.prompts import PromptsCase, prompts
from tasks.prompts._screen import Problem
from tasks.prompts.pool import Pool, Shelves, learning_signals

SMALL = {"validation": 20, "heldout": 70, "gold": 10}


def author(messages, seed) -> str:
    import random

    rng = random.Random(seed)
    return tell(story_of(rng, int(messages[-1][1].split()[1].rstrip(",")))[0], rng)


def run(pool: Pool, engine: Fake | None = None, *, parent=(), answers=(), seed=1, domain=None) -> pl.DataFrame:
    result = prompts(
        {"pool": pool},
        frames.frame(tables.prompts, parent),
        frames.frame(tables.responses, answers),
        roster.one(engine or Fake.scripted(author), Path("m")),
        domain or Arithmetic(),
        seed,
    )
    return result.frames["prompts"].collect()


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


@pytest.mark.parametrize(("examples", "model_examples", "shown"), [(0, 2, 0), (2, 5, 2), (3, 2, 3)])
def test_no_more_examples_are_shown_than_asked_for(examples, model_examples, shown):
    """Also once there are more problems of models than that: the second batch draws of what the first one added."""
    rows = run(small(count=16, max_attempts=8, examples=examples, model_examples=model_examples))
    assert rows["error"].null_count() == 16
    assert set(rows["parents"].list.len()) <= {*range(shown + 1)} and rows["parents"].list.len().max() == shown


def test_it_gives_up_after_its_attempts_and_every_failure_says_why():
    rows = run(small(count=10, max_attempts=3), Fake(error_rate=0.3, garbage_rate=0.3))

    assert len(rows) == rows["id"].n_unique() == 30
    assert set(rows["error"].str.split(":").list.first()) == {"failed", "malformed"}
    assert set(rows.filter(pl.col("error").str.starts_with("failed"))["problem"]) == {""}


def test_no_seed_and_no_problem_of_the_parent_is_accepted_again():
    seeds = [i.problem for i in Arithmetic().items("seeds", 21, 0)]
    old = {"id": "old", "problem": "Tom has 1 pens.\nDay 1: 5 found\nDay 2: 5 lost\nHow many?", "level": 2}
    lines = [*seeds[:2], old["problem"], "Tom has 9 pens.\nDay 1: 5 found\nDay 2: 5 lost\nHow many?"]

    rows = run(small(count=20, max_attempts=2), Fake.scripted(lambda messages, seed: lines[seed % 4]), parent=[old])

    reasons = dict(rows.group_by("problem").agg(pl.col("error").sort(nulls_last=False).first()).iter_rows())
    assert reasons[old["problem"]] == "duplicate: of old"
    assert [p for p, why in reasons.items() if why is None] == [lines[3]]


def test_evaluation_items_are_contaminated():
    items = {s: Arithmetic().items(s, n, 0) for s, n in SMALL.items()}
    texts = [items[s][0].problem for s in ("validation", "heldout", "gold")]

    rows = run(small(count=8, max_attempts=3), Fake.scripted(lambda messages, seed: texts[seed % 3]))

    assert set(rows["error"]) == {f"contaminated: it is in or near {s}" for s in SMALL}


def test_examples_are_of_the_level_and_what_was_accepted_is_shown_later():
    rows = run(small(levels={3: 1.0}, seeds=200, examples=4, model_examples=2))

    uses = Counter(p for row in rows["parents"] for p in row)
    own = set(uses) & set(rows["id"])
    assert all(len(row) == 4 for row in rows["parents"])
    assert own <= set(rows.filter(pl.col("error").is_null())["id"])
    assert sum(uses[p] for p in own) == 2 * (len(rows) - 8)  # none yet in the first batch of 8
    assert set(rows["level"]) == {3}


def test_equal_seeds_write_equal_problems_and_others_others():
    first, again, other = run(small()), run(small()), run(small(), seed=2)

    assert first.equals(again)
    assert set(first["problem"]) != set(other["problem"])


def votes(prompt_id: str, answers: list[str | None]) -> list[dict]:
    rows = [{"id": f"{prompt_id}{k}", "prompt_id": prompt_id, "answer": a} for k, a in enumerate(answers)]
    return [row | {"error": "down" if row["answer"] == "!" else None} for row in rows]


def answered(*levels: tuple[str, int | None, list[str | None]]) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Prompts by id, level and answers, as the two tables that a strategy reads; `!` is a failed response."""
    rows = [row for name, _, answers in levels for row in votes(name, answers)]
    problems = [{"id": name, "problem": name, "level": level} for name, level, _ in levels]
    valid = [r | {"answer": None} if r["error"] else r for r in rows]
    return frames.frame(tables.prompts, problems), frames.frame(tables.responses, valid)


def test_the_learning_signal_of_a_level_is_the_mean_over_its_prompts():
    signals = learning_signals(
        *answered(
            ("a", 2, ["1", "1", "1", "2"]),  # p = 3/4, 2√(3/16) = √3/2
            ("b", 2, ["1", None, "!"]),  # p = 1/2, failed responses not counted: 1
            ("c", 8, [None, None]),  # p = 0
            ("d", None, ["1"]),
        )
    )

    assert signals == {2: round((3**0.5 / 2 + 1) / 2, 6), 8: 0.0}
    assert learning_signals(*answered()) == {}


def test_a_level_half_solved_and_half_hopeless_has_no_signal():
    solved, hopeless = [("s1", 3, ["7"] * 4), ("s2", 3, ["8"] * 4)], [("h1", 3, [None] * 4), ("h2", 3, [None] * 4)]
    halves = [("e", 4, ["1", "1", None, None])]
    rows, responses = answered(*solved, *hopeless, *halves)
    case = PromptsCase(rows, responses, roster.one(Fake()), Arithmetic(), 1)

    weights = small(levels={3: 2.0, 4: 1.0, 5: 1.0}).weights(case, [])

    # the mean of 2√(p(1 − p)) is 0, floored at a tenth; the curve at the mean share of 1/2 would be 1
    assert weights == pytest.approx({3: 0.2, 4: 1.0, 5: 1.0})


def test_levels_near_the_frontier_are_asked_for_more_often():
    rows = [{"id": n, "problem": n, "level": level} for n, level in [("easy", 2), ("half", 5)]]
    answered = [*votes("easy", ["1"] * 8), *votes("half", ["1"] * 4 + ["2", "3", "4", "5"])]
    counts = {}
    for frontier in (True, False):
        params = small(count=200, batch=200, levels={2: 1.0, 5: 1.0}, frontier=frontier)
        levels = run(params, parent=rows, answers=answered)["level"]
        counts[frontier] = (levels == 2).mean()

    assert counts[True] == pytest.approx(0.1 / 1.1, abs=0.05)
    assert counts[False] == pytest.approx(0.5, abs=0.1)


def test_a_domain_without_levels_or_seeds():
    from tasks.domains import Domain

    class Blank(Domain):
        def items(self, split, count, seed):
            return []

    engine = Fake.scripted(lambda messages, seed: f"Write about {seed}, {seed // 7} and {seed // 11}.")

    assert run(small(count=3), engine, domain=Blank())["error"].null_count() == 3


def test_examples_of_a_model_are_those_that_a_model_wrote():
    person = {"id": "p", "problem": "Tom has 1 pens.\nDay 1: 5 found\nHow many?", "level": 3, "source": "seed"}
    model = {"id": "m", "problem": "Tom has 2 pens.\nDay 1: 6 found\nHow many?", "level": 3, "source": "model"}

    rows = run(small(levels={3: 1.0}, count=5, examples=2, model_examples=1), parent=[person, model])

    assert all("m" in parents and len(parents) == 2 for parents in rows["parents"])


def test_what_earlier_members_accepted_is_shown_and_not_accepted_again():
    text = "Tom has 9 pens.\nDay 1: 5 found\nDay 2: 5 lost\nHow many?"
    earlier = Problem(content_id(text, 0), text, 2, "model")
    case = PromptsCase(*answered(), roster.one(Fake.scripted(lambda *_: text)), Arithmetic(), 1, (earlier,))

    rows = small(count=1, max_attempts=2, levels={2: 1.0})(case).collect()

    assert set(rows["error"]) == {f"duplicate: of {earlier.id}"}
    assert all(earlier.id in parents for parents in rows["parents"])


def test_the_author_can_be_another_model():
    by = {name: roster.Source(Fake.scripted(author), lambda name=name: Path(name)) for name in ("parent", "anchor")}
    pools = [small(count=2), small(count=2, model="anchor")]
    case = PromptsCase(*answered(), roster.Models(by), Arithmetic(), 1)

    own, other = (set(pool(case).collect()["model"]) for pool in pools)

    assert own.isdisjoint(other)
    assert [pool.opened_models() for pool in pools] == [{"parent"}, {"anchor"}]


def test_a_real_model_that_cannot_write_gives_malformed_rows(tiny_model, tmp_path):
    from tasks.engines.transformers import Transformers

    case = PromptsCase(*answered(), roster.one(Transformers(), tiny_model, cache=tmp_path), Arithmetic(), 1)
    rows = small(count=4, max_attempts=2, max_tokens=8)(case).collect()

    assert len(rows) == rows["id"].n_unique() == 8
    assert set(rows["error"]) == {"malformed: the domain cannot read it"}


def test_a_wish_reads_its_level_alone_and_sees_what_a_walk_through_the_pool_would():
    pool = [Problem(str(n), f"p{n}", n % 4, "model" if n % 3 else "seed") for n in range(30)]
    shelves = Shelves(pool[:20])
    shelves.add(pool[20:])
    for level in (0, 3, 7, None):
        own = shelves.of_level(level)
        for shelf, model in zip(own, (False, True), strict=True):
            every = [p for p in pool if (p.source == "model") == model]
            assert shelf == ([p for p in every if p.level == level] or every)
        assert all(one is same for one, same in zip(own, shelves.of_level(level), strict=True)), (
            "the pool was walked through"
        )
