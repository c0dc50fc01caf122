"""Every table: its columns, key, checks and the metrics that are plain aggregates of it.

Chat columns are lists of struct<role, content>. Ids are content hashes, and every row carries its parents' ids, so a
training row can be walked back to the prompt, the model, the judges' verdicts and the filter's decision. A failed
generation or an unparsable verdict is a row with `error`. A check is an SQL predicate that every row must satisfy; a
write that breaks one fails with the offending rows named and leaves the old version in place.

`member` is the name under which the recipe has the strategy that made the row. The plan of a stage holds the digests of
the tables that it writes, so an edit of one table makes only its writers stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SPANS = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32())]))
ID, TEXT, NUMBER, INTEGER, FLAG = pa.string(), pa.string(), pa.float64(), pa.int32(), pa.bool_()

COMMON = {
    "id": "hash of the row's content and of its parents' ids",
    "member": "the name under which the recipe or exam has the strategy that made the row",
    "prompt_id": "the prompt's `id`",
    "response_id": "the response's `id`",
    "critique_id": "the critique's `id`",
    "chosen_id": "the `id` of the response or refinement that is preferred",
    "rejected_id": "the `id` of the other one",
    "item": "hash of the problem's content: the same in every round",
    "problem": "the problem's text",
    "prompt": "the chat that was sent",
    "chosen": "the preferred completion, as a chat",
    "rejected": "the other completion, as a chat",
    "completion": "what is learned, as a chat",
    "chosen_score": "the reward of the preferred one",
    "rejected_score": "the reward of the other one",
    "level": "difficulty, where the domain has levels",
    "split": "frozen set: `validation`, `heldout` or `gold`",
    "sample": "number of the draw, from 0",
    "seed": "of the draw",
    "response": "the answer's text",
    "answer": "the final answer in canonical form; null where none was found",
    "tokens": "tokens generated",
    "prompt_tokens": "tokens of the prompt",
    "finish_reason": "`stop`, or `length` where it was cut off",
    "mean_logprob": "mean of log p(token), nats",
    "reward": "whether this judge's score is the round's reward",
    "rationale": "the judge's text",
    "critique": "the critic's text",
    "judge": "the judge's or critic's member",
    "score": "the judge's score",
    "verdict": "`pass`, `fail` or null",
    "kept": "whether it is used further",
    "refinements": "refinements that read the critique",
    "successes": "those that reached the target",
    "hinted": "whether a hint, reference answer or critique was in the context",
    "model": "digest of the weights that wrote the row",
    "error": "why the row cannot be used; null where it can",
    "name": "of the measure, such as `pass_at_1`; `metrics` says what it means",
    "value": "the measure's or gate's value",
    "low": "lower end of the 95 % interval",
    "high": "upper end of the 95 % interval",
    "count": "items or answers that it was measured on",
    "gate": "the gate's name; `all` is the decision of all together",
    "passed": "whether the gate lets the round pass",
    "threshold": "what the value is held against",
    "reason": "why, in words",
}
"""What columns of these names hold where a table says nothing of its own."""


@dataclass(frozen=True)
class Table:
    """One table of a round: a folder of Parquet parts under its round's folder."""

    name: str
    doc: str
    schema: pa.Schema
    key: tuple[str, ...] = ("id",)
    """No two rows share it; its first column is never null (a measure over all levels has no `level`)."""
    checks: dict[str, str] = field(default_factory=dict)
    """Description → SQL predicate that must be true of every row. Null fails, so a predicate that allows null says so."""
    metrics: str | None = None
    """SELECT over the table that returns rows of (metric name, value); runs when a stage has written the table."""
    docs: dict[str, str] = field(default_factory=dict)
    """Column → what it holds, for people: no part of the table's digest."""


def _table(name: str, doc: str, columns: Mapping[str, pa.DataType | tuple[pa.DataType, str]], **more: object) -> Table:
    typed = {column: value if isinstance(value, tuple) else (value, "") for column, value in columns.items()}
    schema = pa.schema([(column, kind) for column, (kind, _) in typed.items()])
    docs = {column: text or COMMON.get(column, "") for column, (_, text) in typed.items()}
    return Table(name, doc, schema, docs=docs, **more)  # type: ignore[arg-type]


prompts = _table(
    "prompts",
    "New problems, each with the chat that asks for its answer. A rejected one says why in `error`.",
    {
        "id": ID,
        "member": TEXT,
        "problem": TEXT,
        "prompt": CHAT,
        "level": INTEGER,
        "reference": (TEXT, "the right answer, only where a person gave one"),
        "source": (TEXT, "`seed` or `model`"),
        "parents": (pa.list_(ID), "the pool's problems that were shown to the author"),
        "model": (TEXT, "digest of the author's weights"),
        "error": (TEXT, "why it cannot be used: malformed, duplicate, contaminated …"),
    },
    checks={"usable or an error": "error is not null or (problem <> '' and len(prompt) > 0)"},
    metrics="""select 'prompts', count(*) from t where error is null
               union all select 'prompts_rejected/' || split_part(error, ':', 1), count(*) from t
               where error is not null group by all""",
)

responses = _table(
    "responses",
    "K sampled answers a prompt.",
    {
        "id": ID,
        "member": TEXT,
        "prompt_id": ID,
        "sample": INTEGER,
        "seed": pa.int64(),
        "response": TEXT,
        "answer": (TEXT, "the final answer in canonical form"),
        "tokens": INTEGER,
        "prompt_tokens": INTEGER,
        "finish_reason": TEXT,
        "logprob": (NUMBER, "sum of log p(token), nats"),
        "mean_logprob": NUMBER,
        "entropy": (NUMBER, "mean over tokens, nats"),
        "self_certainty": (NUMBER, "mean over tokens, nats"),
        "hinted": (FLAG, "a hint, reference answer or critique was in the context"),
        "author": (TEXT, "the name by which the round opened the model that answered: `parent`, `base`, a roster's …"),
        "model": (TEXT, "digest of its weights"),
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
    "The score and verdict of each judge on each response; `reward` marks the judge whose score is used.",
    {
        "id": ID,
        "response_id": ID,
        "prompt_id": ID,
        "member": (TEXT, "the judge"),
        "reward": FLAG,
        "score": (NUMBER, "higher is better; the scale is the judge's"),
        "verdict": (TEXT, "`pass`, `fail` or null where the judge only ranks"),
        "rationale": TEXT,
        "error": TEXT,
    },
    checks={
        "a score or an error": "(score is null) = (error is not null)",
        "verdict": "verdict is null or verdict in ('pass', 'fail')",
        "score is finite": "score is null or isfinite(score)",
    },
    metrics="""select 'judge_errors/' || member, count(error) / count(*) from t group by member
               union all select 'judge_score/' || member, round(avg(score), 6) from t where score is not null
               group by member""",
)

filtered = _table(
    "filtered",
    "Every response, kept or dropped, with reason and margin.",
    {
        "id": (ID, "the response's"),
        "prompt_id": ID,
        "kept": FLAG,
        "rank": (
            INTEGER,
            "its place among the kept ones of its prompt, 1 the best: whose answer is the prompt's target",
        ),
        "reason": (TEXT, "which rule dropped it; null when kept"),
        "margin": (NUMBER, "by how much it missed that rule; the score's distance to the threshold when kept"),
        "score": (NUMBER, "the reward"),
    },
    checks={"kept or a reason": "kept = (reason is null)", "the kept are ranked": "kept = (rank is not null)"},
    metrics="""select 'kept', coalesce(sum(kept::int), 0) from t
               union all select 'dropped/' || reason, count(*) from t where not kept group by reason""",
)

critiques = _table(
    "critiques",
    "The model's critiques of its own wrong answers, kept when refinements that read them succeed often enough.",
    {
        "id": ID,
        "member": TEXT,
        "response_id": ID,
        "prompt_id": ID,
        "prompt": (CHAT, "the critic's"),
        "critique": TEXT,
        "wrong_step": (INTEGER, "from 1; null when none was named"),
        "verdict": (TEXT, "of the critic on the answer"),
        "target": (TEXT, "the answer that a refinement must reach"),
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
        "member": TEXT,
        "critique_id": ID,
        "response_id": (ID, "the answer that was criticised"),
        "prompt_id": ID,
        "sample": INTEGER,
        "response": TEXT,
        "answer": TEXT,
        "success": (FLAG, "null when the refinement failed to be an answer"),
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
        "member": TEXT,
        "prompt_id": ID,
        "prompt": CHAT,
        "chosen": CHAT,
        "rejected": CHAT,
        "chosen_id": ID,
        "rejected_id": ID,
        "chosen_score": NUMBER,
        "rejected_score": NUMBER,
        "chosen_model": (TEXT, "digest of the weights that wrote the preferred one"),
        "rejected_model": (TEXT, "digest of the weights that wrote the other one"),
        "weight": (NUMBER, "of the pair in the loss"),
        "smoothing": (NUMBER, "probability that the pair is the wrong way round"),
        "judge": (TEXT, "whose scores these are: the round's reward"),
        "source": (TEXT, "`responses` or `refinements`: where the chosen one comes from"),
    },
    checks={
        "chosen is better": "chosen_score > rejected_score",
        "two answers": "chosen <> rejected",
        "weight": "weight >= 0 and isfinite(weight)",
        "smoothing": "smoothing between 0 and 1",
    },
    metrics="""select 'pairs', count(*) from t union all select 'pairs/' || source, count(*) from t group by source
               union all select 'pair_margin', round(coalesce(avg(chosen_score - rejected_score), 0), 6) from t""",
)

training = _table(
    "training",
    "Rows that a round's model is fine-tuned on, in TRL's columns, with the source of each.",
    {
        "id": ID,
        "member": TEXT,
        "prompt_id": ID,
        "response_id": (ID, "of the response, refinement or critique that the completion is"),
        "model": (TEXT, "digest of the weights that wrote the completion"),
        "source": (TEXT, "`responses`, `refinements`, `critiques` or `replay`"),
        "prompt": CHAT,
        "completion": CHAT,
        "weight": (NUMBER, "of the row in the loss"),
        "tag": (TEXT, "put before the completion's text where a method asks for one"),
        "label": (FLAG, "whether the completion is desirable; null where a method knows no such thing"),
        "reward": (NUMBER, "as the round's judge scored it"),
        "group": (ID, "rows that are compared with each other, as the samples of one prompt"),
        "mask": (SPANS, "characters of the completion that the loss leaves out"),
        "tokens": (INTEGER, "of prompt and completion together, as the start model's tokenizer counts them"),
        "error": (TEXT, "why it is not trained on, such as `long: …`"),
    },
    checks={"weight": "weight >= 0 and isfinite(weight)"},
    metrics="""select 'training_rows', count(*) from t where error is null
               union all select 'training_rows/' || source, count(*) from t where error is null group by source
               union all select 'training_dropped/' || split_part(error, ':', 1), count(*) from t
               where error is not null group by all""",
)

preferences = _table(
    "preferences",
    "The pairs that a round's model is trained on, in TRL's columns, with their weights.",
    {
        "id": ID,
        "member": TEXT,
        "prompt_id": ID,
        "chosen_id": ID,
        "rejected_id": ID,
        "source": (TEXT, "as in `pairs`"),
        "prompt": CHAT,
        "chosen": CHAT,
        "rejected": CHAT,
        "weight": (NUMBER, "of the pair in the loss"),
        "smoothing": (NUMBER, "probability that the pair is the wrong way round"),
        "tokens": (INTEGER, "of the prompt and the longer completion"),
        "error": (TEXT, "why it is not trained on"),
    },
    checks={
        "weight": "weight >= 0 and isfinite(weight)",
        "smoothing": "smoothing between 0 and 1",
        "two answers": "chosen <> rejected",
    },
    metrics="""select 'preferences', count(*) from t where error is null
               union all select 'preferences_dropped/' || split_part(error, ':', 1), count(*) from t
               where error is not null group by all""",
)

evals = _table(
    "evals",
    "Answers to the frozen sets, greedy and sampled.",
    {
        "id": ID,
        "member": TEXT,
        "item": (ID, "content hash of the problem: the same in every round"),
        "split": TEXT,
        "mode": (TEXT, "`greedy`, `sampled`, `refined`"),
        "sample": INTEGER,
        "level": INTEGER,
        "problem": TEXT,
        "response": TEXT,
        "answer": TEXT,
        "correct": (FLAG, "null when the answer could not be checked"),
        "score": (NUMBER, "grade in [0, 1]: of the check, or of the examiner where nothing can be checked"),
        "mean_logprob": NUMBER,
        "entropy": (NUMBER, "mean over tokens, nats"),
        "tokens": INTEGER,
        "model": (TEXT, "digest of the weights that answered"),
        "error": TEXT,
    },
    checks={
        "mode": "mode in ('greedy', 'sampled', 'refined')",
        "score": "score is null or score between 0 and 1",
    },
)

audits = _table(
    "audits",
    "Judges and critics on the gold set, whose right verdicts are known.",
    {
        "id": ID,
        "member": TEXT,
        "item": ID,
        "level": INTEGER,
        "judge": TEXT,
        "truth": (FLAG, "the answer is right"),
        "true_step": (INTEGER, "its first wrong step"),
        "score": NUMBER,
        "verdict": TEXT,
        "wrong_step": (INTEGER, "as the critic located it"),
        "error": TEXT,
    },
    checks={"verdict": "verdict is null or verdict in ('pass', 'fail')"},
)

measures = _table(
    "measures",
    "Measures of the evaluation with 95 % intervals, also by level where the domain has levels.",
    {"name": TEXT, "level": INTEGER, "value": NUMBER, "low": NUMBER, "high": NUMBER, "count": INTEGER},
    key=("name", "level"),
    checks={"interval": "low is null or high is null or low <= high"},
)

decisions = _table(
    "decisions",
    "The decision of each gate on the round, and of all together (`gate` = 'all').",
    {"gate": TEXT, "passed": FLAG, "value": NUMBER, "threshold": NUMBER, "reason": TEXT},
    key=("gate",),
    metrics="select 'promoted', passed::int from t where gate = 'all'",
)

TABLES: dict[str, Table] = {t.name: t for t in list(globals().values()) if isinstance(t, Table)}
"""Every table by name."""
