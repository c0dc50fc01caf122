"""The graph of a project's stages, and which of them are stale.

DVC alone decides what is stale. It runs in this process, before Prefect is imported (0.5 s instead of 1.5 s in a
subprocess). The plan is updated first, also in this process.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from tasks.core.errors import Busy, FlywheelError
from tasks.project import pipeline, plan
from tasks.project.params import Block, Pipeline, load_params, read, stages_of

Graph = dict[str, set[str]]
"""Address of a stage (`judge@r2`) → addresses of the stages that it reads."""


def rounds(root: Path) -> list[str]:
    """The rounds in the order of params.yaml (`Pipeline.rounds` has parents first), without those of recipes' phases."""
    blocks = load_params(root).blocks
    return [name for name in read(root).get("rounds") or {} if not blocks[name].is_phase]


def graph(params: Pipeline, names: Iterable[str]) -> Graph:
    """The stages of rounds and of all their ancestors, in topological order."""
    blocks, queue = dict[str, Block](), list(names)
    while queue:
        block = params.block(queue.pop(0))
        if block.name not in blocks:
            blocks[block.name] = block
            queue += [name for name in (block.parent, block.base, block.anchor) if name and name not in blocks]
    ordered = [b for b in params.blocks.values() if b.name in blocks]
    writers = {
        (b.name, out): pipeline.address(s, b) for b in ordered for s in stages_of(b) for out in pipeline.written(s)
    }
    reads = pipeline.dependencies(params)
    needs = {
        pipeline.address(s, b): {writers[owner, need.name] for need, owner in reads[b.name, s.name]}
        for b in ordered
        for s in stages_of(b)
    }
    return {a: needs[a] for a in TopologicalSorter(needs).static_order()}


def descendants(graph: Graph, items: Iterable[str]) -> list[str]:
    """Stages and all their descendants, in the graph's order."""
    reached = set(items)
    for item, parents in graph.items():
        if parents & reached:
            reached.add(item)
    return [item for item in graph if item in reached]


def stale(root: Path, *names: str) -> list[str]:
    """Addresses of the stages that DVC would run to bring rounds and their ancestors up to date, in topological order.

    Makes the plan again where params.yaml, a recipe or code was edited. DVC's status ignores descendants of stale stages,
    so they are added here; some of them may turn out to be up to date.

    Raises:
        FlywheelError: when this is not a DVC project, or dvc.yaml is broken.
    """
    params = load_params(root)
    stages = graph(params, names)
    if pipeline.is_outdated(root, params):
        pipeline.write(root, params)
    return descendants(stages, changed_stages(root, list(stages)))


def changed_stages(root: Path, targets: list[str]) -> set[str]:
    """Updates the plan; returns the targets whose plan, inputs or outputs differ from dvc.lock."""
    with _repo(root) as repo:
        # `repo.status(targets)` parses dvc.yaml and dvc.lock anew for every target: four seconds for three rounds.
        entries = {s.addressing: s for s in repo.index.stages}
        if "plan" in entries and entries["plan"].status(check_updates=True):
            plan.write(root)
            entries["plan"].save()
            while plan.write(root):  # edited meanwhile: DVC must not take the old plan for the new code's
                entries["plan"].save()
            entries["plan"].dump(update_pipeline=False)
        return {t for t in targets if t in entries and entries[t].status(check_updates=True)}


def mend_lock(root: Path) -> None:
    """Removes DVC's list of who reads and writes what where a kill cut it off: with it no command of DVC works. DVC's own lock
    of that file is held meanwhile, so none that is being written is taken for a broken one.
    """
    folder = root / ".dvc/tmp"
    if _is_whole(folder / "rwlock"):
        return
    from dvc.lock import LockError, make_lock

    # a LockError says that somebody writes it at this moment
    with suppress(LockError), make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
        if not _is_whole(folder / "rwlock"):
            (folder / "rwlock").unlink()


def _is_whole(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    """The project's DVC repository, locked. DVC's exceptions become FlywheelErrors."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    mend_lock(root)
    try:
        with Repo(str(root)) as repo, repo.lock:
            yield repo
    except LockError as error:
        raise Busy(busy(str(error))) from error
    except DvcException as error:
        raise FlywheelError(f"DVC cannot tell what is stale: {error}; {_fix(error)}") from error
    finally:
        logger.setLevel(level)


def _fix(error: Exception) -> str:
    from dvc.scm import SCMError

    return "`git init` makes it one" if isinstance(error, SCMError) else "`flywheel render` rewrites dvc.yaml"


def busy(text: str) -> str:
    """The message for DVC's error about its locks: names the process that holds one."""
    holder = re.search(r"\(PID (\d+)\): (.*)", text)
    process = f" (pid {holder[1]}: {holder[2].strip()[-60:]})" if holder else ""
    return f"another process{process} is running a stage that this needs; wait for it, or stop it"
