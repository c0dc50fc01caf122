"""Collect: what training learns from, as rows that a trainer takes as they are.

Each member is a source: kept answers, refinements, critiques, pairs, rows of an ancestor replayed against forgetting.
`train` reads these rows alone, so an edit of `pair` retrains no model that learns from no pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import polars as pl
from pydantic import NonNegativeFloat, PositiveInt

from tasks.collect._tokens import counts
from tasks.core import tables
from tasks.core.frames import frame, ids, seeds
from tasks.core.ids import member_seed
from tasks.core.plugin import Params
from tasks.core.stage import Result, Strategy, stage
from tasks.core.tables import Table
from tasks.training.tags import with_tags

TABLES = (tables.training, tables.preferences)


class CollectOptions(Params):
    """What holds for the rows of all sources."""

    max_length: PositiveInt = 512
    """Most tokens of prompt and completion together, as the parent's tokenizer counts them in its chat template. A longer
    row is kept with `error` and is not trained on: trainers would cut or drop it in silence."""


@dataclass(frozen=True)
class CollectCase:
    """What a source draws from: the round's tables and its ancestors' training rows."""

    prompts: pl.LazyFrame
    responses: pl.LazyFrame
    judgments: pl.LazyFrame
    filtered: pl.LazyFrame
    critiques: pl.LazyFrame
    refinements: pl.LazyFrame
    pairs: pl.LazyFrame
    parent_training: pl.LazyFrame
    anchor_training: pl.LazyFrame | None
    grandparent_training: pl.LazyFrame | None
    new: pl.DataFrame
    """Usable `training` rows of the other sources; empty until all of them have run."""
    seed: int


@dataclass(frozen=True)
class Rows:
    """What a source gives: rows of `training`, of `preferences`, or of both. The stage fills in `member`, `tokens` and
    `error`, and multiplies `weight` (1 where it is left out) by the member's; other columns that are left out are null.
    """

    training: pl.LazyFrame | None = None
    preferences: pl.LazyFrame | None = None
    warnings: tuple[str, ...] = ()


class Collecting(Strategy):
    """One source of rows to train on."""

    mixes_in: ClassVar[bool] = False
    """Asked after the other sources, with their rows as `case.new`."""

    weight: NonNegativeFloat = 1.0
    """Weight of its rows in the loss, for trainers that know weights; a row's own weight is multiplied by it."""
    max_rows: PositiveInt | None = None
    """Most of its rows that are taken, drawn by a hash of seed and id, so that two recipes can be compared at equal size;
    null takes all."""

    def __call__(self, case: CollectCase) -> Rows:
        """The rows of this source. Equal rows must have equal ids, whoever collects them."""
        raise NotImplementedError


@stage(outputs=[tables.training, tables.preferences])
def collect(
    members: dict[str, Collecting],
    options: CollectOptions,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    filtered: pl.LazyFrame,
    critiques: pl.LazyFrame,
    refinements: pl.LazyFrame,
    pairs: pl.LazyFrame,
    parent_training: pl.LazyFrame,
    anchor_training: pl.LazyFrame | None,
    grandparent_training: pl.LazyFrame | None,
    parent_model: Path,
    seed: int,
) -> Result:
    """The rows of all sources, each once. Of equal rows the first member's is taken, by the alphabet; new before replayed."""
    case = CollectCase(
        prompts, responses, judgments, filtered, critiques, refinements, pairs, parent_training, anchor_training,
        grandparent_training, frame(tables.training).collect(), seed,
    )  # fmt: skip
    check = partial(_with_lengths, parent_model=parent_model, max_length=options.max_length)
    sources = _sources({n: m for n, m in members.items() if not m.mixes_in}, case)
    new = check(_tables(sources, members, seed))
    case = replace(case, new=new["training"].filter(pl.col("error").is_null()))
    mixed_in = _sources({n: m for n, m in members.items() if m.mixes_in}, case)
    others = check(_tables(mixed_in, members, seed))
    frames = {name: _each_once([new[name], others[name]]) for name in new}
    warnings = [f"{name}: {text}" for name, rows in (sources | mixed_in).items() for text in rows.warnings]
    return Result(frames, warnings=(*warnings, *_warnings(frames, options.max_length)))


def _sources(members: dict[str, Collecting], case: CollectCase) -> dict[str, Rows]:
    """What each member gives, by the alphabet."""
    seeds = {n: member_seed(case.seed, n, m.strategy_name()) for n, m in members.items()}
    return {name: members[name](replace(case, seed=seeds[name])) for name in sorted(members)}


def _tables(sources: dict[str, Rows], members: dict[str, Collecting], seed: int) -> dict[str, pl.DataFrame]:
    """Their rows, by table, no more of each member than it allows."""
    parts = {table.name: [frame(table).collect()] for table in TABLES}
    for name, rows in sources.items():
        for table, part in zip(TABLES, (rows.training, rows.preferences), strict=True):
            if part is not None:
                rows_of_member = _complete(table, part, name, members[name].weight).collect()
                parts[table.name].append(_drawn(rows_of_member, members[name].max_rows, seed))
    return {name: _each_once(part) for name, part in parts.items()}


def _drawn(rows: pl.DataFrame, count: int | None, seed: int) -> pl.DataFrame:
    """So many of the rows, the same of the same ids."""
    if count is None or len(rows) <= count:
        return rows
    order = seeds(pl.lit("collect"), pl.lit(str(seed)), "id").alias("order")
    return rows.with_columns(order).sort("order", "id").head(count).drop("order")


def _complete(table: Table, rows: pl.LazyFrame, member: str, weight: float) -> pl.LazyFrame:
    """In the table's columns and types."""
    schema = frame(table).collect_schema()
    absent = {name: pl.lit(None) for name in set(schema) - set(rows.collect_schema())}
    fixed = {"member": pl.lit(member), "tokens": pl.lit(None), "error": pl.lit(None)}
    weighted = pl.col("weight").fill_null(1.0) * weight
    return rows.with_columns(**absent | fixed).with_columns(weighted).select(schema.names()).cast(dict(schema))


def _each_once(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).unique("id", keep="first", maintain_order=True).sort("id")


def _with_lengths(rows: dict[str, pl.DataFrame], parent_model: Path, max_length: int) -> dict[str, pl.DataFrame]:
    """With `tokens`, and `error` where there are too many of them or the chat template refuses the row."""
    completions = {"training": ["completion"], "preferences": ["chosen", "rejected"]}
    long = pl.format("long: {} tokens, max_length is {}", "tokens", pl.lit(max_length))
    error = pl.coalesce("error", pl.when(pl.col("tokens") > max_length).then(long))
    return {
        name: _with_tokens(frame, parent_model, completions[name]).with_columns(error=error)
        for name, frame in rows.items()
    }


def _with_tokens(rows: pl.DataFrame, parent_model: Path, completions: list[str]) -> pl.DataFrame:
    """With `tokens` of the prompt and the longest of its completions, and the template's refusal as `error`. A tag counts."""
    if rows.is_empty():
        return rows  # and no tokenizer is loaded
    texts = with_tags(rows) if "tag" in rows.columns else rows
    lengths = [counts(parent_model, texts["prompt"], texts[c]) for c in completions]
    tokens = [pl.Series(c, n, pl.Int32) for c, (n, _) in zip(completions, lengths, strict=True)]
    refusals = [pl.Series(c, r, pl.String) for c, (_, r) in zip(completions, lengths, strict=True)]
    return rows.with_columns(tokens=pl.max_horizontal(tokens), error=pl.coalesce(refusals))


def _warnings(frames: dict[str, pl.DataFrame], max_length: int) -> Iterator[str]:
    for name, rows in frames.items():
        long = rows.filter(pl.col("error").str.starts_with("long:"))
        if len(long):
            yield (
                f"{len(long)} of {len(rows)} rows of {name} have more than collect.max_length = {max_length} tokens (the "
                f"longest {long['tokens'].max()}) and are not trained on; raise it, or generate shorter answers"
            )
        refused = rows.filter(pl.col("error").str.starts_with("template:"))
        if len(refused):
            yield (
                f"{len(refused)} of {len(rows)} rows of {name} do not fit the model's chat template and are not trained "
                f"on; the first: {refused['error'][0]}"
            )
    if not any(rows["error"].null_count() for rows in frames.values()):
        yield "nothing was collected to train on: the round's model will be the one that it starts from"


def after_prompt(prompts: pl.LazyFrame, answers: pl.LazyFrame, source: str) -> pl.LazyFrame:
    """Answers (`prompt_id`, `response_id`, `model`, `text`; `label`, true where it is left out) as rows of `training`, after
    the bare prompt of their problem: a hint or critique that they were made with is not part of it.
    """
    problems = prompts.select("prompt", prompt_id="id")
    rows = with_completion(answers.join(problems, on="prompt_id"), source).with_columns(group="prompt_id")
    return rows if "label" in rows.collect_schema() else rows.with_columns(label=pl.lit(True))


def with_completion(rows: pl.LazyFrame, source: str) -> pl.LazyFrame:
    """With an id from what the row is made of, and its `text` as the assistant's turn."""
    turn = pl.struct(role=pl.lit("assistant"), content="text")
    return rows.with_columns(
        ids(pl.lit("training"), pl.lit(source), "prompt_id", "response_id", "text"),
        source=pl.lit(source),
        completion=pl.concat_list(turn),
    )
