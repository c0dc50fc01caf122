"""Pieces of a large round: together they are what the whole would be, also where prompts compete, and each is small."""

import random
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tasks.core import frames, roster, tables
from tasks.core.plugin import load
from tasks.core.stage import stages
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.project import execute, pieces

PROMPTS, SAMPLES = 40, 5
STRATEGIES = {
    "limit a level": ("filter", "threshold", {"per_level": 3, "min_reward": 0.2, "per_prompt": 2}),
    "share of all": ("filter", "top_fraction", {"fraction": 0.29, "per_prompt": 2}),
    "hidden states": ("filter", "representation", {"count": 7, "per_prompt": 2}),
    "novelty": ("filter", "novelty", {"per_prompt": 2}),
    "weights of authors": ("judge", "collective", {}),
    "near-duplicates": ("judge", "near_duplicates", {"of": "response", "ngram": 1, "min_similarity": 0.5}),
    "own judge": ("judge", "self_judge", {"samples": 2, "temperature": 1.0}),
    "likelihoods": ("judge", "self_aligned", {}),
    "comparisons": ("judge", "win_rate", {}),
    "mean smoothing": ("pair", "consistency", {"judges": ["a", "b"], "averaged": True, "min_margin": 0.01}),
}
COMPARED = "limit a level", "share of all", "hidden states", "weights of authors", "near-duplicates", "mean smoothing"
"""Those that compare prompts."""
SUMMED = "weights of authors"
"""Whose scores are sums of floats, in an order that polars chooses anew for each table."""


class Counting(Fake):
    """Keeps how many requests came at once."""

    sizes: ClassVar[list[int]] = []

    @contextmanager
    def open(self, model, cache=None):
        with super().open(model, cache) as policy:

            def counted(call):
                return lambda asked, *more: self.sizes.append(len(asked)) or call(asked, *more)

            calls = {name: counted(getattr(policy, name)) for name in ("sample", "score", "embed")}
            yield SimpleNamespace(digest="", **calls)


def round_of(seed: int) -> dict[str, pl.LazyFrame]:
    """Tables of a round whose rewards and likelihoods are often equal, in no order."""
    rng = random.Random(seed)
    names = [f"p{n:02}" for n in rng.sample(range(100), PROMPTS)]
    prompts = [
        {"id": p, "problem": f"{p}?", "prompt": [{"role": "user", "content": p}], "level": rng.choice([1, 2, None])}
        for p in names
    ]
    responses = [
        {
            "id": f"{p}-{n}", "prompt_id": p, "response": f"{rng.choice('abc')} {p} {rng.random():.1f}",
            "answer": rng.choice(["1", "2", None]), "tokens": 5, "finish_reason": "stop", "model": "m",
            "mean_logprob": rng.choice([-1.0, -2.0, None]), "author": rng.choice(["parent", "base"]),
            "error": rng.choice([None] * 9 + ["failed"]),
        }
        for p in names
        for n in range(SAMPLES)
    ]  # fmt: skip
    responses = [row | ({"answer": None, "response": None} if row["error"] else {}) for row in responses]
    judgments = [
        {"id": f"{row['id']}{judge}", "response_id": row["id"], "prompt_id": row["prompt_id"], "member": judge,
         "reward": judge == "a", "score": rng.choice([0.0, 0.2, 0.5, 0.75, 1.0])}
        for row in responses
        for judge in ("a", "b")
    ]  # fmt: skip
    kept = {p: f"{p}-{rng.randrange(SAMPLES)}" for p in names}
    filtered = [
        {"id": row["id"], "prompt_id": row["prompt_id"], "kept": row["id"] == kept[row["prompt_id"]],
         "rank": 1 if row["id"] == kept[row["prompt_id"]] else None}
        for row in responses
    ]  # fmt: skip
    made = {"prompts": prompts, "responses": responses, "judgments": judgments, "filtered": filtered, "refinements": []}
    return {name: frames.frame(tables.TABLES[name], rng.sample(rows, len(rows))) for name, rows in made.items()}


def run(name: str, seed: int) -> tuple[pl.DataFrame, list[int], list[dict[str, Any]]]:
    """The rows of a strategy's stage in order, the sizes of its requests, and the calls of the stage's function."""
    stage_name, strategy, params = STRATEGIES[name]
    stage, calls = stages()[stage_name], []
    Counting.sizes.clear()
    own = load(stage_name, strategy)(**params)
    engine = Counting(answers={"": "Verdict: correct"}) if strategy != "win_rate" else Counting()
    models = roster.one(engine, roster.SERVED, "parent", "base")
    options = stage.options and stage.options(reward=strategy)
    context = {"members": {strategy: own}, "strategy": own, "options": options, "models": models, "domain": Arithmetic(),
               "seed": 1, "overviews": None}  # fmt: skip
    arguments = {k: v for k, v in context.items() if k in stage.context}
    rows = round_of(seed)
    arguments |= {i.argument: rows.get(i.argument) for i in stage.inputs if not i.opened}
    function = stage.function
    counted = SimpleNamespace(
        **{**vars(stage), "function": lambda **given: calls.append(given) or function(**given)},
        first_pass_arguments=stage.first_pass_arguments,
    )
    made = execute._as_result(stage, execute._call(counted, arguments)).frames[stage.tables[0].name]
    parts = [made] if isinstance(made, pl.LazyFrame) else list(made)
    return pl.concat([part.collect() for part in parts]).sort(stage.tables[0].key), [*Counting.sizes], calls


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("rows", [10, 33])
def test_the_rows_of_all_pieces_are_those_of_the_whole(name, rows, monkeypatch):
    for seed in range(2):
        whole, _, calls = run(name, seed)
        assert len(calls) == 1
        assert len(whole) > 5
        with monkeypatch.context() as small:
            small.setattr(pieces, "MAX_ROWS", rows)
            small.setattr(pieces, "IDS_PER_PIECE", 1)
            made, sizes, calls = run(name, seed)
        assert len(calls) > 4
        assert_frame_equal(made, whole, check_exact=name != SUMMED, rel_tol=1e-12)
        assert all(size <= 12 * rows for size in sizes)  # two samples a response, or each against four others twice


def test_a_second_pass_gets_its_own_prompts_of_the_overview_alone(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_ROWS", 20)
    monkeypatch.setattr(pieces, "IDS_PER_PIECE", 1)
    for name in COMPARED:
        _, _, calls = run(name, 0)
        given = [call["overviews"] for call in calls]
        assert all(len(overview) == 1 for overview in given)
        for call, [overview] in zip(calls, (g.values() for g in given), strict=True):
            if "prompt_id" in overview.columns:
                assert set(overview["prompt_id"]) <= set(call["responses"].collect()["prompt_id"])


def test_where_models_are_asked_pieces_have_no_more_rows_than_python_can_hold(monkeypatch):
    monkeypatch.setattr(pieces, "IDS_PER_PIECE", 1)
    monkeypatch.setattr(pieces, "MAX_ROWS", 64)
    monkeypatch.setattr(pieces, "MAX_REQUESTS", 16)
    asking, counting = (len(run(name, 0)[2]) for name in ("own judge", "limit a level"))
    assert asking >= 3 * counting
