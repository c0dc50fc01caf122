"""The bake-off: recipes side by side, from one base, on one frozen pool of prompts, each with the same budget of generated
tokens.

It has a project of its own in `.flywheel/bakeoff`, whose rounds are branches of one tree: `cream_s1_2` is the second round of
recipe `cream` with seed 1. Every command works there: `cd .flywheel/bakeoff && flywheel sql …`. A branch is run in one
process, two of them at a time, and without DVC: a stage runs where its manifest is of another plan than today's, or where
one before it has run, so that a killed bake-off goes on where it was.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from ruamel.yaml import YAML

from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.plan import Plan
from tasks.core.plugin import Params
from tasks.project import pipeline, plan, recipes
from tasks.project.edit import STATE
from tasks.project.estimate import rows_for_each
from tasks.project.params import FILE, load_params, plain, read, stages_of
from tasks.project.phases import anchor_of, lines
from tasks.project.scratch import link, run_apart, run_stages

PLACE = Path(STATE) / "bakeoff"
LINKS = ("tasks", "recipes", "data/base", "data/taught", "data/seeds")
"""What the bake-off's project shares with the one that it was started in."""
CONTROLS = ("random", "verifier")
"""Recipes that show what a round brings without any judgment, and with the truth."""


class Size(Params):
    """How large a bake-off is."""

    base: str = "r0t"
    """The base that all recipes start from."""
    rounds: PositiveInt = 2
    """Rounds in a row of each recipe."""
    seeds: PositiveInt = 3
    """Repetitions, each with seeds of its own."""
    prompts: PositiveInt = 400
    """Problems of the pool: the first of the domain's training set, the same in every round."""
    token_budget: PositiveInt = 600_000
    """Most tokens that a round may generate before it trains, whatever for; a batch may go beyond it. The rounds of a recipe's
    phases share it, and answers take at most half of it: a recipe that draws many takes fewer of the prompts."""
    answer_tokens: PositiveInt = 30
    """Tokens of an answer, about: those of the embedded bases have 25 to 35."""
    problems: PositiveInt = 350
    """Held-out problems that each round's model answers, greedily and by sampling."""
    samples: PositiveInt = 8
    """Samples of each."""
    gold: NonNegativeInt = 140
    """Gold answers that the round's judges judge."""


def branch(recipe: str, seed: int) -> str:
    """The name of a branch; its rounds are `<branch>_1`, `<branch>_2` …"""
    return f"{recipe}_s{seed}"


def prepare(root: Path, place: Path, names: Sequence[str], size: Size) -> None:
    """Writes the bake-off's project and its plans. What was made there before stays, where its plan is the same.

    Raises:
        UnknownName: for a base or recipe that the project does not have.
        ParamsError: when a recipe cannot be run from this base.
    """
    content = plain(read(root))
    if size.base not in content["bases"]:
        raise UnknownName("base", size.base, content["bases"], FILE)
    place.mkdir(parents=True, exist_ok=True)
    link(root, place, LINKS)
    base = content["bases"][size.base]
    exam = {
        "answers": {"splits": ["heldout"], "greedy": size.problems, "sampled": size.problems, "samples": size.samples,
                    "ks": sorted({1, size.samples})},
        "judging": {"count": size.gold},
        "exploration": {},
    }  # fmt: skip
    rounds = {
        name: block
        for recipe in names
        for seed in range(1, size.seeds + 1)
        for name, block in branch_rounds(place, recipe, seed, size).items()
    }
    content["campaign"] = {"name": f"{(content.get('campaign') or {}).get('name', 'flywheel')} bake-off"}
    content["bases"] = {size.base: base | {"evaluate": exam, "gate": {"split": "heldout"}}}
    content["rounds"] = rounds
    with (place / FILE).open("w", encoding="utf-8") as file:
        YAML().dump(content, file)
    pipeline.write(place, load_params(place))
    plan.write(place)


def branch_rounds(root: Path, recipe: str, seed: int, size: Size) -> dict[str, dict[str, Any]]:
    """The rounds of a branch as params.yaml has them, those of the recipe's phases among them."""
    rounds: dict[str, dict[str, Any]] = {}
    parent = size.base
    for number in range(1, size.rounds + 1):
        name = f"{branch(recipe, seed)}_{number}"
        written = lines(name, parent, recipe, recipes.part(root, recipe), rounds)
        for line in written:
            stages = recipes.part(root, line.recipe).stages
            block = {"parent": line.parent, "base": size.base, "seed": 1000 * seed + number, "recipe": line.recipe}
            anchor = anchor_of(line, rounds)
            rounds[line.name] = (
                block
                | ({"anchor": anchor} if anchor else {})
                | {"set": _changes(stages, size, size.token_budget // len(written))}
            )
        parent = name
    return rounds


def _changes(stages: dict[str, Any], size: Size, token_budget: int) -> dict[str, Any]:
    """The pool in the place of the recipe's own prompts, and the budget."""
    own = {f"prompts.{member}": None for member in stages.get("prompts", {}) if member != "seeds"}
    affordable = token_budget // (2 * size.answer_tokens * rows_for_each("generate", stages))
    pool = {"prompts.seeds.split": "train", "prompts.seeds.count": max(1, min(size.prompts, affordable))}
    return own | pool | {"engine.token_budget": token_budget}


def run(place: Path, names: Sequence[str], size: Size, jobs: int, report: Callable[[str], None]) -> dict[str, str]:
    """Runs every branch, `jobs` at a time; what went wrong, by branch. A branch that fails does not keep others from running.

    Raises:
        FlywheelError: when the base cannot be made or evaluated.
    """
    if failure := _run_apart(place, size.base):
        raise FlywheelError(f"bake-off: the base {size.base} failed: {failure}")
    branches = [branch(recipe, seed) for seed in range(1, size.seeds + 1) for recipe in names]

    def one(name: str) -> str | None:
        failure = _run_apart(place, name)
        report(f"{name}: {failure or 'done'}")
        return failure

    with ThreadPoolExecutor(jobs) as pool:
        failures = dict(zip(branches, pool.map(one, branches), strict=True))
    return {name: failure for name, failure in failures.items() if failure}


def _run_apart(place: Path, name: str) -> str | None:
    """Runs a branch or base in a process of its own; the last line of one that failed."""
    return run_apart(place, place / f"logs/{name}.log", __name__, name, OMP_NUM_THREADS="1")


def stages_to_run(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """(round, stage) of a branch or base, in order, from the first one that was not made by today's plan. Rounds of phases
    are not evaluated, and no gate decides: each round goes on from the one before.
    """
    stale = False
    for block in load_params(root).blocks.values():
        if block.name != name and not block.name.startswith(f"{name}_"):
            continue
        for stage in stages_of(block):
            if stage.name == "gate" or (block.is_phase and stage.name == "evaluate"):
                continue
            manifest = store.manifests(root, block.name).get(stage.name)
            stale = stale or manifest is None or manifest.plan.digest != Plan.read(root, block.name, stage.name).digest
            if stale:
                yield block.name, stage.name


if __name__ == "__main__":
    run_stages(Path(), stages_to_run(Path(), sys.argv[1]))
