"""Whether results are whole and current: from manifests, today's plans and the files' sizes, in a fraction of a second.

DVC alone decides what runs. This answers the same question for tables that people read, without its lock.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from tasks.core import pointers, store
from tasks.core.errors import StoreError
from tasks.core.plan import Plan
from tasks.core.stage import Input, Stage, stages
from tasks.core.store import Manifest
from tasks.project.headlines import metrics_text
from tasks.project.params import Block, Pipeline, stages_of
from tasks.project.plan import Plans, plans

Results = list[tuple[Stage, Manifest]]
"""The stages of a base or round that have run, in order."""
Written = dict[tuple[str, str], tuple[str, bool]]
"""(base or round, output) → its digest, and whether the stage that wrote it is stale."""


def stale_stages(root: Path, pipeline: Pipeline, current: Plans | None = None) -> dict[str, dict[str, str]]:
    """The stages of each base and round that ran with another plan, or on other inputs, than today's, each with what was
    edited. The text is empty for a stage that is stale because one before it is. `current` are today's plans, where the
    caller has them.
    """
    current = plans(root, pipeline) if current is None else current
    written: Written = {}
    stale: dict[str, dict[str, str]] = {}
    for name, block in pipeline.blocks.items():
        for stage, manifest in _in_order(root, block):
            reason = _reason(stage, manifest, current[name, stage.name], written)
            if reason is not None:
                stale.setdefault(name, {})[stage.name] = reason
            written |= {(name, out): (o.digest, reason is not None) for out, o in manifest.outputs.items()}
    return stale


def _in_order(root: Path, block: Block) -> Results:
    manifests = store.manifests(root, block.name)
    return [(stage, manifests[stage.name]) for stage in stages_of(block) if stage.name in manifests]


def _reason(stage: Stage, manifest: Manifest, today: Plan, written: Written) -> str | None:
    """Why a stage is stale; None where it is not."""
    if edited := [f for f in Plan.model_fields if getattr(manifest.plan, f) != getattr(today, f)]:
        return f"{', '.join(edited)} edited"
    states = dict(_inputs(stage, manifest, written))
    if changed := [name for name, state in states.items() if state == "changed"]:
        return f"{', '.join(changed)} changed"
    return "" if "stale" in states.values() else None


def _inputs(stage: Stage, manifest: Manifest, written: Written) -> Iterator[tuple[str, str]]:
    """What a stage read, by argument: `changed`, `stale` or `current`."""
    for need in (i for i in stage.inputs if i.argument in manifest.inputs):
        digest, is_stale = written.get((_owner(need, manifest), need.name), ("", False))
        changed = digest != manifest.inputs[need.argument]
        yield need.argument, "changed" if changed and not is_stale else "stale" if is_stale else "current"


def is_result_of_plan(root: Path, name: str, stage: str) -> bool:
    """Whether what a stage wrote is whole, byte by byte, with nothing beside it, and was made by its plan from the inputs that
    are there. A manifest of an older version has no digests of plots; those are not compared.
    """
    try:
        manifest = store.manifests(root, name)[stage]
        if manifest.plan != Plan.read(root, name, stage):
            return False
        for owner, out, digest in inputs_of(manifest):
            if store.find(root, owner, out)[1].digest != digest:
                return False
        for out, output in manifest.outputs.items():
            (store.scan if output.kind == "table" else store.folder)(root, name, out)
            place = store.round_folder(root, name) / out
            own = (
                {place / part.file for part in output.parts}
                if output.kind == "folder" or not pointers.read(place)
                else {place / pointers.POINTER}
            )
            if own != {p for p in place.rglob("*") if p.is_file()}:
                return False
        if any(store.sha256(store.round_folder(root, name) / plot) != sha for plot, sha in manifest.plots.items()):
            return False
        file = store.round_folder(root, name) / f"metrics/{stage}.json"
        made = metrics_text(root, name, stage, manifest.metrics)
        if json.loads(file.read_bytes()) != json.loads(made):  # not as text: a manifest has 5.0 for 5
            return False
    except (StoreError, KeyError, OSError, ValueError):  # not there, damaged, or of another version of this project
        return False
    return True


def inputs_of(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """What a stage read: the base or round that it is of, its name, and its digest.

    Raises:
        KeyError: of a stage, or an argument of one, that an older version had.
    """
    needs = {i.argument: i for i in stages()[manifest.stage].inputs}
    for argument, digest in manifest.inputs.items():
        yield _owner(needs[argument], manifest), needs[argument].name, digest


def absent_files(root: Path, pipeline: Pipeline) -> dict[str, list[str]]:
    """What an incomplete store lacks, by base or round: files that manifests name and that are missing or cut short, and
    manifests that other ones rest on. A bucket is not asked.
    """
    ran = {name: _in_order(root, block) for name, block in pipeline.blocks.items()}
    written = {(name, out) for name, results in ran.items() for _, manifest in results for out in manifest.outputs}
    absent = {name: [*_absent(root, results), *_absent_inputs(ran, name, written)] for name, results in ran.items()}
    return {name: texts for name, texts in absent.items() if texts}


def _absent(root: Path, results: Results) -> Iterator[str]:
    for _, manifest in results:
        for name, output in manifest.outputs.items():
            place = store.round_folder(root, manifest.round) / name
            try:
                files = zip(store.paths(place, output), output.parts, strict=True)
            except StoreError as error:
                yield str(error)
                continue
            yield from (str(file) for file, part in files if isinstance(file, Path) and _size(file) != part.bytes)


def _size(file: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        stat = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size if S_ISREG(stat.st_mode) else None


def _absent_inputs(ran: dict[str, Results], name: str, written: set[tuple[str, str]]) -> Iterator[str]:
    """What stages of a round read and no manifest has any more, also of ancestors that params.yaml still has."""
    for stage, manifest in ran[name]:
        for need in (i for i in stage.inputs if i.argument in manifest.inputs):
            owner = _owner(need, manifest)
            if owner in ran and (owner, need.name) not in written:
                yield f"the manifest of {owner}'s {need.name}, which {stage.name}@{name} read"


def _owner(need: Input, manifest: Manifest) -> str:
    return manifest.plan.ancestors.get(need.ancestor, "") if need.ancestor else manifest.round
