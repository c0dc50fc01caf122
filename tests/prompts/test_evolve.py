from collections import Counter

import polars as pl
import pytest

from tasks.core import frames, roster, tables
from tasks.core.ids import content_id
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.prompts import prompts
from tasks.prompts.evolve import Evolve, informativeness
from tasks.prompts.pool import learning_signals

DOMAIN = Arithmetic()
SMALL = {"validation": 20, "heldout": 70, "gold": 10}
PARENTS = [f"Tom has {n} pens.\nDay 1: 5 found\nDay 2: 3 lost\nHow many?" for n in (11, 12, 13)]
NAMES = [content_id(text, 0) for text in PARENTS]
TABLE = [
    {"id": name, "problem": text, "level": 2, "source": "model", "model": "m", "reference": "r"}
    for name, text in zip(NAMES, PARENTS, strict=True)
]


def votes(name, *answers):
    return [
        {
            "id": f"{name}{k}",
            "prompt_id": name,
            "answer": None if a == "!" else a,
            "error": "down" if a == "!" else None,
        }
        for k, a in enumerate(answers)
    ]


def test_informativeness_is_the_best_vote_share_less_the_mean():
    """Of 3 votes and 1: the mean reward is 3/4·3/4 + 1/4·1/4 = 5/8. Failed and answerless responses do not count."""
    rows = (
        votes("a", "1", "1", "1", "2", None, "!") + votes("b", "1", "1") + votes("c", "1", "2") + votes("d", None, "!")
    )
    rows += votes("e", "1", "1", "2", "3")
    assert informativeness(frames.frame(tables.responses, rows)) == pytest.approx(
        {"a": 3 / 4 - 5 / 8, "b": 0, "c": 0, "e": 1 / 2 - (1 / 4 + 1 / 16 + 1 / 16)}, abs=1e-6
    )


def test_an_answer_that_read_a_hint_has_no_vote():
    """Both others agree: 1 − 1. With the third it would be 2/3 − 5/9, and the signal of the level above 0."""
    *rows, last = votes("a", "1", "1", "2")
    responses = frames.frame(tables.responses, [*rows, last | {"hinted": True}])
    assert informativeness(responses) == {"a": 0}
    assert learning_signals(frames.frame(tables.prompts, [{"id": "a", "level": 2}]), responses) == {2: 0}


def rewriter(messages, seed):
    """Doubles or halves the things in the end, at random, after a first number at random."""
    last = ("doubled", "halved", f"{seed % 7 + 2} found")[seed % 3]
    return f"Tom has {seed % 9 + 2} pens.\nDay 1: {seed % 5 + 2} found\nDay 2: {last}\nHow many?"


def run(strategy, engine=None, parent=(), answers=()):
    given = frames.frame(tables.prompts, parent), frames.frame(tables.responses, answers)
    models = roster.one(engine or Fake.scripted(rewriter))
    return prompts({"evolve": strategy}, *given, models, DOMAIN, 1).frames["prompts"].collect()


def small(**fields):
    return Evolve(**{"count": 8, "batch": 8, "evaluation": SMALL} | fields)


def test_prompts_are_drawn_in_proportion_to_their_informativeness():
    """The second prompt twice as often as the third, the first never."""
    answers = votes(NAMES[0], "1", "1") + votes(NAMES[1], "1", "1", "1", "2") + votes(NAMES[2], *"11111112")
    assert informativeness(frames.frame(tables.responses, answers))[NAMES[2]] == pytest.approx(7 / 8 - 50 / 64)
    rows = run(small(originals=0, count=500, batch=1000, max_attempts=2), parent=TABLE, answers=answers)

    drawn = Counter(parent for [parent] in rows["parents"])
    assert set(drawn) == set(NAMES[1:])
    assert drawn[NAMES[1]] / len(rows) == pytest.approx(0.125 / (0.125 + 0.09375), abs=0.05)


def test_originals_are_mixed_in_as_they_were_and_none_is_written_again():
    rows = run(
        small(originals=0.25),
        Fake.scripted(lambda m, seed: PARENTS[seed % 3] if seed % 2 else rewriter(m, seed)),
        TABLE,
    )

    good = rows.filter(pl.col("error").is_null())
    assert len(good) == 8
    old = good.filter(pl.col("parents").list.len() == 0)
    assert len(old) == 2 and set(old["id"]) <= set(NAMES)
    assert old.select("level", "source", "model", "reference").unique().rows() == [(2, "model", "m", "r")]
    assert not set(PARENTS) & set(good.filter(pl.col("parents").list.len() > 0)["problem"])


@pytest.mark.parametrize("deeper", [0.0, 1.0])
def test_in_depth_or_in_breadth(deeper):
    seen = []
    run(small(deeper=deeper), Fake.scripted(lambda m, seed: seen.append(m) or rewriter(m, seed)), TABLE)
    wanted = [DOMAIN.mutate(text, "deeper" if deeper else "broader") for text in PARENTS]
    assert seen and {m[-1][1] for m in seen} <= {chat[-1]["content"] for chat in wanted}


def test_a_first_round_rewrites_the_domains_seeds():
    rows = run(small(seeds=21))
    seeds = {content_id(i.problem, 0) for i in DOMAIN.items("seeds", 21, 0)}
    rewritten = rows.filter(source="model")
    assert set(rewritten["parents"].list.len()) == {1} and set(rewritten["parents"].explode()) <= seeds
    assert rows.filter(pl.col("error").is_null())["source"].value_counts().sort("source").rows() == [
        ("model", 6),
        ("seed", 2),
    ]


def test_equal_runs_are_equal_and_failures_say_why():
    assert run(small(), parent=TABLE).equals(run(small(), parent=TABLE[::-1]))
    rows = run(small(originals=0), Fake(error_rate=0.5, garbage_rate=0.5), TABLE)
    assert set(rows["error"].str.split(":").list.first()) == {"failed", "malformed"}
    assert len(rows) == 32
