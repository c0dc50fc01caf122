"""dvc.yaml, rendered from the stages' signatures: `foreach` over the bases and over the rounds of params.yaml.

What makes a stage stale is what it depends on here: its params, its inputs, its own file and the chosen strategy's (its
whole folder where it takes a panel), the chosen domain's file, the chosen engine's (all engines where a member of the
panel may name its own). Every out is `persist: true`, for
DVC deletes outs before a run otherwise, and a kill would leave nothing.

This file is shared by all stages: an edit of it does not make stages stale, unless it changes dvc.yaml.
"""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.params import Block
from tasks.stage import Stage, load, names, stages

FILE = "dvc.yaml"
HEADER = """\
# Rendered from the signatures of the stages in tasks/ by `flywheel render`; a test asserts that it is up to date.
# Values are in params.yaml.
"""


def render() -> str:
    """The text of dvc.yaml."""
    text = io.StringIO(HEADER)
    text.seek(0, io.SEEK_END)
    yaml = YAML()
    yaml.width = 160
    yaml.dump({"stages": _groups()}, text)
    return text.getvalue()


def write(root: Path) -> bool:
    """Renders dvc.yaml; says whether that changed it."""
    path, text = root / FILE, render()
    if path.is_file() and path.read_text() == text:
        return False
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    return True


def address(stage: Stage, block: Block) -> str:
    """DVC's name of a stage of a base or round, such as `judge@r2`."""
    return f"{_group_name(stage, block.is_base)}@{block.name}"


def _group_name(stage: Stage, of_base: bool) -> str:
    return f"{stage.name}-base" if of_base and stage.bases == "too" else stage.name


def _groups() -> dict[str, Any]:
    groups = {}
    for stage in stages().values():
        if stage.bases != "no":
            groups[_group_name(stage, True)] = _group(stage, "bases")
        if stage.bases != "only":
            groups[_group_name(stage, False)] = _group(stage, "rounds")
    return groups


def _group(stage: Stage, kind: str) -> dict[str, Any]:
    return {"foreach": f"${{{kind}}}", "do": _entry(stage, kind)}


def _entry(stage: Stage, kind: str) -> dict[str, Any]:
    here = "data/round=${key}"
    outs = [*written(stage), f"manifests/{stage.name}.json"]
    entry = {
        "desc": (stage.function.__doc__ or "").strip().split("\n")[0],
        "cmd": f"flywheel stage {stage.name} ${{key}}",
        "params": [f"{kind}.${{key}}.{key}" for key in param_keys(stage)],
        "deps": [*code(stage, "${item.%s.strategy}"), *seeds(stage), *inputs(stage)],
        "outs": [{f"{here}/{out}": {"persist": True}} for out in outs],
        "metrics": [{f"{here}/metrics/{stage.name}.json": {"persist": True}}],
    }
    if stage.plots:
        entry["plots"] = [{f"{here}/plots/{n}.csv": {"persist": True, **axes}} for n, axes in stage.plots.items()]
    return entry


def param_keys(stage: Stage) -> list[str]:
    """The keys of a block that a stage depends on."""
    return [stage.name, *(k for k in ("seed", "domain", "engine") if k in stage.context)]


def code(stage: Stage, chosen: str) -> list[str]:
    """The files whose edit makes a stage stale; `chosen % key` is the strategy that a block names under `key`."""
    if stage.is_panel:
        own = [f"tasks/{stage.name}"]
    else:
        own = [f"tasks/{stage.name}/__init__.py", f"tasks/{stage.name}/{chosen % stage.name}.py"]
    plugins = {p: f"tasks/{p}s/{chosen % p}.py" for p in ("domain", "engine") if p in stage.context}
    if stage.is_panel and any(load(stage.name, member).opens for member in names(stage.name)):
        del plugins["engine"]  # a template for all rounds cannot name what some of them choose
        own += [f"tasks/engines/{name}.py" for name in names("engines")]
    return [*own, *plugins.values()]


def seeds(stage: Stage) -> list[str]:
    """What a block's domain and strategies read below data/seeds; the params are not valid where they read anything else."""
    return ["${item.files}"] if "domain" in stage.context else []


def inputs(stage: Stage) -> list[str]:
    """The tables and folders that a stage reads, as DVC's templates."""
    return [f"data/round=${{{'item.' + i.ancestor if i.ancestor else 'key'}}}/{i.name}" for i in stage.inputs]


def written(stage: Stage) -> list[str]:
    """Names of the tables and folders that a stage writes; a base writes empty what a round may ask of its parent."""
    return [*stage.outputs, *(empties() if stage.bases == "only" else [])]


def empties() -> list[str]:
    """The tables that some stage reads of an ancestor and that no stage of a base makes."""
    made = {o for s in stages().values() if s.bases != "no" for o in s.outputs}
    asked = {i.name for s in stages().values() for i in s.inputs if i.ancestor}
    return sorted(asked - made)


def code_files(root: Path, stage: Stage, block: Block) -> list[Path]:
    """The files of a block's stage whose edit makes it stale."""
    strategies = {k: v.get("strategy") for k, v in block.raw.items() if isinstance(v, dict)}
    paths = []
    for template in code(stage, "{%s}"):
        path = root / template.format(**strategies)
        paths += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return paths


__all__ = ["address", "code_files", "render", "write"]
