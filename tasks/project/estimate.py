"""Estimates the requests and tokens of stages, for `--dry-run`."""

import gzip
from collections.abc import Callable
from itertools import islice
from math import ceil, prod
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
    now = volume(stage, block.values, root)
    for earlier in reversed(params.lineage(block.name)):
        ran = store.manifests(root, earlier.name)
        if stage.name in ran:
            spent = ran[stage.name].tokens
            then = volume(stage, _values(ran), root)
            scale = now.requests / then.requests if then.requests else 1.0
            tokens = spent.get("prompt_tokens", 0) + spent.get("completion_tokens", 0)
            source = f"as {stage.name}@{earlier.name}" + (f" × {scale:.2g}" if scale != 1 else "")
            return Volume(round(spent.get("requests", 0) * scale), round(tokens * scale), source)
    return now


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
    - each of `problems`, as often as `PER_PROBLEM` says.
    `PER_PROMPT` has the strategies that ask about a prompt's answers together, or again about the wrong ones.

    Each request counts `max_tokens`. The real number may be higher (a pool retries rejected prompts) or lower (equal
    answers are judged once, and only wrong ones are asked about again).
    """
    members = [m for m in _members(stage, values.get(stage.name)) if m["needs"]]
    requests = [_requests(stage, m, values, root) for m in members]
    tokens = sum(r * int(m.get("max_tokens") or 0) for r, m in zip(requests, members, strict=True))
    return Volume(sum(requests), tokens, "its params" if members else "")


def _members(stage: Stage, block: Any) -> list[dict[str, Any]]:
    """The fields of a stage's strategies, with defaults filled in."""
    options = set(stage.options.model_fields) if stage.options else set()
    chosen = {m: v or {} for m, v in (block or {}).items() if m not in options}
    kinds = [(load(stage.name, v.get("strategy", m)), v) for m, v in chosen.items()]
    return [
        {n: v.get(n, f.default) for n, f in k.model_fields.items()} | {"needs": k.needs, "strategy": k.strategy_name()}
        for k, v in kinds
    ]


def _requests(stage: Stage, member: dict[str, Any], values: dict[str, Any], root: Path) -> int:
    strategy, answers = member["strategy"], rows_for_each("generate", values)
    if rule := PER_PROMPT.get((stage.name, strategy)):
        return round(_prompts(values, root) * rule(member, answers))
    number = {k: v for k, v in member.items() if isinstance(v, int | float)}
    times = number.get("samples", 1) * number.get("votes", 1) * len(member.get("models", [None]))
    on_sets = number.get("greedy", 0) + number.get("sampled", 0) * times
    if "splits" in member:
        return len(member["splits"]) * int(on_sets)
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
    members = _members(stages()["prompts"], values.get("prompts"))
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
    members = _members(stages()[name], values.get(name))
    rows = [prod(int(m.get(k) or 1) for k in ("count", "samples")) * len(m.get("models") or [None]) for m in members]
    return sum(rows) or 1
