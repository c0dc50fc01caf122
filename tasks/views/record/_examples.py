"""What people look at one by one: items of the exam that a round won or lost, and answers on which its judges disagree."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import store
from tasks.core.labels import text_digest
from tasks.project.params import Block
from tasks.views._diff_outcomes import exam, exams
from tasks.views.record._facts import Manifests

ITEM, DISPUTED = "exam item", "disputed verdict"
"""Kinds of examples, as the tag `kind` of traces names them."""
MAX_ITEMS = 100
"""Items of a round that were won, and as many that were lost."""
MAX_DISPUTED = 50
"""Answers of a round whose verdicts are disputed."""


@dataclass(frozen=True)
class Verdict:
    """What a judge, or a comparison, says of an answer."""

    name: str
    value: bool | float | str
    source: str
    is_model: bool = False
    rationale: str | None = None


@dataclass(frozen=True)
class Example:
    """A problem with an answer, and what is said of it."""

    kind: str
    key: str
    """Names it within its round."""
    title: str
    problem: str
    answers: dict[str, str | None]
    """Who answered → the answer; the last one is what the verdicts are about."""
    verdicts: list[Verdict]
    tags: dict[str, str] = field(default_factory=dict)


def items_key(root: Path, block: Block, manifests: Manifests) -> str | None:
    """Digest of what `items` reads; None before both the round and its parent sat the exam."""
    if block.parent is None or "evaluate" not in manifests or not store.has(root, block.parent, "evals"):
        return None
    own = manifests["evaluate"].outputs["evals"].digest
    return store.digest([("old", store.find(root, block.parent, "evals")[1].digest), ("new", own)])


def items(root: Path, block: Block, limit: int = MAX_ITEMS) -> list[Example]:
    """Items of the exam's first set (held-out problems, sampled, where there are such) on which the round's rate of right
    answers differs from its parent's: those lost by most first, then those won. The answer shown is the round's worst of a
    lost item and its best of a won one.
    """
    parent = str(block.parent)
    before, after = (store.scan(root, name, "evals")[0] for name in (parent, block.name))
    first = next(iter(exams(before, after, 0)), None)
    if first is None:
        return []
    compared = exam(before, after, first.member, first.split, first.mode, limit)
    examples = []
    for item in compared.examples if compared else []:
        change = "won" if item.new > item.old else "lost"
        source = f"{first.member}, {first.split}, {first.mode}"
        verdicts = [
            Verdict("change", change, source),
            Verdict("accuracy", item.new, source),
            Verdict("accuracy_before", item.old, source),
        ]
        tags = {"round": block.name, "item": item.item, "change": change} | (
            {} if item.level is None else {"level": str(item.level)}
        )
        answers = {parent: item.old_response, block.name: item.new_response}
        examples.append(
            Example(ITEM, item.item, f"{change} by {block.name}", item.problem or "", answers, verdicts, tags)
        )
    return examples


def disputed(root: Path, block: Block, limit: int = MAX_DISPUTED) -> list[Example]:
    """Answers that one judge passes and another fails: those with the most judges on the smaller side first, one of a prompt."""
    judgments = store.scan(root, block.name, "judgments")[0].filter(pl.col("verdict").is_not_null())
    votes = judgments.group_by("prompt_id", "response_id").agg(
        passed=(pl.col("verdict") == "pass").sum(), failed=(pl.col("verdict") == "fail").sum()
    )
    smaller = pl.min_horizontal("passed", "failed")
    chosen = (
        votes.filter(smaller > 0)
        .sort(-smaller.cast(pl.Int64), "response_id")
        .unique("prompt_id", keep="first", maintain_order=True)
        .head(limit)
        .select("response_id")
        .collect()
    )
    said = judgments.join(chosen.lazy(), on="response_id", how="semi").sort("response_id", "member").collect()
    by_response = {str(id): rows for (id,), rows in said.group_by("response_id")}
    return list(_disputed(root, block, chosen["response_id"].to_list(), by_response))


def _disputed(root: Path, block: Block, ids: list[str], judgments: dict[str, pl.DataFrame]) -> Iterator[Example]:
    responses = store.scan(root, block.name, "responses")[0].filter(pl.col("id").is_in(ids))
    prompts = store.scan(root, block.name, "prompts")[0].select("id", "problem", "level")
    rows = responses.join(prompts, left_on="prompt_id", right_on="id").collect()
    by_id = {row["id"]: row for row in rows.iter_rows(named=True)}
    judges = block.values.get("judge", {})

    def is_model(judgment: dict[str, Any]) -> bool:
        return judges.get(judgment["member"], {}).get("strategy", judgment["member"]) != "verifier"

    for id in (i for i in ids if i in by_id):
        row = by_id[id]
        verdicts = [
            Verdict(
                j["member"], j["verdict"] == "pass", "reward" if j["reward"] else "judge", is_model(j), j["rationale"]
            )
            for j in judgments[id].iter_rows(named=True)
        ]
        digest = text_digest(row["problem"], row["response"])
        tags = {"round": block.name, "response_id": id, "prompt_id": row["prompt_id"], "text_digest": digest}
        problem, answer = row["problem"] or "", {row["author"] or "model": row["response"]}
        yield Example(DISPUTED, id, f"disputed in {block.name}", problem, answer, verdicts, tags)
