"""Every table: its columns, key, checks and the metrics that are plain aggregates of it.

Chat columns are lists of struct<role, content>. Ids are content hashes, and every row carries its parents' ids, so a
training row can be walked back to the prompt, the model, the judges' verdicts and the filter's decision. A failed
generation or an unparsable verdict is a row with `error`. A check is an SQL predicate that every row must satisfy; a
write that breaks one fails with the offending rows named and leaves the old version in place.

This file is shared by all stages: an edit of it does not make stages stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import polars as pl

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SHARE = 16_384
"""Rows that one thread hashes at a time."""
ID, TEXT, NUMBER, INTEGER, FLAG = pa.string(), pa.string(), pa.float64(), pa.int32(), pa.bool_()


@dataclass(frozen=True)
class Table:
    """One table of a round: a folder of Parquet parts under its round's folder."""

    name: str
    doc: str
    schema: pa.Schema
    key: tuple[str, ...] = ("id",)
    """No two rows share it; its first column is never null (a measure over all levels has no `level`)."""
    checks: dict[str, str] = field(default_factory=dict)
    """By what it says: a predicate that is true of every row. Where null is allowed, it says so itself."""
    metrics: str | None = None
    """A SELECT over the table that gives rows of (metric name, value); runs when a stage has written it."""


def _table(name: str, doc: str, columns: dict[str, pa.DataType], **more: object) -> Table:
    return Table(name, doc, pa.schema(list(columns.items())), **more)  # type: ignore[arg-type]


prompts = _table(
    "prompts",
    "New problems, each with the chat that asks for its answer. A rejected one says why in `error`.",
    {
        "id": ID,
        "problem": TEXT,
        "prompt": CHAT,
        "level": INTEGER,
        "reference": TEXT,  # the right answer, only where a person gave one
        "source": TEXT,  # `seed` or `model`
        "parents": pa.list_(ID),  # the pool's problems that were shown to the author
        "model": TEXT,  # digest of the author's weights
        "error": TEXT,  # why it cannot be used: malformed, duplicate, contaminated …
    },
    checks={"usable or said why": "error is not null or (problem <> '' and len(prompt) > 0)"},
    metrics="""select 'prompts', count(*) from t where error is null
               union all select 'prompts_rejected/' || split_part(error, ':', 1), count(*) from t
               where error is not null group by all""",
)

responses = _table(
    "responses",
    "K sampled answers a prompt.",
    {
        "id": ID,
        "prompt_id": ID,
        "sample": INTEGER,
        "seed": pa.int64(),
        "response": TEXT,
        "answer": TEXT,  # the final answer in canonical form
        "tokens": INTEGER,
        "prompt_tokens": INTEGER,
        "finish_reason": TEXT,
        "logprob": NUMBER,  # sum of log p(token), nats
        "mean_logprob": NUMBER,
        "entropy": NUMBER,  # mean over tokens, nats
        "self_certainty": NUMBER,  # mean over tokens, nats
        "hinted": FLAG,  # a hint, reference answer or critique was in the context
        "model": TEXT,
        "error": TEXT,
    },
    checks={
        "logprob is a log-probability": "logprob is null or logprob <= 1e-3",
        "an error has no answer": "error is null or answer is null",
    },
    metrics="""select 'responses', count(*) from t union all select 'response_errors', count(error) from t
               union all select 'response_tokens', coalesce(sum(tokens), 0) from t
               union all select 'response_answered', count(answer) / greatest(count(*), 1) from t""",
)

judgments = _table(
    "judgments",
    "What each judge says of each response; `reward` marks the judge whose score is used.",
    {
        "id": ID,
        "response_id": ID,
        "prompt_id": ID,
        "judge": TEXT,
        "reward": FLAG,
        "score": NUMBER,  # higher is better; the scale is the judge's
        "verdict": TEXT,  # `pass`, `fail` or null where the judge only ranks
        "rationale": TEXT,
        "error": TEXT,
    },
    checks={
        "a score or an error": "(score is null) = (error is not null)",
        "verdict": "verdict is null or verdict in ('pass', 'fail')",
        "score is finite": "score is null or isfinite(score)",
    },
    metrics="""select 'judge_errors/' || judge, count(error) / count(*) from t group by judge
               union all select 'judge_score/' || judge, round(avg(score), 6) from t where score is not null
               group by judge""",
)

filtered = _table(
    "filtered",
    "Every response, kept or dropped, with the reason and by what margin.",
    {
        "id": ID,  # the response's
        "prompt_id": ID,
        "kept": FLAG,
        "reason": TEXT,  # which rule dropped it; null when kept
        "margin": NUMBER,  # by how much it missed that rule; the score's distance to the threshold when kept
        "score": NUMBER,  # the reward
    },
    checks={"kept or a reason": "kept = (reason is null)"},
    metrics="""select 'kept', coalesce(sum(kept::int), 0) from t
               union all select 'dropped/' || reason, count(*) from t where not kept group by reason""",
)

critiques = _table(
    "critiques",
    "The model's critiques of its own wrong answers, kept when refinements that read them succeed often enough.",
    {
        "id": ID,
        "response_id": ID,
        "prompt_id": ID,
        "prompt": CHAT,  # the critic's
        "critique": TEXT,
        "wrong_step": INTEGER,  # from 1; null when none was named
        "verdict": TEXT,  # of the critic on the answer
        "target": TEXT,  # the answer that a refinement must reach
        "refinements": INTEGER,
        "successes": INTEGER,
        "kept": FLAG,
        "model": TEXT,
        "error": TEXT,
    },
    checks={
        "successes": "successes between 0 and refinements",
        "errors are not kept": "not (kept and error is not null)",
    },
    metrics="""select 'critiques', count(*) from t union all select 'critiques_kept', coalesce(sum(kept::int), 0) from t
               union all select 'critique_errors', count(error) from t
               union all select 'refinement_success', coalesce(sum(successes) / nullif(sum(refinements), 0), 0) from t""",
)

refinements = _table(
    "refinements",
    "Answers written after reading a critique; the critique is not part of what is trained on.",
    {
        "id": ID,
        "critique_id": ID,
        "response_id": ID,  # the answer that was criticised
        "prompt_id": ID,
        "sample": INTEGER,
        "response": TEXT,
        "answer": TEXT,
        "success": FLAG,  # null when the refinement failed to be an answer
        "mean_logprob": NUMBER,
        "hinted": FLAG,
        "model": TEXT,
        "error": TEXT,
    },
    checks={"an error is never a negative": "error is null or success is null"},
)

pairs = _table(
    "pairs",
    "Preference pairs in TRL's columns: the chosen and the rejected completion of one prompt.",
    {
        "id": ID,
        "prompt_id": ID,
        "prompt": CHAT,
        "chosen": CHAT,
        "rejected": CHAT,
        "chosen_id": ID,
        "rejected_id": ID,
        "chosen_score": NUMBER,
        "rejected_score": NUMBER,
        "source": TEXT,  # `responses` or `refinements`: where the chosen one comes from
    },
    checks={"chosen is better": "chosen_score > rejected_score", "two answers": "chosen <> rejected"},
    metrics="""select 'pairs', count(*) from t union all select 'pairs/' || source, count(*) from t group by source
               union all select 'pair_margin', round(coalesce(avg(chosen_score - rejected_score), 0), 6) from t""",
)

training = _table(
    "training",
    "The rows that a round's model was fine-tuned on, in TRL's columns, with where each comes from.",
    {
        "id": ID,
        "prompt_id": ID,
        "response_id": ID,
        "model": TEXT,  # digest of the weights that wrote the completion
        "source": TEXT,  # `responses`, `refinements`, `critiques` or `replay`
        "prompt": CHAT,
        "completion": CHAT,
    },
    metrics="""select 'training_rows', count(*) from t
               union all select 'training_rows/' || source, count(*) from t group by source""",
)

evals = _table(
    "evals",
    "Answers to the frozen sets, greedy and sampled.",
    {
        "id": ID,
        "item": ID,  # content hash of the problem: the same in every round
        "split": TEXT,
        "mode": TEXT,  # `greedy`, `sampled`, `refined`
        "sample": INTEGER,
        "level": INTEGER,
        "problem": TEXT,
        "response": TEXT,
        "answer": TEXT,
        "correct": FLAG,  # null when the answer could not be checked
        "mean_logprob": NUMBER,
        "tokens": INTEGER,
        "error": TEXT,
    },
    checks={"mode": "mode in ('greedy', 'sampled', 'refined')"},
)

audits = _table(
    "audits",
    "Judges and critics on the gold set, whose right verdicts are known.",
    {
        "id": ID,
        "item": ID,
        "level": INTEGER,
        "judge": TEXT,
        "truth": FLAG,  # the answer is right
        "true_step": INTEGER,  # its first wrong step
        "score": NUMBER,
        "verdict": TEXT,
        "wrong_step": INTEGER,  # as the critic located it
        "error": TEXT,
    },
    checks={"verdict": "verdict is null or verdict in ('pass', 'fail')"},
)

measures = _table(
    "measures",
    "What the evaluation measured, with 95 % intervals, by level where it has levels.",
    {"name": TEXT, "level": INTEGER, "value": NUMBER, "low": NUMBER, "high": NUMBER, "count": INTEGER},
    key=("name", "level"),
    checks={"interval": "low is null or high is null or low <= high"},
)

decisions = _table(
    "decisions",
    "What each gate says of the round, and all of them together (`gate` = 'all').",
    {"gate": TEXT, "passed": FLAG, "value": NUMBER, "threshold": NUMBER, "reason": TEXT},
    key=("gate",),
    metrics="select 'promoted', passed::int from t where gate = 'all'",
)

TABLES: dict[str, Table] = {t.name: t for t in list(globals().values()) if isinstance(t, Table)}
"""Every table by name."""


def frame(table: Table, rows: Iterable[Mapping[str, Any]] = ()) -> pl.LazyFrame:
    """Rows as a frame with all of the table's columns; what a row leaves out is null."""
    import polars as pl

    none = pl.DataFrame(pa.Table.from_batches([], table.schema))  # `schema.empty_table()` imports pandas: 0.3 s
    return pl.DataFrame(list(rows), schema=none.schema).lazy()


def chats(column: pl.Series) -> list[tuple[tuple[str, str], ...]]:
    """A chat column as engines take chats: (role, content) pairs. A row without a chat has none."""
    turns = column.explode(empty_as_null=False, keep_nulls=False).struct.unnest().rows()
    ends = column.list.len().fill_null(0).cum_sum().to_list()
    return [tuple(turns[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def ids(*columns: str | pl.Expr) -> pl.Expr:
    """`content_id` of each row's values, for frames of millions of rows; null where one of the columns is."""
    import polars as pl

    return _hashed(columns, "id", "substr(sha256(x), 1, 16)", pl.String())


def seeds(*columns: str | pl.Expr) -> pl.Expr:
    """`seed_of` each row's values, as `ids` are of theirs."""
    import polars as pl

    return _hashed(columns, "seed", "(('0x' || substr(sha256(x), 1, 16))::ubigint >> 1)::bigint", pl.Int64())


def _hashed(columns: tuple[str | pl.Expr, ...], name: str, sql: str, kind: pl.DataType) -> pl.Expr:
    import duckdb
    import polars as pl

    def hashed(texts: pl.Series) -> pl.Series:
        batches = texts.alias("x").to_frame().to_arrow().to_batches(SHARE)
        rows = pa.Table.from_batches(batches, pa.schema([("x", pa.large_string())]))
        return duckdb.default_connection().cursor().from_arrow(rows).project(f"{sql} as y").pl()["y"]

    joined = pl.concat_str(columns, separator="\x1f")
    return joined.map_batches(hashed, return_dtype=kind, is_elementwise=True).alias(name)
