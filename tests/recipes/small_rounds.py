"""Two rounds of a recipe in small: the real taught base and a dozen problems."""

from pathlib import Path
from typing import Any

import polars as pl
import projects
from ruamel.yaml import YAML

from tasks.core import store
from tasks.core.models import digest
from tasks.core.plan import Plan
from tasks.project import pipeline, recipes
from tasks.project.params import load_params, plain
from tasks.project.phases import anchor_of, lines

SIZES = {"cream": (16, 8), "self_reinforcement": (60, 4)}
"""Problems and samples, where 16 and 4 are too few for two rankings, or two models, to differ."""
SCREEN = {"validation": 20, "heldout": 20, "gold": 20}


class Rounds:
    """A project with two rounds of one recipe."""

    def __init__(self, root: Path, recipe: str, names: list[str]) -> None:
        self.root, self.recipe, self.names = root, recipe, names

    def table(self, name: str, table: str) -> pl.DataFrame:
        return store.read(self.root, name, table)

    def digest(self, name: str) -> str:
        return digest(self.root / f"data/round={name}/model")

    def plan(self, name: str, stage: str) -> Plan:
        return Plan.read(self.root, name, stage)

    def metrics(self, name: str, stage: str) -> dict[str, float]:
        return store.manifests(self.root, name)[stage].metrics

    def curve(self, name: str) -> pl.DataFrame:
        return pl.read_csv(self.root / f"data/round={name}/plots/train.csv")

    def right(self, name: str) -> dict[str, bool]:
        """Whether each response is right, as the verifier says."""
        verdicts = self.table(name, "judgments").filter(member="verifier").drop_nulls("verdict")
        return {id: verdict == "pass" for id, verdict in verdicts.select("response_id", "verdict").rows()}


def project(root: Path, recipe: str) -> list[str]:
    """Gives a project the taught base, and two rounds of the recipe; their names, those of phases among them."""
    content = plain(YAML(typ="safe").load((projects.HERE / "params.yaml").read_text()))
    base = content["bases"]["r0t"]
    exam = {"answers": {"splits": ["validation"], "greedy": 14, "sampled": 7, "samples": 2, "ks": [1, 2]}}
    content["bases"] = {
        "r0t": base | {"evaluate": exam, "gate": {}, "engine": {"strategy": "transformers", "threads": 1}}
    }
    content["rounds"] = rounds = dict[str, Any]()
    parent = "r0t"
    for number in (1, 2):
        for line in lines(f"b{number}", parent, recipe, recipes.part(root, recipe), rounds):
            anchor = anchor_of(line, rounds)
            block = {"parent": line.parent, "base": "r0t", "seed": number, "recipe": line.recipe}
            changes = small(recipes.part(root, line.recipe).stages, *SIZES.get(recipe, (16, 4)))
            rounds[line.name] = block | ({"anchor": anchor} if anchor else {}) | {"set": changes}
        parent = f"b{number}"
    YAML().dump(content, root / "params.yaml")
    pipeline.write(root, load_params(root))
    return list(rounds)


def small(stages: dict[str, Any], prompts: int, samples: int) -> dict[str, Any]:
    """Changes that make a recipe small and leave its strategies."""
    changes = {
        f"prompts.{m}.{k}": v for m in stages["prompts"] for k, v in (("count", prompts), ("evaluation", SCREEN))
    }
    changes |= {f"prompts.{m}.levels": {2: 1, 4: 1, 6: 1} for m, v in stages["prompts"].items() if "levels" in v}
    changes |= {f"generate.{member}.samples": samples for member in stages["generate"]}
    if "rubric" in stages["judge"]:
        changes["judge.rubric.samples"] = 2
    return changes
