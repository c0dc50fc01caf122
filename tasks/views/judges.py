"""How well every judge tells right answers from wrong ones: all of them on the same answers of one model."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import frames, tables
from tasks.core.errors import FlywheelError
from tasks.core.ids import content_id
from tasks.core.judging import JudgeCase, Judging, finite
from tasks.core.plugin import load, names
from tasks.core.roster import Models, Source
from tasks.domains import Domain, Item
from tasks.evaluate.judging import judge_measures
from tasks.generate import GenerateCase
from tasks.generate.sample import Sample
from tasks.judge.win_rate import position_bias
from tasks.project.blocks import Block
from tasks.project.edit import assignments
from tasks.project.execute import model_folder
from tasks.project.params import load_params

HEADS = ("judge", "model", "AUROC", "calibration error", "position bias", "errors", "answers", "tokens", "seconds")
FROZEN = 0
"""Seed of the problems and of the answers to them: the same for every model."""


@dataclass(frozen=True)
class Row:
    """A judge on one model's answers. What it does not give is None."""

    judge: str
    model: str
    auroc: float | None = None
    calibration_error: float | None = None
    position_bias: float | None = None
    """Share of the comparisons that change with the order in which two answers are shown."""
    errors: float | None = None
    """Share of the answers that it could not judge."""
    answers: int = 0
    """Answers with a score and a truth."""
    tokens: int = 0
    """Generated."""
    seconds: float = 0.0
    remark: str = ""
    """Why it could not be measured."""

    def cells(self) -> list[str]:
        """The cells of a table."""
        if self.remark:
            return [self.judge, self.model, *["–"] * (len(HEADS) - 2)]
        numbers = (self.auroc, self.calibration_error, self.position_bias, self.errors)
        shares = ["–" if n is None else f"{n:.3f}" for n in numbers]
        return [self.judge, self.model, *shares, f"{self.answers:,}", f"{self.tokens:,}", f"{self.seconds:.0f}"]


def all_judges(settings: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Judging]:
    """Every judge with its defaults, changed by `settings`; fields without a default are those of its `example`."""
    judges = {}
    for name in names("judge"):
        kind = load("judge", name)
        required = {f: v for f, v in kind.example.items() if kind.model_fields[f].is_required()}
        judges[name] = kind.model_validate(required | dict((settings or {}).get(name, {})))
    return judges


def chosen(wanted: Sequence[str] | None, settings: Sequence[str]) -> dict[str, Judging]:
    """The judges of these names (None: all), with settings `win_rate.same=answer`.

    Raises:
        UnknownName, FlywheelError: for a judge that does not exist, or a setting that cannot be read.
    """
    values: dict[str, dict[str, Any]] = {}
    for path, value in assignments(list(settings), {}).items():
        judge, _, field = path.partition(".")
        values.setdefault(judge, {})[field] = value
    for name in (*(wanted or ()), *values):
        load("judge", name)
    return {name: judge for name, judge in all_judges(values).items() if wanted is None or name in wanted}


def measure(root: Path, name: str, judges: Mapping[str, Judging], problems: int, samples: int) -> list[Row]:
    """Every judge on `samples` answers of a base's or round's model to each of the first held-out problems, beside the
    domain's verifier. The model judges its own answers, where a judge asks a model.
    """
    block = load_params(root).block(name)
    items = block.domain.items("heldout", problems, FROZEN)
    with closing(_models(root, block)) as models:
        case = answered(block.domain, models, items, samples)
        truth = dict(_truths(case, block.domain))
        return [_measured(judge_name, name, judge, case, truth) for judge_name, judge in judges.items()]


def _models(root: Path, block: Block) -> Models:
    """The block's own model and its ancestors', by the exam's engine."""
    engine = block.exam_engine or block.engine
    owners = {"model": block.name, "parent": block.name, "base": block.base}
    owners |= {k: owner for k in ("anchor", "grandparent") if (owner := block.ancestor(k))}
    sources = {k: Source(engine, partial(model_folder, root, owner)) for k, owner in owners.items()}
    return Models(sources, root / "data/cache/requests")


def answered(domain: Domain, models: Models, items: Sequence[Item], samples: int) -> JudgeCase:
    """A judge's case of a model's sampled answers."""
    rows = [
        {"id": content_id(i.problem, 0), "problem": i.problem, "prompt": domain.solve(i.problem), "level": i.level,
         "reference": i.reference, "source": "seed"}
        for i in items
    ]  # fmt: skip
    prompts = frames.frame(tables.prompts, rows).sort("id")
    case = GenerateCase(prompts.collect(), models, domain, FROZEN)
    responses = Sample(model="model", samples=samples)(case).filter(pl.col("error").is_null()).collect()
    return JudgeCase(prompts, responses.lazy(), models, domain, FROZEN, model="model")


def _truths(case: JudgeCase, domain: Domain) -> Iterable[tuple[str, bool]]:
    rows = case.with_problems().select("id", "problem", "response", "reference").collect()
    for id, problem, response, reference in rows.iter_rows():
        verdict = domain.verify(problem, response, reference)
        if verdict.error is None and verdict.passed is not None:
            yield id, verdict.passed


def _measured(judge_name: str, model: str, judge: Judging, case: JudgeCase, truth: Mapping[str, bool]) -> Row:
    """What a judge says of all answers; why not, where it cannot be asked here."""
    if missing := judge.opened_models() - case.models.names:
        return Row(judge_name, model, remark=f"no model {', '.join(sorted(missing))} here")
    tokens, clock = case.models.total("completion_tokens"), time.perf_counter()
    try:
        opinions = finite(judge(replace(case, seed=FROZEN))).collect()
    except FlywheelError as error:
        return Row(judge_name, model, remark=str(error))
    seconds = time.perf_counter() - clock
    rows = [r | {"truth": truth[r["response_id"]], "level": None} for r in _of_truth(opinions, truth)]
    measures = {m.name.removeprefix(f"{judge_name}_"): m for m in judge_measures(judge_name, rows)}
    values = {n: measures[n].value if n in measures else None for n in ("auroc", "calibration_error", "errors")}
    return Row(
        judge_name, model, **values, position_bias=position_bias(opinions["rationale"].drop_nulls()),
        answers=sum(row["score"] is not None for row in rows),
        tokens=int(case.models.total("completion_tokens") - tokens), seconds=seconds,
    )  # fmt: skip


def _of_truth(opinions: pl.DataFrame, truth: Mapping[str, bool]) -> list[dict[str, Any]]:
    return [row for row in opinions.iter_rows(named=True) if row["response_id"] in truth]


def show(rows: Sequence[Row]) -> None:
    """Prints the table, and why a judge is missing from it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS[:2])
    for head in HEADS[2:]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*row.cells())
    console = Console()
    console.print(table)
    for text in _remarks(rows):
        console.print(text, highlight=False, markup=False)


def _remarks(rows: Sequence[Row]) -> list[str]:
    return [*dict.fromkeys(f"{row.judge}: {row.remark}" for row in rows if row.remark)]


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, and why a judge is missing from it."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join([*lines, *(f"\nNot measured: {text}." for text in _remarks(rows))])
