"""Reads and validates params.yaml: bases, rounds and the roster of models.

    campaign: {name: arithmetic, budget: {hours: 8}}
    data:     s3://bucket/prefix
    defaults: {recipe: sharpen}
    prices:   {gpu_hour: 2.5, tokens: {openai: {prompt: 0.15, completion: 0.6}}}
    models:   {teacher: {engine: {strategy: vllm}, path: /models/teacher, digest: 3f1f…}}
    bases:    {r0: {seed: 0, domain: …, engine: …, base: …, evaluate: {…}, gate: {…}}}
    rounds:   {r1: {parent: r0, base: r0, seed: 1, recipe: sharpen, anchor: r0, set: {generate.sample.samples: 4}}}

A base owns the exam (domain, evaluation, gates) of every round that descends from it. A round makes its data by a recipe,
changed by `set`. All errors are reported at once, each with its key, value and fix.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap

from tasks.core.errors import ParamsError, StoreError, masked, suggest
from tasks.core.objects import SCHEME, place
from tasks.core.stage import ANCESTORS
from tasks.project.blocks import (
    EXAM,
    FILE,
    Block,
    Campaign,
    Defaults,
    Pipeline,
    RosterModel,
    Settings,
    input_files,
    plugin_values,
    stages_of,
)
from tasks.project.build import NAME, Builder
from tasks.project.checks import SEEDS, check, exam_items
from tasks.project.costs import Prices
from tasks.project.problems import Problems
from tasks.project.recipes import plain

OLD = frozenset({"domain", "engine", "files", "prompts", "generate", "judge", "filter", "train", "evaluate", "gate"})
"""Keys of a round in the format before recipes."""


def read(root: Path) -> CommentedMap:
    """params.yaml with its comments and quotes, not validated.

    Raises:
        ParamsError: when it is missing or not YAML; names the line.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    return _parse(root, yaml)


def values(root: Path) -> dict[str, Any]:
    """params.yaml as plain values, not validated; a tenth of the time of `read`.

    Raises:
        ParamsError: when it is missing or not YAML; names the line.
    """
    return plain(_parse(root, YAML(typ="safe")))  # type: ignore[no-any-return]


def _parse(root: Path, yaml: YAML) -> Any:
    if not (root / FILE).is_file():
        raise ParamsError(f"there is no {FILE} in {root.resolve()}; run this in a project's root")
    try:
        content = yaml.load((root / FILE).read_text(encoding="utf-8"))
        plain(content)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # keys that are lists, and anchors in a loop
        raise ParamsError(f"{FILE} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{FILE} must hold the keys campaign, defaults, prices, models, bases and rounds")
    return content


def load_params(root: Path) -> Pipeline:
    """Reads params.yaml and its recipes, and validates them.

    Raises:
        ParamsError: with all problems at once.
    """
    return validate(values(root), root)


# Validation


def validate(content: dict[str, Any], root: Path = Path()) -> Pipeline:
    """The pipeline of a parsed params.yaml. Recipes are read from the project at `root`.

    Raises:
        ParamsError: with all problems at once.
    """
    problems = Problems(FILE)
    problems.keys(content, ("campaign", "data", "defaults", "prices", "models", "bases", "rounds"), ("bases",), "")
    campaign = problems.model(Campaign, content.get("campaign") or {}, "campaign") or Campaign()
    prices = None if content.get("prices") is None else problems.model(Prices, content["prices"], "prices")
    defaults = problems.model(Defaults, content.get("defaults") or {}, "defaults") or Defaults()
    roster = _roster(problems.mapping(content, "models"), problems)
    bases, rounds = (problems.mapping(content, key) for key in ("bases", "rounds"))
    if bases == {} == content.get("bases"):
        problems.add("bases", "needs at least one base, from which rounds start")
    _check_names(bases, rounds, problems)
    if old := [n for n, b in rounds.items() if isinstance(b, dict) and OLD & b.keys()]:
        problems.add(f"rounds.{old[0]}", _rewrite(old))
    order = _order(bases, {n: b for n, b in rounds.items() if n not in old}, {*bases, *rounds}, problems)
    builder = Builder(root, defaults, roster, bases, rounds, problems)
    blocks: dict[str, Block] = {}
    for name in order:
        if block := builder.base(name) if name in bases else builder.round(name, blocks):
            blocks[name] = block
    pipeline = Pipeline(
        campaign, blocks, roster, builder.default_judges(), prices, _data(content.get("data"), problems)
    )
    check(pipeline, problems)
    problems.raise_all()
    return pipeline


def _data(url: Any, problems: Problems) -> str | None:
    """The bucket of the tables' parts."""
    try:
        if url is None or (isinstance(url, str) and url.startswith(SCHEME) and place(url)):
            return url
        problems.add(
            "data",
            f"must be a bucket, such as s3://bucket/prefix, not {masked(repr(url))}; leave it out for this folder",
        )
    except StoreError as error:
        problems.add("data", str(error))
    return None


def _rewrite(old: list[str]) -> str:
    return (
        f"uses the old format{' (as do ' + ', '.join(old[1:]) + ')' if old[1:] else ''}: a round is now "
        "{parent, base, seed, recipe, set}. Move prompts, generate, judge, filter, critique, pair, train to "
        "recipes/NAME.yaml under `stages` (`panel` is gone: write members in the stage's block, each with its parameters, "
        "and `collect: {answers: {}, refinements: {}, critiques: {}}` before train), and domain, engine, evaluate, gate to "
        "the base; remove `files`. `flywheel recipe show sharpen` is an example"
    )


def _roster(values: dict[str, Any], problems: Problems) -> dict[str, RosterModel]:
    reserved = {*ANCESTORS, "model"}
    for name in values:
        if name in reserved:
            problems.add(f"models.{name}", f"{name!r} is reserved for a round's own models; choose another name")
        problems.name(name, NAME, f"models.{name}")
    roster = {n: problems.model(RosterModel, v, f"models.{n}") for n, v in values.items() if n not in reserved}
    return {n: m for n, m in roster.items() if m is not None}


def _check_names(bases: dict[str, Any], rounds: dict[str, Any], problems: Problems) -> None:
    for kind, part in (("bases", bases), ("rounds", rounds)):
        for name, block in part.items():
            problems.name(name, NAME, f"{kind}.{name}")
            if not isinstance(block, dict):
                problems.add(f"{kind}.{name}", f"must be a block, not {block!r}")
    for name in sorted(bases.keys() & rounds.keys()):
        problems.add(f"rounds.{name}", "is also the name of a base; rename one of them")


def _order(bases: dict[str, Any], rounds: dict[str, Any], known: set[str], problems: Problems) -> list[str]:
    """Names in the order of the file, ancestors first. Unknown ancestors and cycles are problems."""
    ancestors = {
        n: _parent_and_anchor(n, b, known, problems)
        for n, b in rounds.items()
        if isinstance(b, dict) and n not in bases
    }
    order = [n for n, b in bases.items() if isinstance(b, dict)]
    pending = {n: names for n, names in ancestors.items() if names is not None}
    while ready := [n for n, names in pending.items() if all(a in order for a in names)]:
        order.append(ready[0])
        del pending[ready[0]]
    if cycle := [n for n in pending if _in_cycle(n, pending)]:
        problems.add(
            f"rounds.{cycle[0]}.{'parent' if rounds[cycle[0]]['parent'] in cycle else 'anchor'}",
            f"the ancestors form a cycle ({' → '.join([*cycle, cycle[0]])}); one of them must start from a base",
        )
    return order


def _parent_and_anchor(name: str, block: dict[str, Any], known: set[str], problems: Problems) -> list[str] | None:
    """The parent and anchor of a round; None when one is invalid."""
    if block.get("parent") is None:
        problems.add(f"rounds.{name}.parent", f"is missing; name a base or round ({', '.join(sorted(known - {name}))})")
        return None
    named = {k: block[k] for k in ("parent", "anchor") if block.get(k) is not None}
    unknown = {k: v for k, v in named.items() if not isinstance(v, str) or v not in known}
    for key, value in unknown.items():
        problems.add(f"rounds.{name}.{key}", f"there is no base or round {value!r}; {suggest(str(value), known)}")
    return None if unknown else list(named.values())


def _in_cycle(name: str, ancestors: dict[str, list[str]]) -> bool:
    seen, queue = set[str](), list(ancestors.get(name, ()))
    while queue:
        ancestor = queue.pop()
        if ancestor == name:
            return True
        if ancestor not in seen:
            seen.add(ancestor)
            queue += ancestors.get(ancestor, ())
    return False


__all__ = [
    "EXAM", "FILE", "SEEDS", "Block", "Pipeline", "RosterModel", "Settings", "exam_items", "input_files", "load_params",
    "plain", "plugin_values", "read", "stages_of", "validate",
]  # fmt: skip
