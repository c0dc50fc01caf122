"""Warnings of a stage whose rows are of little use: what it wrote is looked through once, whichever strategies made it.

A stage warns when it kept nothing, when most of what its models wrote or read failed, or when most of an author's
problems were turned away: each time with the most frequent reason and an example, the first by id.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import polars as pl

MOST = 0.5
"""Share of failed rows above which a stage warns."""
MOST_PROMPTS = 2 / 3
"""That of an author's problems. Authors sample until they have enough: half of what they write may be turned away in a round
that is well."""
LONGEST = 80
"""Characters of an example."""
DIGITS = 12
"""Characters of its id, which `flywheel trace` takes."""

Tables = Mapping[str, pl.LazyFrame]
Text = Callable[[str], str | None]
"""The text of the row with an id, to be an example."""
REASON = pl.coalesce(pl.col("error").str.extract(r"^(\w+): "), "error")
"""The kind of an error: the word before its details, or all of it."""
UNLUCKY = (
    pl.when(pl.col("refinements") == 0)
    .then(pl.lit("not refined"))
    .when(pl.col("successes") == 0)
    .then(pl.lit("no refinement reached the target"))
    .otherwise(pl.lit("too few refinements reached the target"))
)
"""Why a critique without an error is not kept."""
UNPAIRED = (
    pl.when(pl.col("scored").fill_null(0) < 2)
    .then(pl.lit("fewer than two answers have a score"))
    .when(pl.col("gap") == 0)
    .then(pl.lit("all answers have the same score"))
    .otherwise(pl.lit("no two answers differ as the strategy asks"))
)
"""Why a prompt has no pair, which no table says, from how many of its answers have a reward and how far apart these are."""


def warnings(stage: str, written: Tables, arguments: Mapping[str, Any]) -> list[str]:
    """What a person should know of the tables that a stage has written; `arguments` are what it was called with."""
    looks = LOOKS.get(stage)
    return list(looks(written, arguments)) if looks else []


def _prompts(written: Tables, arguments: Mapping[str, Any]) -> Iterator[str]:
    rows = written["prompts"].with_columns(reason=REASON)
    counts = _failed(rows, ["member"])
    left = sum(total - failed for _, failed, total in counts)
    end = "" if left else "; nothing is left to answer, and `generate` will fail"
    for names, failed, total in counts:
        if failed > MOST_PROMPTS * total:
            why = _reason(rows.filter(_same(["member"], names)), _texts(rows, "problem"))
            yield f"{names[0]}: {failed:,} of {total:,} problems were turned away, {why}{end}"


def _generate(written: Tables, arguments: Mapping[str, Any]) -> Iterator[str]:
    rows = written["responses"]
    yield from _mostly(rows, ["member"], "{0}: {counts} answers failed", _texts(rows, "error"))


def _judge(written: Tables, arguments: Mapping[str, Any]) -> Iterator[str]:
    judged = written["judgments"].filter(~pl.col("error").str.starts_with("no response:").fill_null(False))
    rows = judged.with_columns(id="response_id")
    answer = _texts(arguments["responses"], "response")
    for names, said in _worst(rows, ["member"], "{0} has no score for {counts} answers"):
        own = rows.filter(_same(["member"], names))
        rationale = _texts(own, "rationale")
        yield f"{said}, {_reason(own, lambda id, rationale=rationale: rationale(id) or answer(id))}"


def _filter(written: Tables, arguments: Mapping[str, Any]) -> Iterator[str]:
    rows = written["filtered"].select("id", "reason", error="reason")
    yield from _nothing(rows, _texts(arguments["responses"], "response", "error"), "answers")


def _critique(written: Tables, arguments: Mapping[str, Any]) -> Iterator[str]:
    rows = written["critiques"].with_columns(
        reason=pl.coalesce(REASON, UNLUCKY), error=pl.when(~pl.col("kept")).then(pl.lit("dropped"))
    )
    yield from _nothing(rows, _texts(rows, "critique"), "critiques")


def _pair(written: Tables, arguments: Mapping[str, Any]) -> Iterator[str]:
    if not arguments["members"] or _count(written["pairs"]):
        return
    score = pl.col("score")
    spread = arguments["judgments"].filter("reward").group_by(id="prompt_id")
    spread = spread.agg(scored=score.count(), gap=score.max() - score.min())
    prompts = arguments["prompts"].filter(pl.col("error").is_null()).select("id", "problem", error=pl.lit("no pair"))
    rows = prompts.join(spread, on="id", how="left").with_columns(reason=UNPAIRED)
    if count := _count(prompts):
        yield f"made no pair of {count:,} prompts, {_reason(rows, _texts(prompts, 'problem'))}"


def _evaluate(written: Tables, arguments: Mapping[str, Any]) -> Iterator[str]:
    audits, evals = written["audits"], written["evals"]
    known = "{0} has no verdict on {counts} known answers"
    yield from _mostly(audits, ["judge"], known, _texts(audits, "error"))
    failed = "{0}, {1}: {counts} {2} answers failed"
    yield from _mostly(evals, ["member", "split", "mode"], failed, _texts(evals, "response", "problem"))


LOOKS: dict[str, Callable[[Tables, Mapping[str, Any]], Iterable[str]]] = {
    "prompts": _prompts,
    "generate": _generate,
    "judge": _judge,
    "filter": _filter,
    "critique": _critique,
    "pair": _pair,
    "evaluate": _evaluate,
}
"""By stage. `collect` and `train` know best themselves when there is nothing to learn from."""


def _failed(rows: pl.LazyFrame, keys: list[str]) -> list[tuple[list[Any], int, int]]:
    """Of each group: its keys, the rows with an error, and all rows."""
    counts = rows.group_by(keys).agg(failed=pl.col("error").count(), rows=pl.len()).sort(keys).collect()
    return [(list(row[:-2]), row[-2], row[-1]) for row in counts.iter_rows()]


def _worst(rows: pl.LazyFrame, keys: list[str], form: str) -> Iterator[tuple[list[Any], str]]:
    """The groups most of whose rows have an error, each with `form` filled in: its keys, and `counts`."""
    for names, failed, total in _failed(rows, keys):
        if failed > MOST * total:
            yield names, form.format(*names, counts=f"{failed:,} of {total:,}")


def _mostly(rows: pl.LazyFrame, keys: list[str], form: str, text: Text) -> Iterator[str]:
    """A warning for each group most of whose rows have an error."""
    for names, said in _worst(rows, keys, form):
        yield f"{said}, {_reason(rows.filter(_same(keys, names)), text)}"


def _nothing(rows: pl.LazyFrame, text: Text, what: str) -> Iterator[str]:
    """A warning where every row was dropped."""
    failed, total = rows.select(pl.col("error").count(), rows=pl.len()).collect().row(0)
    if total and failed == total:
        yield f"kept none of {total:,} {what}, {_reason(rows, text)}"


def _reason(rows: pl.LazyFrame, text: Text) -> str:
    """The most frequent reason of rows with an error, with an example; rows without a `reason` have their error's kind."""
    failed = rows.filter(pl.col("error").is_not_null())
    if "reason" not in failed.collect_schema():
        failed = failed.with_columns(reason=REASON)
    kinds = failed.group_by("reason").agg(pl.len(), pl.col("id").min())
    counts = kinds.sort("len", "reason", descending=[True, False]).collect()
    reason, count, id = counts.row(0)
    share = f"{count:,}, {100 * count / counts['len'].sum():.0f} %"
    example = text(id) or ""
    quoted = f", '{_escaped(example)}'" if example and example != reason else ""
    return f"most often: {_escaped(reason)} ({share}), such as {id[:DIGITS]}{quoted}"


def _same(keys: list[str], names: list[Any]) -> pl.Expr:
    return pl.all_horizontal(pl.col(k).eq_missing(n) for k, n in zip(keys, names, strict=True))


def _texts(rows: pl.LazyFrame, *columns: str) -> Text:
    """The first of these columns that is not null, by id; None for an id that is not there."""

    def text(id: str) -> str | None:
        found = rows.filter(pl.col("id") == id).select(pl.coalesce(columns)).head(1).collect()
        return None if found.is_empty() else found.item()

    return text


def _escaped(text: str) -> str:
    """A text on one line, cut, with all that a terminal would not print as it is escaped."""
    return repr(text[:LONGEST] + ("…" if len(text) > LONGEST else ""))[1:-1]


def _count(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())
