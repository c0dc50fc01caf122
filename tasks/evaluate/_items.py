"""Evaluation items, how they are put to a policy, and rows of answers to them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from tasks import engines
from tasks.core.ids import content_id, seed_of
from tasks.core.judging import grade
from tasks.domains import Domain, Item, Message, Split
from tasks.engines import Completion, Policy, Sampling

Row = dict[str, Any]
"""A row of `evals` or `audits` by column."""

ITEMS_SEED = 0
"""The items are `domain.items(split, count, ITEMS_SEED)`, whatever the round's seed is."""

GREEDY_SEED = 0
"""A greedy answer has no draw: one seed for all, so that the request cache finds it again."""


def eval_items(domain: Domain, split: Split, count: int) -> list[Item]:
    """The items of a split, each problem once: the same in every round."""
    return list({i.problem: i for i in domain.items(split, count, ITEMS_SEED)}.values())


def stratify(items: list[Item], count: int) -> list[Item]:
    """The first items of every level, `count` in all, the levels as even as they can be."""
    seen: Counter[int | None] = Counter()
    places = []
    for n, item in enumerate(items):
        places.append((seen[item.level], n))
        seen[item.level] += 1
    return [items[n] for n in sorted(n for _, n in sorted(places)[:count])]


def item_id(problem: str) -> str:
    """The id of an evaluation item: the same in every round."""
    return content_id("item", problem)


def ask(
    policy: Policy, chats: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int] | None = None
) -> list[Completion]:
    """A completion for each chat, in their order."""
    return engines.ask(policy, chats, sampling, seeds or [GREEDY_SEED] * len(chats))


def greedily(policy: Policy, domain: Domain, items: Sequence[Item], max_tokens: int) -> list[Row]:
    """The greedy answer to each item, as `answer_row`: the request that `answers` makes, too."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    completions = ask(policy, [domain.solve(i.problem) for i in items], sampling)
    return [answer_row(i, c, domain) for i, c in zip(items, completions, strict=True)]


def sampled(
    policy: Policy, domain: Domain, items: Sequence[Item], samples: int, sampling: Sampling, seed: int
) -> list[list[Row]]:
    """Several drawn answers to each item, as `answer_row`: the requests that `answers` makes, too."""
    draws = [(item, k) for item in items for k in range(samples)]
    seeds = [seed_of(seed, "evaluate", item.problem, k) for item, k in draws]
    completions = ask(policy, [domain.solve(item.problem) for item, _ in draws], sampling, seeds)
    rows = (answer_row(item, c, domain) for (item, _), c in zip(draws, completions, strict=True))
    return list(engines.batched(rows, samples))


def round_items(prompts: pl.LazyFrame | None, limit: int) -> list[Item]:
    """The first usable prompts of a round by id, which is a draw that all rows of it agree on."""
    if prompts is None:
        return []
    usable = prompts.filter(pl.col("error").is_null(), pl.col("problem").is_not_null()).sort("id").head(limit)
    return [Item(*row) for row in usable.select("problem", "level", "reference").collect().iter_rows()]


def trained_on(prompts: pl.LazyFrame | None, training: pl.LazyFrame | None) -> pl.LazyFrame | None:
    """The prompts of which some row was trained on."""
    if prompts is None or training is None:
        return None
    used = training.filter(pl.col("error").is_null()).select(id="prompt_id")
    return prompts.join(used, on="id", how="semi")


def answer_row(item: Item, completion: Completion, domain: Domain) -> Row:
    """The columns of `evals` that say what an answer is worth. One that failed has an error, and nothing else: no
    `response`, `correct` or `score`.
    """
    row = {"item": item_id(item.problem), "level": item.level, "problem": item.problem, "tokens": completion.tokens}
    if completion.error:
        return row | {"error": completion.error}
    statistics = {"mean_logprob": _mean_logprob(completion), "entropy": completion.entropy}
    return row | {"response": completion.text} | statistics | _checked(item, completion.text, domain)


def _checked(item: Item, text: str, domain: Domain) -> Row:
    answer, verdict = domain.answer(text), domain.verify(item.problem, text, item.reference)
    if answer is None:
        wrong = verdict.passed is not None or item.reference is not None
        return {
            "answer": None,
            "correct": False if wrong else None,
            "score": 0.0 if wrong else None,
            "error": "no answer",
        }
    return {"answer": answer, "correct": verdict.passed, "score": grade(verdict), "error": verdict.error}


def _mean_logprob(completion: Completion) -> float | None:
    return completion.logprob / completion.tokens if completion.logprob is not None and completion.tokens else None


def eval_row(digest: str, split: str, mode: str, sample: int, row: Row) -> Row:
    """A row of `evals` with its id; `digest` is that of the model that answered."""
    identity = content_id("eval", digest, row["item"], split, mode, sample, row.get("response") or "")
    return row | {"id": identity, "split": split, "mode": mode, "sample": sample, "model": digest}


def checked(rows: Sequence[Row]) -> list[Row]:
    """The rows of `evals` whose answer could be checked."""
    return [r for r in rows if r.get("correct") is not None]
