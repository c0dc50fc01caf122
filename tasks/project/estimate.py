"""Estimates the requests, tokens, time and money of stages, for `--dry-run`."""

import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from math import ceil, prod
from pathlib import Path
from typing import Any, NamedTuple

from tasks.core import store
from tasks.core.plugin import load
from tasks.core.stage import Stage, stages
from tasks.project.costs import HOUR, amount
from tasks.project.params import EXAM, Block, Pipeline, load_params, stages_of
from tasks.project.pipeline import address

MINUTE = 60
TASK_ITEMS = 1000
"""Items of a benchmark task, whose number only its data say."""


def show(root: Path, name: str, stale: list[str]) -> None:
    """Prints the stages that would run, with estimates of their requests, tokens and time, and of money where params.yaml has
    prices.
    """
    from rich.console import Console
    from rich.table import Table

    estimates, prices = estimate(root, stale), load_params(root).prices
    columns: dict[str, Callable[[Estimate], str]] = {
        "requests": lambda e: _number(e.requests),
        "tokens": lambda e: _number(e.tokens),
        "time": lambda e: duration(e.seconds),
    }
    if any(e.gpu_hours for e in estimates.values()):
        columns["GPU hours"] = lambda e: f"{e.gpu_hours:,.2f}" if e.gpu_hours else ""
    if prices:
        columns[prices.label] = lambda e: amount(e.money) if e.money else ""
    whole = total(estimates.values())
    table = Table("stage", title=f"{name}: {len(stale)} stages to run", caption=whole.source, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("estimated")
    for item, e in estimates.items():
        table.add_row(item, *(text(e) for text in columns.values()), e.source)
    table.add_section()
    table.add_row("all", *(text(whole) for text in columns.values()), style="bold")
    Console().print(table)


def _number(number: int) -> str:
    return f"{number:,}" if number else ""


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `40 s`, `12 min`, `3.5 h`; empty where they are not known."""
    if seconds is None:
        return ""
    short = f"{seconds:.0f} s" if seconds < MINUTE else f"{seconds / MINUTE:.0f} min"
    return short if seconds < HOUR else f"{seconds / HOUR:,.1f} h"


class Volume(NamedTuple):
    """Load of a stage on its engines, as its settings say."""

    requests: int
    tokens: int
    """Prompt and completion tokens."""
    source: str
    """Basis of the estimate: an earlier run, or the stage's params."""


@dataclass(frozen=True)
class Estimate:
    """What a stage would take."""

    requests: int = 0
    tokens: int = 0
    """Prompt and completion tokens."""
    seconds: float | None = None
    """None where nothing like it ran."""
    gpu_hours: float = 0.0
    money: float | None = None
    """None without prices."""
    source: str = ""
    """Basis of the estimate: an earlier run, or the stage's params."""


def total(estimates: Iterable[Estimate]) -> Estimate:
    """All stages together. Their seconds are those that are known; stages that run side by side take less time."""
    every = list(estimates)
    known = [e.seconds for e in every if e.seconds is not None]
    paid = [e.money for e in every if e.money is not None]
    unknown = f"; the time of {len(every) - len(known)} is not known" if known and len(known) < len(every) else ""
    return Estimate(
        sum(e.requests for e in every),
        sum(e.tokens for e in every),
        sum(known) if known else None,
        sum(e.gpu_hours for e in every),
        sum(paid) if paid else None,
        f"an estimate; cached requests cost nothing{unknown}",
    )


def estimate(root: Path, stale: list[str]) -> dict[str, Estimate]:
    """Estimated requests, tokens, seconds and money of each stage, by address.

    A stage that ran before, in this round or the nearest ancestor, is scaled from that run: by the ratio of the params'
    requests now and then, or, where it asks no model, of their prompts; its process start-up is not scaled. A stage that
    never ran is estimated from its params, at `max_tokens` per request, at the seconds per token of the stages that ran.
    """
    params = load_params(root)
    return {item: _estimate(root, params, item) for item in stale}


def _estimate(root: Path, params: Pipeline, item: str) -> Estimate:
    block = params.block(item.partition("@")[2])
    stage = next(s for s in stages_of(block) if address(s, block) == item)
    lineage = [(b.name, store.manifests(root, b.name)) for b in reversed(params.lineage(block.name))]
    for name, ran in lineage:
        if stage.name in ran:
            return _from_run(params, block, stage, f"{stage.name}@{name}", ran, root)
    return _from_params(params, block, stage, [m for _, ran in lineage for m in ran.values()], root)


def _from_run(
    params: Pipeline, block: Block, stage: Stage, source: str, ran: dict[str, store.Manifest], root: Path
) -> Estimate:
    manifest, then = ran[stage.name], _values(ran)
    scale = _scale(stage, block.values, then, root)
    work = sum(manifest.seconds.values()) - manifest.seconds.get("start", 0.0)
    gpu_hours = manifest.gpu_seconds * scale / HOUR
    used = manifest.usage or {"": manifest.tokens}
    money = params.prices and params.prices.gpu_hour * gpu_hours + scale * sum(
        params.prices.of(_engines(params, block, stage, model), counts) for model, counts in used.items()
    )
    tokens = manifest.tokens.get("prompt_tokens", 0) + manifest.tokens.get("completion_tokens", 0)
    return Estimate(
        round(manifest.tokens.get("requests", 0) * scale),
        round(tokens * scale),
        manifest.seconds.get("start", 0.0) + work * scale,
        gpu_hours,
        money,
        f"as {source}" + (f" × {scale:.2g}" if scale != 1 else ""),
    )


def _scale(stage: Stage, now: dict[str, Any], then: dict[str, Any], root: Path) -> float:
    """How much more a stage has to do than in an earlier run."""
    before, after = (volume(stage, values, root).requests for values in (then, now))
    if before or stage.name in EXAM or "prompts" not in then:
        return after / before if before else 1.0
    return _prompts(now, root) / _prompts(then, root)


def _from_params(params: Pipeline, block: Block, stage: Stage, ran: list[store.Manifest], root: Path) -> Estimate:
    members = _asking(stage, block.values, root)
    tokens = sum(tokens for _, tokens in members.values())
    seconds, gpu_seconds = _per_token(ran)
    gpu_hours = tokens * gpu_seconds / HOUR
    money = params.prices and params.prices.gpu_hour * gpu_hours
    for member, (_, own) in members.items() if params.prices else ():
        opened = sorted(block.stages[stage.name].members[member].opened_models())
        each = {"completion_tokens": own / max(1, len(opened))}
        money += sum(params.prices.of(_engines(params, block, stage, model), each) for model in opened)
    return Estimate(
        sum(requests for requests, _ in members.values()),
        tokens,
        None if seconds is None or not members else tokens * seconds,
        gpu_hours,
        money,
        "its params" if members else "",
    )


def _per_token(ran: list[store.Manifest]) -> tuple[float | None, float]:
    """Seconds in engines, and seconds of GPUs, for each token that stages generated; None where none did."""
    generating = [m for m in ran if m.tokens.get("completion_tokens")]
    if not generating:
        return None, 0.0
    tokens = sum(m.tokens["completion_tokens"] for m in generating)
    seconds = sum(m.seconds.get("model", 0.0) for m in generating)
    return seconds / tokens, sum(m.gpu_seconds for m in generating) / tokens


def _engines(params: Pipeline, block: Block, stage: Stage, model: str) -> tuple[str, ...]:
    """The names under which a model that a stage opens has a price."""
    if model in params.roster:
        return model, params.roster[model].engine.strategy_name()
    return (((block.exam_engine if stage.name in EXAM else None) or block.engine).strategy_name(),)


def _values(ran: dict[str, store.Manifest]) -> dict[str, Any]:
    """The settings with which the stages of a round ran, as a block of params.yaml has them."""
    domain = next((m.plan.domain for m in ran.values() if m.plan.domain), None)
    return {name: m.plan.values.get(name) for name, m in ran.items()} | {"domain": domain}


def volume(stage: Stage, values: dict[str, Any], root: Path = Path()) -> Volume:
    """Estimate from the settings of a round alone (`values`, by stage), read from the strategies' fields by name.

    A strategy that needs an engine makes requests for
    - `count` or `limit` items, else every prompt of the round, or every response where it reads responses (only the
      `likeliest` of each prompt, if set); of a file of prompts no more than it has lines;
    - `samples` or `votes` times each, per model of `models`, and once more for each of `refinements`;
    - each of `splits`: `greedy` problems once, `sampled` ones `samples` times;
    - each of `problems`, as often as `PER_PROBLEM` says;
    - each item of `tasks` of a benchmark, `TASK_ITEMS` of each where no `limit` says how many.
    `PER_PROMPT` has the strategies that ask about a prompt's answers together, or again about the wrong ones.

    Each request counts `max_tokens`. The real number may be higher (a pool retries rejected prompts) or lower (equal
    answers are judged once, and only wrong ones are asked about again).
    """
    members = _asking(stage, values, root)
    requests, tokens = (sum(m[i] for m in members.values()) for i in (0, 1))
    return Volume(requests, tokens, "its params" if members else "")


def _asking(stage: Stage, values: dict[str, Any], root: Path) -> dict[str, tuple[int, int]]:
    """Requests and tokens of each member that asks a model."""
    members = {n: m for n, m in _members(stage, values.get(stage.name)).items() if m["needs"]}
    requests = {n: _requests(stage, m, values, root) for n, m in members.items()}
    return {n: (requests[n], requests[n] * int(m.get("max_tokens") or 0)) for n, m in members.items()}


def _members(stage: Stage, block: Any) -> dict[str, dict[str, Any]]:
    """The fields of a stage's strategies by member, with defaults filled in."""
    options = set(stage.options.model_fields) if stage.options else set()
    chosen = {m: v or {} for m, v in (block or {}).items() if m not in options}
    kinds = {m: (load(stage.name, v.get("strategy", m)), v) for m, v in chosen.items()}
    return {
        m: {n: v.get(n, f.default) for n, f in k.model_fields.items()}
        | {"needs": k.needs, "strategy": k.strategy_name()}
        for m, (k, v) in kinds.items()
    }


def _requests(stage: Stage, member: dict[str, Any], values: dict[str, Any], root: Path) -> int:
    strategy, answers = member["strategy"], rows_for_each("generate", values)
    if rule := PER_PROMPT.get((stage.name, strategy)):
        return round(_prompts(values, root) * rule(member, answers))
    number = {k: v for k, v in member.items() if isinstance(v, int | float)}
    times = number.get("samples", 1) * number.get("votes", 1) * len(member.get("models", [None]))
    on_sets = number.get("greedy", 0) + number.get("sampled", 0) * times
    if "splits" in member:
        return len(member["splits"]) * int(on_sets)
    if "tasks" in member:
        return len(member["tasks"]) * int(member.get("limit") or TASK_ITEMS)
    of_problem = PER_PROBLEM.get(strategy, lambda *_: 3)(member, values)
    each = times * (1 + number.get("refinements", 0)) + number.get("correct_share", 0)
    items = _items(stage, number, values, root)
    return int(number.get("problems", 0)) * of_problem + round(items * each)


def _items(stage: Stage, number: dict[str, float], values: dict[str, Any], root: Path) -> float:
    for field in ("count", "limit") if stage.name != "filter" else ():  # a filter's are rows that it keeps
        if field in number:
            return number[field]
    read = {i.name for i in stage.inputs if not i.ancestor and not i.optional} & {"prompts", "responses"}
    answers = rows_for_each("generate", values) if "responses" in read else 1
    return _prompts(values, root) * min(answers, number.get("likeliest", answers)) if read else 0


def _prompts(values: dict[str, Any], root: Path) -> int:
    """Most prompts that a round has: `count` of each member, of a file no more than it has lines."""
    members = _members(stages()["prompts"], values.get("prompts")).values()
    return sum(_lines(root, m) if m.get("path") else int(m.get("count") or 1) for m in members) or 1


def _lines(root: Path, member: dict[str, Any]) -> int:
    path, most = root / member["path"], int(member.get("count") or 1)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return sum(1 for _ in islice(filter(bytes.strip, file), most))
    except OSError:  # the stage says so
        return most


def _roles(member: dict[str, Any], values: dict[str, Any]) -> int:
    """Roles that are played: those named, or all of the domain's."""
    domain = (values.get("domain") or {}).get("strategy")
    return len(member["roles"] or (load("domains", domain).roles if domain else [None]))


Rule = Callable[[dict[str, Any], Any], int]
PER_PROMPT: dict[tuple[str, str], Rule] = {
    ("generate", "feedback"): lambda m, n: 3 * m["samples"],
    ("generate", "guided"): lambda m, n: m["samples"] + 2 * len(m["teachers"]),
    ("generate", "hint"): lambda m, n: 2 * m["samples"],
    ("generate", "teacher"): lambda m, n: m["samples"] + m["answers"],
    ("judge", "p_true"): lambda m, n: 2 * n,
    ("judge", "principles"): lambda m, n: m["samples"] * ceil(n / m["group"]),
    ("judge", "self_agreement"): lambda m, n: 1,
    ("judge", "win_rate"): lambda m, n: n * min(2 * (m["opponents"] or n), n - 1) if n > 1 else 0,
}
"""Requests for each prompt, which has n answers, of strategies whose fields do not say it by name."""
PER_PROBLEM: dict[str, Rule] = {
    "contamination": lambda m, values: 1,
    "familiarity": lambda m, values: 4,
    "forgetting": lambda m, values: 1,
    "friction": lambda m, values: 1 + m["tries"],
    "habits": lambda m, values: 5,
    "roles": _roles,
    "self_choice": lambda m, values: 4,
    "sharpening": lambda m, values: 2 * m["samples"],
}
"""Requests for each of a probe's `problems`; three where a strategy is not here: answer, critique, refinement."""


def rows_for_each(name: str, values: dict[str, Any]) -> int:
    """Rows that the members of stage `name` make together for each row that they read: `count`, or `samples` of each of its
    `models`."""
    members = _members(stages()[name], values.get(name)).values()
    rows = [prod(int(m.get(k) or 1) for k in ("count", "samples")) * len(m.get("models") or [None]) for m in members]
    return sum(rows) or 1
