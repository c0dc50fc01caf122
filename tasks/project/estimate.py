"""Estimates the requests and tokens of stages, for `--dry-run`."""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from tasks.core import store
from tasks.core.plugin import load
from tasks.core.stage import Stage, stages
from tasks.project.params import Pipeline, load_params, stages_of
from tasks.project.pipeline import address


def show(root: Path, name: str, stale: list[str]) -> None:
    """Prints the stages that would run, with estimates of their requests and tokens."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", title=f"{name}: {len(stale)} stages to run")
    table.add_column("requests", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("estimated")
    estimates = estimate(root, stale)
    for item, volume in estimates.items():
        table.add_row(item, _number(volume.requests), _number(volume.tokens), volume.source if volume.requests else "")
    table.add_section()
    requests, tokens = (sum(e[i] for e in estimates.values()) for i in (0, 1))
    table.add_row("all", _number(requests), _number(tokens), "an estimate; cached requests cost nothing", style="bold")
    Console().print(table)


def _number(number: int) -> str:
    return f"{number:,}" if number else ""


class Volume(NamedTuple):
    """Estimated load of a stage on its engine."""

    requests: int
    tokens: int
    """Prompt and completion tokens."""
    source: str
    """Basis of the estimate: an earlier run, or the stage's params."""


def estimate(root: Path, stale: list[str]) -> dict[str, Volume]:
    """Estimated requests and tokens of each stage, by address.

    A stage that ran before, in this round or the nearest ancestor, is scaled from that run by the ratio of the params'
    requests now and then. A stage that never ran is estimated from its params, at `max_tokens` per request.
    """
    params = load_params(root)
    return {item: _estimate(root, params, item) for item in stale}


def _estimate(root: Path, params: Pipeline, item: str) -> Volume:
    block = params.block(item.partition("@")[2])
    stage = next(s for s in stages_of(block) if address(s, block) == item)
    now = volume(stage, block.values)
    for earlier in reversed(params.lineage(block.name)):
        ran = store.manifests(root, earlier.name)
        if stage.name in ran:
            spent = ran[stage.name].tokens
            then = volume(stage, {n: m.plan.values.get(n) for n, m in ran.items()})
            scale = now.requests / then.requests if then.requests else 1.0
            tokens = spent.get("prompt_tokens", 0) + spent.get("completion_tokens", 0)
            source = f"as {stage.name}@{earlier.name}" + (f" × {scale:.2g}" if scale != 1 else "")
            return Volume(round(spent.get("requests", 0) * scale), round(tokens * scale), source)
    return now


def volume(stage: Stage, values: dict[str, Any]) -> Volume:
    """Estimate from the settings of a round alone (`values`, by stage), read from the strategies' fields by name.

    A strategy that needs an engine makes requests for
    - `count` (or `limit`) items, else every prompt of the round, or every response where it reads responses (only the
      `likeliest` of each prompt, if set);
    - `samples` or `votes` times each, per model of `models`, and once more for each of `refinements`;
    - each of `splits`: `greedy` problems once, `sampled` ones `samples` times;
    - `problems`: each is answered, criticised and refined.

    Each request counts `max_tokens`. The real number may be higher (a pool retries rejected prompts) or lower (equal
    answers are judged once).
    """
    members = [m for m in _members(stage, values.get(stage.name)) if m["needs"]]
    requests = [_requests(stage, m, values) for m in members]
    tokens = sum(r * int(m.get("max_tokens") or 0) for r, m in zip(requests, members, strict=True))
    return Volume(sum(requests), tokens, "its params" if members else "")


def _members(stage: Stage, block: Any) -> list[dict[str, Any]]:
    """The fields of a stage's strategies, with defaults filled in."""
    options = set(stage.options.model_fields) if stage.options else set()
    chosen = {m: v or {} for m, v in (block or {}).items() if m not in options}
    kinds = [(load(stage.name, v.get("strategy", m)), v) for m, v in chosen.items()]
    return [{n: v.get(n, f.default) for n, f in k.model_fields.items()} | {"needs": k.needs} for k, v in kinds]


def _requests(stage: Stage, member: dict[str, Any], values: dict[str, Any]) -> int:
    number = {k: v for k, v in member.items() if isinstance(v, int | float)}
    times = number.get("samples", 1) * number.get("votes", 1) * len(member.get("models", [None]))
    on_sets = number.get("greedy", 0) + number.get("sampled", 0) * times
    if "splits" in member:
        return len(member["splits"]) * int(on_sets)
    each = times * (1 + number.get("refinements", 0)) + number.get("correct_share", 0)
    return 3 * int(number.get("problems", 0)) + round(_items(stage, number, values) * each)


def _items(stage: Stage, number: dict[str, float], values: dict[str, Any]) -> float:
    for field in ("count", "limit"):
        if field in number:
            return number[field]
    read = {i.name for i in stage.inputs if not i.ancestor and not i.optional} & {"prompts", "responses"}
    answers = rows_for_each("generate", values) if "responses" in read else 1
    return rows_for_each("prompts", values) * min(answers, number.get("likeliest", answers)) if read else 0


def rows_for_each(name: str, values: dict[str, Any]) -> int:
    """Rows that the members of stage `name` make together for each row that they read: `count`, or `samples` of each of its
    `models`."""
    members = _members(stages()[name], values.get(name))
    rows = [prod(int(m.get(k) or 1) for k in ("count", "samples")) * len(m.get("models") or [None]) for m in members]
    return sum(rows) or 1
