"""Near-duplicates: found by bands of MinHash, confirmed by the runs of words themselves."""

import random
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import frames, roster, tables
from tasks.engines.fake import Fake
from tasks.judge import JudgeOptions, _minhash, judge
from tasks.judge._minhash import buckets, near, runs, sketch
from tasks.judge.near_duplicates import NearDuplicates

PENS = "Tom has three pens and buys four more pens at the shop, how many pens does Tom have now"


def judged(problems, member, responses=1):
    """Score, verdict and rationale by response; `problems` by their prompts' ids."""
    prompts = [
        {"id": p, "problem": text, "prompt": [{"role": "user", "content": text}]} for p, text in problems.items()
    ]
    rows = [
        {"id": f"{p}-{n}", "prompt_id": p, "response": f"{problems.get(p, '')} so {n}"}
        for p in sorted({*problems, "gone"})
        for n in range(responses)
    ]
    made = judge(
        {"near_duplicates": member}, JudgeOptions(reward="near_duplicates"), frames.frame(tables.prompts, prompts),
        frames.frame(tables.responses, rows), models=roster.one(Fake(down=True)), domain=None, seed=1,
    )  # fmt: skip
    columns = ("response_id", "score", "verdict", "rationale", "error")
    return {name: tuple(row) for name, *row in made.select(columns).collect().iter_rows()}


def table(texts) -> pl.DataFrame:
    return pl.DataFrame(
        [(f"{n:04}", f"p{n:04}", text) for n, text in enumerate(texts)],
        schema=["id", "prompt_id", "text"],
        orient="row",
    )


def found(texts, size=5, least=0.8) -> dict[int, int]:
    """By number, what each near-duplicate is near to."""
    rows = near(sketch(table(texts), size).lazy(), size, least)
    return {int(name): int(twin) for name, twin in rows.select("id", "twin").iter_rows()}


def jaccard(a: str, b: str, size: int) -> float:
    """Of the runs of words, spelled out."""
    first, second = ({tuple(t.split()[i : i + size]) for i in range(max(1, len(t.split()) - size + 1))} for t in (a, b))
    return len(first & second) / len(first | second)


def templates(count: int) -> list[str]:
    """Fillings of one template, near none other: about half of their runs are equal."""
    rng = random.Random(4)
    text = (
        "A baker at the corner of the old market gets up before the sun does and bakes bread for the whole street. On day {} he sells "
        "loaves to {} people, at two coins each, and gives what is left to the poor. How much does he earn?"
    )
    return [text.format(rng.randrange(10**6), rng.randrange(10**6)) for _ in range(count)]


def test_one_of_several_stays():
    twin = PENS.replace("now", "today")  # of 16 and 17 runs of 5 tokens, 15 are equal
    result = judged({"a": PENS, "b": "Another question", "c": twin.upper() + "?"}, NearDuplicates(), responses=2)
    assert result["a-0"] == result["b-1"] == (1.0, "pass", None, None)
    assert result["c-0"] == result["c-1"] == (0.0, "fail", "near a: 0.833 of the runs of 5 tokens", None)
    assert result["gone-0"][0] is None
    assert "not in the table of prompts" in result["gone-0"][3]


def test_responses_are_compared_over_prompts():
    result = judged({"a": PENS, "b": PENS, "c": "Something else"}, NearDuplicates(of="response"), responses=1)
    assert [result[name][0] for name in ("a-0", "b-0", "c-0", "gone-0")] == [1.0, 0.0, 1.0, 1.0]


def test_what_is_near_a_dropped_one_alone_stays():
    """Each text differs from the one before it by one run more."""
    first, second, third = (["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] for _ in range(3))
    second[0], third[0], third[9] = "x", "x", "y"
    texts = [" ".join(t) for t in (first, second, third)]
    assert [round(jaccard(a, b, 1), 3) for a, b in combinations(texts, 2)] == [0.818, 0.667, 0.818]
    assert found(texts, 1, 0.8) == {1: 0}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 + 4", "3 - 4"),
        ("What is 2.5?", "What is 2 5?"),
        ("-5", "5"),
        ("x < 5", "x > 5"),
        ("$$", "∫∂"),
        ("一加二", "一减二"),
        ("", "?"),
    ],
)
def test_signs_and_ideographs_count(one, other):
    assert found([one, other], 1, 0.99) == {}
    assert found([one, f" {one.upper()} "], 1, 1) == {1: 0}


def test_fillings_of_a_template_are_compared_with_some_of_each_other(monkeypatch):
    monkeypatch.setattr(_minhash, "CROWD", 20)
    monkeypatch.setattr(_minhash, "CANDIDATES", 5)
    compared, similarities = [], _minhash._similarities
    monkeypatch.setattr(
        _minhash, "_similarities", lambda own, others: compared.append(len(others)) or similarities(own, others)
    )
    texts = templates(300)
    twins = found([*texts, texts[7] + " Say it."], 5, 0.9)
    assert twins.get(300) in (7, None)
    assert set(twins) <= {300}
    assert max(compared) == 5


@given(st.lists(st.text("ab c", max_size=12), max_size=25), st.integers(1, 3), st.floats(0.3, 1))
def test_none_is_dropped_wrongly_and_no_copy_stays(texts, size, least):
    twins = found(texts, size, least)
    assert not set(twins) & set(twins.values())  # what a text is near to stays
    for name, twin in twins.items():
        assert twin < name
        assert jaccard(texts[name], texts[twin], size) >= least
    stays = [" ".join(text.split()) for n, text in enumerate(texts) if n not in twins]
    assert len(set(stays)) == len(stays)


def test_nearly_all_near_pairs_share_a_bucket():
    """1 − (1 − s⁶)²⁰ is 0.998 at 0.8; and at 0.5, where it is 0.27, comparison decides."""
    rng = random.Random(0)
    words = [f"w{n}" for n in range(5000)]
    pairs = []
    for changed in (1, 5):
        for _ in range(400):
            text = rng.sample(words, 18)
            other = text[: 18 - changed] + rng.sample(words, changed)
            pairs.append((" ".join(text), " ".join(other)))
    shared = [bool(set(buckets(runs(a, 1))) & set(buckets(runs(b, 1)))) for a, b in pairs]
    near, far = np.array(shared[:400]), np.array(shared[400:])
    similarity = 17 / 19
    assert near.mean() >= 1 - (1 - similarity**6) ** 20 - 0.01
    similarity = 13 / 23
    assert abs(far.mean() - (1 - (1 - similarity**6) ** 20)) < 0.08


@pytest.mark.parametrize("at_once", [7, 2**18])
def test_the_order_and_the_cut_do_not_matter(at_once, monkeypatch, tmp_path):
    monkeypatch.setattr(_minhash, "COUNTED", at_once)
    monkeypatch.setattr(_minhash, "COMPARED", at_once)
    sizes, compared = [], _minhash._compared
    monkeypatch.setattr(_minhash, "_compared", lambda *a: sizes.append(len(a[1])) or compared(*a))
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdef", k=6)) for _ in range(300)]
    whole = near(sketch(table(texts), 2).lazy(), 2, 0.6)
    rows = table(texts).sample(fraction=1, shuffle=True, seed=2)
    for n, part in enumerate(rows.iter_slices(40)):
        sketch(part, 2).write_parquet(tmp_path / f"{n}.parquet")
    cut = near(pl.scan_parquet(tmp_path / "*.parquet"), 2, 0.6)
    assert len(whole) > 20
    assert (len(sizes) > 9) == (at_once == 7)
    assert cut.sort("id").equals(whole.sort("id"))
