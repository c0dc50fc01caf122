"""Runs one filter in its stage on responses that are written short, with an engine whose vectors are given."""

from collections.abc import Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from tasks.core import frames, roster, tables
from tasks.engines import Embedded
from tasks.engines.fake import Fake
from tasks.filter import filter as filtering


class Vectors(Fake):
    """Reads a text as the vector given for it; one without is an error."""

    vectors: dict[str, tuple[float, ...]] = {}

    @contextmanager
    def open(self, model, cache=None):
        def embed(texts):
            assert texts == sorted(set(texts))
            for n, text in reversed(list(enumerate(texts))):
                known = self.vectors.get(text)
                yield n, Embedded(error="too long") if known is None else Embedded(known)

        yield SimpleNamespace(digest="", embed=embed)


def response(name: str, score: float | None, verdict: str | None = None, text: str = "", **more: Any) -> dict[str, Any]:
    """A response whose prompt is its first letter."""
    row = {"id": name, "prompt_id": name[0], "response": text or name, "answer": "1", "tokens": 9}
    return row | {"finish_reason": "stop", "mean_logprob": -1.0, "score": score, "verdict": verdict} | more


def decide(
    strategy: Any,
    rows: list[dict[str, Any]],
    vectors: Mapping[str, tuple[float, ...]] | None = None,
    others: Mapping[str, Mapping[str, float]] | None = None,
    models: roster.Models | None = None,
) -> dict[str, dict[str, Any]]:
    """The stage's rows by id; `others` are the scores of other judges."""
    judgments = [
        {"id": f"r{r['id']}", "response_id": r["id"], "member": "r", "reward": True}
        | {k: r[k] for k in ("score", "verdict")}
        for r in rows
    ]
    judgments += [
        {"id": f"{judge}{id}", "response_id": id, "member": judge, "reward": False, "score": score}
        for judge, scores in (others or {}).items()
        for id, score in scores.items()
    ]
    responses = [{k: v for k, v in row.items() if k not in ("score", "verdict")} for row in rows]
    made = filtering(
        strategy,
        frames.frame(tables.prompts),
        frames.frame(tables.responses, responses),
        frames.frame(tables.judgments, judgments),
        models or roster.one(Vectors(vectors=dict(vectors or {}))),
    ).collect()
    assert made.schema == frames.frame(tables.filtered).collect_schema()
    return {row["id"]: row for row in made.to_dicts()}


def reasons(decisions: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {id: row["reason"] for id, row in decisions.items()}


def ranks(decisions: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {id: row["rank"] for id, row in decisions.items() if row["kept"]}
