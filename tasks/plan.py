"""What a round needs: the graph of stages, which of them are stale, and what running them would ask of the engine.

DVC alone decides what is stale; it is asked in this process, before Prefect is imported (half a second instead of the
second and a half of a process of its own).
"""

import logging
import re
from collections.abc import Iterable
from graphlib import TopologicalSorter
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from tasks import store
from tasks.errors import Busy, FlywheelError
from tasks.params import Block, Pipeline, jurors, load_params, read, stages_of
from tasks.pipeline import address, written
from tasks.stage import Stage, load, names, stages

Graph = dict[str, set[str]]
"""Addresses of stages (`judge@r2`) by the addresses that must come before them."""


def rounds(root: Path) -> list[str]:
    """The rounds in the order of params.yaml (its validated form puts parents first)."""
    load_params(root)
    return list(read(root).get("rounds") or {})


def graph(params: Pipeline, names: Iterable[str]) -> Graph:
    """The stages of rounds and of what they descend from or ask as jurors, inputs before those who read them."""
    blocks, left = dict[str, Block](), list(names)
    while left:
        found = {b.name: b for b in params.lineage(left.pop(0)) if b.name not in blocks}
        blocks |= found
        left += [name for b in found.values() for name in _asked_models(b, params)]
    writers = {(b.name, out): address(s, b) for b in blocks.values() for s in stages_of(b) for out in written(s)}
    needs = {address(s, b): _needs(s, b, writers) for b in blocks.values() for s in stages_of(b)}
    for block in blocks.values():
        for name in _asked_models(block, params):
            needs[address(stages()["judge"], block)].add(writers[name, "model"])
    return {a: needs[a] for a in TopologicalSorter(needs).static_order()}


def _asked_models(block: Block, params: Pipeline) -> list[str]:
    """The bases and rounds whose models are jurors of a block's: DVC, which sees the same dependencies of every round,
    does not know of these.
    """
    return [name for juror in jurors(block).values() if (name := juror.maker()) in params.blocks]


def _needs(stage: Stage, block: Block, writers: dict[tuple[str, str], str]) -> set[str]:
    owners = [(str(block.raw[i.ancestor]) if i.ancestor else block.name, i.name) for i in stage.inputs]
    return {writers[o] for o in owners}


def descendants(of: Graph, some: Iterable[str]) -> list[str]:
    """The given stages and all that come after them, in the graph's order."""
    found = set(some)
    for item, before in of.items():
        if before & found:
            found.add(item)
    return [item for item in of if item in found]


def stale(root: Path, *names: str) -> list[str]:
    """Addresses of the stages that DVC would run to bring rounds and their ancestors up to date, in running order.

    DVC's status says nothing of what comes after a stale stage, so descendants are added; some of them may turn out
    to be up to date after all.

    Raises:
        FlywheelError: when this is not a DVC project, or dvc.yaml is broken.
    """
    whole = graph(load_params(root), names)
    return descendants(whole, changed(root, list(whole)))


def changed(root: Path, targets: list[str]) -> set[str]:
    """The stages among `targets` whose params, inputs, code or outputs are not what dvc.lock says."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    quiet = logging.getLogger("dvc")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        # `repo.status(targets)` parses dvc.yaml and dvc.lock anew for every target: four seconds for three rounds.
        with Repo(str(root)) as repo, repo.lock:
            stages = [s for s in repo.index.stages if s.addressing in set(targets)]
            return {s.addressing for s in stages if s.status(check_updates=True)}
    except LockError as error:
        raise Busy(busy(str(error))) from error
    except DvcException as error:
        raise FlywheelError(f"DVC cannot tell what is stale: {error}; {_mend(error)}") from error
    finally:
        quiet.setLevel(level)


def _mend(error: Exception) -> str:
    from dvc.rwlock import RWLockFileCorruptedError
    from dvc.scm import SCMError

    if isinstance(error, SCMError):
        return "`git init` makes it one"
    if isinstance(error, RWLockFileCorruptedError):  # a kill in the moment in which DVC writes it
        return "remove that file once no `dvc` is running"
    return "`flywheel render` writes dvc.yaml anew"


def busy(text: str) -> str:
    """What DVC's message about its locks means: who is at work."""
    who = re.search(r"\(PID (\d+)\): (.*)", text)
    by = f" (pid {who[1]}: {who[2].strip()[-60:]})" if who else ""
    return f"another process is running a stage that this needs{by}; wait for it, or end it"


# --dry-run


def show(root: Path, name: str, stale: list[str]) -> None:
    """Prints the stages that would run, with the requests and tokens that they would ask for (an estimate)."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", title=f"{name}: {len(stale)} stages to run")
    table.add_column("requests", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("estimated")
    estimates = estimate(root, stale)
    for item, asked in estimates.items():
        table.add_row(item, _shown(asked.requests), _shown(asked.tokens), asked.source if asked.requests else "")
    table.add_section()
    requests, tokens = (sum(e[i] for e in estimates.values()) for i in (0, 1))
    table.add_row("all", _shown(requests), _shown(tokens), "an estimate; what was asked before is cached", style="bold")
    Console().print(table)


def _shown(number: int) -> str:
    return f"{number:,}" if number else ""


class Estimate(NamedTuple):
    """What a stage is expected to ask of its engine."""

    requests: int
    tokens: int
    """Of prompts and completions."""
    source: str
    """What it is judged by."""


def estimate(root: Path, stale: list[str]) -> dict[str, Estimate]:
    """What each stage would ask of its engine, by address.

    A stage that has run before, in this round or in the nearest ancestor, is expected to ask for as much again, scaled
    by how much its round's params ask for now; one that never ran for what its params say, at full length.
    """
    params = load_params(root)
    return {item: _estimate(root, params, item) for item in stale}


def _estimate(root: Path, params: Pipeline, item: str) -> Estimate:
    block = params.block(item.partition("@")[2])
    stage = next(s for s in stages_of(block) if address(s, block) == item)
    asked = volume(stage, block.raw)
    for earlier in reversed(params.lineage(block.name)):
        ran = store.manifests(root, earlier.name)
        if stage.name in ran:
            spent = ran[stage.name].tokens
            then = volume(stage, {n: m.params.get(n) for n, m in ran.items()})
            scale = asked.requests / then.requests if then.requests else 1.0
            tokens = spent.get("prompt_tokens", 0) + spent.get("completion_tokens", 0)
            source = f"as {stage.name}@{earlier.name}" + (f" × {scale:.2g}" if scale != 1 else "")
            return Estimate(round(spent.get("requests", 0) * scale), round(tokens * scale), source)
    return asked


def volume(stage: Stage, raw: dict[str, Any]) -> Estimate:
    """What the params of a round alone (`raw`, by stage) say: an estimate, read from the fields by their names.

    A strategy that asks an engine does so for `count` (or `limit`) items, or for every prompt of the round, or every
    response where it reads them (the `likeliest` of a prompt, where it says so); `samples` or `votes` times each (for
    each member of a `jury`), and once more for each of `refinements`. On each of `splits` it answers `greedy` problems once and `sampled` ones
    `samples` times; of `problems` each is answered, criticised and refined. Each request is taken for `max_tokens`. It
    may come to more (a pool writes again what it turned away) or to less (equal answers are judged once).
    """
    members = [m for m in _members(stage, raw.get(stage.name)) if m["needs"] or "jury" in m]
    requests = [_asked(stage, m, raw) for m in members]
    tokens = sum(r * int(m.get("max_tokens") or 0) for r, m in zip(requests, members, strict=True))
    return Estimate(sum(requests), tokens, "its params" if members else "")


def _members(stage: Stage, own: Any) -> list[dict[str, Any]]:
    """The fields of a stage's strategies, with the defaults of those that are left out."""
    if not isinstance(own, dict):
        return []
    chosen = own["panel"] if stage.is_panel else {own["strategy"]: own}
    classes = {load(stage.name, n): v or {} for n, v in chosen.items() if n in names(stage.name)}
    return [
        {n: v.get(n, f.default) for n, f in c.model_fields.items()} | {"needs": c.needs} for c, v in classes.items()
    ]


def _asked(stage: Stage, member: dict[str, Any], raw: dict[str, Any]) -> int:
    number = {k: v for k, v in member.items() if isinstance(v, int | float)}
    times = number.get("samples", 1) * number.get("votes", 1) * len(member.get("jury", [None]))
    on_sets = number.get("greedy", 0) + number.get("sampled", 0) * times
    if "splits" in member:
        return len(member["splits"]) * int(on_sets)
    each = times * (1 + number.get("refinements", 0)) + number.get("right", 0)
    return 3 * int(number.get("problems", 0)) + round(_items(stage, number, raw) * each)


def _items(stage: Stage, number: dict[str, float], raw: dict[str, Any]) -> float:
    for field in ("count", "limit"):
        if field in number:
            return number[field]
    read = {i.name for i in stage.inputs if not i.ancestor} & {"prompts", "responses"}
    answers = _product(raw, "generate") if "responses" in read else 1
    return _product(raw, "prompts") * min(answers, number.get("likeliest", answers)) if read else 0


def _product(raw: dict[str, Any], name: str) -> int:
    """How many rows a stage makes of each that it reads: `count`, or `samples`."""
    return prod(int(m.get("count") or 1) * int(m.get("samples") or 1) for m in _members(stages()[name], raw.get(name)))
