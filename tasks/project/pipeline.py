"""dvc.yaml, rendered from the stages' signatures: `foreach` over the bases and over the rounds of params.yaml.

A stage depends on its plan and on the tables and models that it reads, and on nothing else; `plan` depends on params.yaml,
recipes, seeds and code. Every out is `persist: true`: otherwise DVC deletes outs before a run, and a kill would lose the
old version.

DVC sees no defaults, and knows the same dependencies of every round. So a model of an ancestor or an optional table is one
where some round's strategies open or read it; and where some round asks for an `anchor` or `grandparent`, `vars` gives each
round those that it does not name itself. A change of that kind wants `flywheel render`, which `flywheel run` and `plan` do by themselves.

A block has one metrics file that DVC shows, its last stage's. `plots` draw all rounds of a base together, and `artifacts`
name the models; neither is part of a stage, so that they make nothing stale. They name rounds, so `flywheel round add` and
`flywheel run` render dvc.yaml again.

DVC gives commands to a shell, and its templates quote nothing: `${key}` in a command would run what a block's name in a
params.yaml from elsewhere says. So no command holds a name. A stage takes its own from DVC_STAGE, which DVC sets.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.core import labels
from tasks.core.plan import FOLDER
from tasks.core.stage import OPTIONAL, Input, Stage, stages
from tasks.project.blocks import reads_labels
from tasks.project.params import SEEDS, Block, Pipeline, input_files, stages_of
from tasks.project.recipes import FOLDER as RECIPES

FILE = "dvc.yaml"
HEADER = """\
# Rendered from the signatures of the stages in tasks/ by `flywheel render`; a test asserts that it is up to date.
# Values are in params.yaml and recipes/, and expanded in data/plan/.
"""
SHOWN = ("plots", "artifacts")
"""Parts of dvc.yaml that no stage depends on."""


@dataclass(frozen=True)
class Definition:
    """A stage as DVC understands it: its lines of dvc.yaml, values filled in, and the paths that it reads or writes."""

    text: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """A plot of the rounds of a base, over one file of each."""

    name: str
    title: str
    template: str
    file: str
    x: str
    y: str
    label: str
    with_base: bool = True


PLOTS = (
    Plot("exam", "Exam", "exam", "metrics/evaluate.json", "round", "value", "held-out accuracy"),
    Plot("pass_at_1", "pass@1 by level", "levels", "plots/levels.csv", "level", "pass_at_1", "pass@1"),
    Plot("greedy", "Greedy accuracy by level", "levels", "plots/levels.csv", "level", "greedy", "greedy"),
    Plot("loss", "Training loss", "curve", "plots/train.csv", "step", "loss", "loss", with_base=False),
)
PLAN = {
    "desc": "The plan of every stage of every round: all parameters, code, files and models that decide its result.",
    "cmd": "flywheel plan",
    "deps": ["params.yaml", str(RECIPES), str(SEEDS), "tasks"],
    "outs": [{str(FOLDER): {"cache": False, "persist": True}}],
}


def render(pipeline: Pipeline) -> str:
    """The content of dvc.yaml."""
    text = io.StringIO(HEADER)
    text.seek(0, io.SEEK_END)
    yaml = YAML()
    yaml.width = 160
    yaml.dump(_content(pipeline), text)
    return text.getvalue()


def write(root: Path, pipeline: Pipeline) -> bool:
    """Renders dvc.yaml; returns whether that changed it."""
    path, text = root / FILE, render(pipeline)
    if path.is_file() and path.read_text() == text:
        return False
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    return True


def is_outdated(root: Path, pipeline: Pipeline) -> bool:
    """Whether dvc.yaml lacks dependencies that rounds need, or differs in what it says of plots and models."""
    content = _read(root)
    now = _content(pipeline)
    return content is not None and (
        lacks_dependencies(root, pipeline) or any(content.get(key) != now.get(key) for key in SHOWN)
    )


def lacks_dependencies(root: Path, pipeline: Pipeline) -> bool:
    """Whether the dependencies in dvc.yaml differ from those that rounds need; a running `dvc repro` then has the wrong ones."""
    content = _read(root)
    if content is None:
        return False
    now, then = _content(pipeline), content.get("stages") or {}
    same = "plan" not in then or then["plan"].get("deps") == now["stages"]["plan"]["deps"]
    same &= all(then[n]["do"]["deps"] == g["do"]["deps"] for n, g in now["stages"].items() if n in then and "do" in g)
    return not same or content.get("vars") != now.get("vars")


def _read(root: Path) -> dict[str, Any] | None:
    """The content of dvc.yaml; None where there is none yet."""
    path = root / FILE
    content = _parse(path.read_text()) if path.is_file() else None
    return content if isinstance(content, dict) else None


@lru_cache(maxsize=1)
def _parse(text: str) -> Any:
    return YAML(typ="safe").load(text)


def definitions(root: Path, pipeline: Pipeline) -> dict[str, Definition]:
    """The stages that are in dvc.yaml as they are rendered, by address; those that somebody edited there are left out."""
    content, now = _read(root), _content(pipeline)
    if content is None or content.get("vars") != now.get("vars"):
        return {}
    then = content.get("stages") or {}
    same = {name: entry for name, entry in now["stages"].items() if then.get(name) == entry}
    found = {"plan": _definition(same["plan"], {})} if "plan" in same else {}
    optional = {i.ancestor for inputs in _needed_by_rounds(pipeline).values() for i in inputs} & set(OPTIONAL)
    for block in pipeline.blocks.values():
        values = {"${key}": block.name, "${item.parent}": str(block.parent), "${item.base}": block.base}
        named = {} if block.is_base else {"anchor": block.anchor} | _optional_ancestors(pipeline, block, optional)
        values |= {f"${{item.{kind}}}": str(name) for kind, name in named.items()}
        for stage in stages_of(block):
            if (group := _group_name(stage, block.is_base)) in same:
                found[address(stage, block)] = _definition(same[group]["do"], values)
    return found


def _definition(entry: dict[str, Any], values: dict[str, str]) -> Definition:
    text = json.dumps(entry, sort_keys=True)
    for template, value in values.items():
        text = text.replace(template, value)
    entry = json.loads(text)
    outs = [*entry["outs"], *entry.get("metrics", ())]
    return Definition(text, (*entry["deps"], *(path for out in outs for path in out)))


def _optional_ancestors(pipeline: Pipeline, block: Block, kinds: set[str]) -> dict[str, str]:
    """Values of a round for the optional ancestors in DVC's templates, without an anchor that it names itself. Ancestors that
    it does not need default to its parent, which it depends on anyway: another round's first anchor does not make it stale.
    """
    needed = {i.ancestor for s in stages_of(block) for i in needed_inputs(pipeline, block, s)}
    owners = {k: str((k in needed and block.ancestor(k)) or block.parent) for k in sorted(kinds)}
    return {k: owner for k, owner in owners.items() if k != "anchor" or not block.anchor}


def needed_inputs(pipeline: Pipeline, block: Block, stage: Stage) -> set[Input]:
    """Inputs that the strategies of a stage of a block want, whether the block has them or not."""
    judges = pipeline.judges_of(block) if "judges" in stage.context else {}
    return stage.needed_inputs(block.stages[stage.name].members.values(), judges.values())


def is_available(need: Input, block: Block) -> bool:
    """Whether a block has an input. A base has no tables of ancestors and none of the optional ones; its `base` is itself."""
    if block.is_base and not need.opened:
        return _is_of_base(need)
    return need.ancestor is None or block.ancestor(need.ancestor) is not None


def _is_of_base(need: Input) -> bool:
    return need.ancestor is None and not need.optional


def _content(pipeline: Pipeline) -> dict[str, Any]:
    """Content of dvc.yaml as plain values."""
    needed = _needed_by_rounds(pipeline)
    optional = {i.ancestor for inputs in needed.values() for i in inputs} & set(OPTIONAL)
    named = {b.name: _optional_ancestors(pipeline, b, optional) for b in pipeline.rounds.values()}
    shown = {"plots": list(_plots(pipeline)), "artifacts": _artifacts(pipeline)}
    labelled = any(reads_labels(path) for block in pipeline.blocks.values() for path in input_files(block).values())
    plan = PLAN | {"deps": [*PLAN["deps"], str(labels.FOLDER)]} if labelled else PLAN
    return ({"vars": [{"rounds": named}]} if optional else {}) | {"stages": {"plan": plan} | _groups(needed)} | shown


def _needed_by_rounds(pipeline: Pipeline) -> dict[str, set[Input]]:
    """Inputs of each stage that some round wants."""
    rounds, of_rounds = pipeline.rounds.values(), [s for s in stages().values() if s.bases != "only"]
    return {s.name: {i for b in rounds for i in needed_inputs(pipeline, b, s)} for s in of_rounds}


def address(stage: Stage, block: Block) -> str:
    """Address of a stage of a base or round in DVC, such as `judge@r2`."""
    return f"{_group_name(stage, block.is_base)}@{block.name}"


def _group_name(stage: Stage, of_base: bool) -> str:
    return f"{stage.name}-base" if of_base and stage.bases == "too" else stage.name


def _groups(needed: dict[str, set[Input]]) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for stage in stages().values():
        if stage.bases != "no":
            groups[_group_name(stage, True)] = _group(stage, "bases", {i for i in stage.inputs if _is_of_base(i)})
        if stage.bases != "only":
            groups[_group_name(stage, False)] = _group(stage, "rounds", needed[stage.name])
    return groups


def _group(stage: Stage, kind: str, needed: set[Input]) -> dict[str, Any]:
    of_kind = [s.name for s in stages().values() if s.bases != ("no" if kind == "bases" else "only")]
    return {"foreach": f"${{{kind}}}", "do": _entry(stage, needed, stage.name == of_kind[-1])}


def _entry(stage: Stage, needed: set[Input], is_last: bool) -> dict[str, Any]:
    here = "data/round=${key}"
    outs = [*written(stage), f"manifests/{stage.name}.json", *(f"plots/{n}.csv" for n in stage.plots)]
    inputs = [i for i in stage.inputs if i in needed]
    metrics = {f"{here}/metrics/{stage.name}.json": {"persist": True}}
    entry: dict[str, Any] = {
        "desc": (stage.function.__doc__ or "").strip().split("\n")[0],
        "cmd": f'flywheel stage {stage.name} "$DVC_STAGE"',
        "deps": list(dict.fromkeys([f"{FOLDER}/${{key}}/{stage.name}.json", *map(_template, inputs)])),
        "outs": [{f"{here}/{out}": {"persist": True}} for out in outs],
    }
    return entry | ({"metrics": [metrics]} if is_last else {"outs": [*entry["outs"], metrics]})


def _template(need: Input) -> str:
    """The path of an input as a DVC template."""
    return f"data/round=${{{f'item.{need.ancestor}' if need.ancestor else 'key'}}}/{need.name}"


def _plots(pipeline: Pipeline) -> Iterator[dict[str, Any]]:
    """Plots of each base that has rounds, a line a round; their templates are in .dvc/plots."""
    for base in (b.name for b in pipeline.blocks.values() if b.is_base):
        rounds = [r.name for r in pipeline.rounds.values() if r.base == base]
        for plot in PLOTS if rounds else ():
            names = [base, *rounds] if plot.with_base else rounds
            yield {
                f"{plot.name}-{base}": {
                    "title": f"{plot.title}, rounds of {base}",
                    "template": plot.template,
                    "x": plot.x,
                    "y": {f"data/round={name}/{plot.file}": plot.y for name in names},
                    "y_label": plot.label,
                }
            }


def _artifacts(pipeline: Pipeline) -> dict[str, Any]:
    """Every model under its base's or round's name, for `dvc artifacts get` and registries that read dvc.yaml."""
    return {
        re.sub(r"[^a-z0-9]+", "-", block.name.lower()).strip("-"): {
            "path": f"data/round={block.name}/model",
            "type": "model",
            "desc": f"Base {block.name}" if block.is_base else f"Round {block.name}, trained from {block.parent}",
        }
        for block in pipeline.blocks.values()
    }


def dependencies(pipeline: Pipeline) -> dict[tuple[str, str], list[tuple[Input, str]]]:
    """What every stage depends on in dvc.yaml, by (base or round, stage): inputs, each with its base or round."""
    needed = _needed_by_rounds(pipeline)
    of_bases = {s.name: {i for i in s.inputs if _is_of_base(i)} for s in stages().values()}
    return {
        (b.name, s.name): _owned(pipeline, b, [i for i in s.inputs if i in (of_bases if b.is_base else needed)[s.name]])
        for b in pipeline.blocks.values()
        for s in stages_of(b)
    }


def _owned(pipeline: Pipeline, block: Block, inputs: list[Input]) -> list[tuple[Input, str]]:
    """Inputs with the base or round that they belong to."""
    named = {} if block.is_base else _optional_ancestors(pipeline, block, {i.ancestor for i in inputs} & set(OPTIONAL))
    owners = {k: named.get(k) or block.ancestor(k) for i in inputs if (k := i.ancestor)}
    return [(i, owners[i.ancestor] or block.name if i.ancestor else block.name) for i in inputs]


def written(stage: Stage) -> list[str]:
    """Names of the tables and folders that a stage writes. `base` also writes empty tables that rounds read of ancestors."""
    return [*stage.outputs, *(empty_tables() if stage.bases == "only" else [])]


def empty_tables() -> list[str]:
    """Tables that stages read of an ancestor and that no stage of a base makes."""
    base_outputs = {o for s in stages().values() if s.bases != "no" for o in s.outputs}
    ancestor_inputs = {i.name for s in stages().values() for i in s.inputs if i.ancestor}
    return sorted(ancestor_inputs - base_outputs)


__all__ = [
    "Definition",
    "address",
    "definitions",
    "dependencies",
    "needed_inputs",
    "render",
    "write",
    "written",
]
