"""The graph of a project's stages, and which of them are stale.

DVC alone decides what is stale; where nothing was touched since it decided, it is not asked again. It runs in this process,
before Prefect is imported (0.5 s instead of 1.5 s in a subprocess). The plan is updated first, also in this process.
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import psutil

from tasks.core.errors import Busy, FlywheelError
from tasks.project import freshness, lockfile, pipeline, plan
from tasks.project.params import Block, Pipeline, load_params, read, stages_of
from tasks.project.status_cache import Memory, Seen

PATIENCE = 60.0
"""Seconds for which DVC's lock is waited for."""
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
    return descendants(stages, changed_stages(root, list(stages), params))


def changed_stages(root: Path, targets: list[str], params: Pipeline | None = None) -> set[str]:
    """Updates the plan; returns the targets whose plan, inputs or outputs differ from dvc.lock. DVC is asked about those of which
    it is not remembered that they are up to date.
    """
    mended = mend_lock(root)
    memory = Memory.read(root, params or load_params(root))
    if memory.is_fresh("plan") and all(memory.is_fresh(t) for t in targets):
        return set()
    with _repo(root) as repo:
        known = _stages(repo)
        seen = {} if memory.is_fresh("plan") else _bring_plan_up_to_date(root, known, memory, repo)
        asked = [t for t in targets if not memory.is_fresh(t)]
        seen |= memory.look(repo, asked)
        changed = {t for t in asked if t in known and known[t].status(check_updates=True)}
        restored = {
            t for t in asked if t in changed and _restore(root, known[t], mended or _is_unknown(memory, known[t]))
        }
        memory.keep({t: kept for t, kept in seen.items() if t not in changed}, [*asked, "plan"])
        lockfile.keep(root)
    return changed - restored


def _stages(repo: Any) -> Mapping[str, Any]:
    """The stages of dvc.yaml by address, each loaded when it is asked for: all of 2,000 take DVC five seconds."""
    from dvc.dvcfile import PROJECT_FILE, load_file

    stages: Mapping[str, Any] = load_file(repo, str(Path(repo.root_dir) / PROJECT_FILE)).stages
    return stages


def _bring_plan_up_to_date(root: Path, known: Mapping[str, Any], memory: Memory, repo: Any) -> Seen:
    """Makes the plan again where what it is made from was edited; returns what is to be remembered where it was not."""
    seen = memory.look(repo, ["plan"])
    if "plan" not in known or not (stage := known["plan"]).status(check_updates=True):
        return seen
    plan.write(root)
    stage.save()
    while plan.write(root):  # edited meanwhile: DVC must not take the old plan for the new code's
        stage.save()
    stage.dump(update_pipeline=False)
    memory.forget()
    return {}


def _is_unknown(memory: Memory, stage: Any) -> bool:
    """Whether dvc.lock has no whole entry of a stage, as far as that can be told."""
    if not memory.entries and (memory.root / lockfile.FILE).is_file():
        return False
    entry = memory.entries.get(stage.addressing, "")
    lacks_digest = entry.count("    - path: ") != entry.count("      md5: ")
    return lacks_digest or any(f"- path: {out.def_path}\n" not in entry for out in stage.outs)


def _restore(root: Path, stage: Any, unknown: bool) -> bool:
    """Whether DVC did not know the result of a stage that its manifest vouches for, and knows it now, without a run."""
    name, _, owner = stage.name.partition("@")
    if not unknown or not all(file.exists for file in (*stage.deps, *stage.outs)):
        return False
    if not freshness.is_result_of_plan(root, owner, name.removesuffix("-base")):
        return False
    stage.save()
    stage.commit()
    stage.dump(update_pipeline=False)
    return True


def mend_lock(root: Path) -> bool:
    """Mends what a kill left of DVC's files, with which no command of DVC works: takes back the last whole dvc.lock where that
    is cut short, which it returns, and removes the list of who reads and writes what where that is, or where those processes
    are gone. DVC's own lock of that list is held meanwhile, so none that is being written is taken for a broken one.
    """
    mended = lockfile.is_lost(root) and _take_back(root)
    folder = root / ".dvc/tmp"
    if not _is_left(folder / "rwlock"):
        return mended
    from dvc.lock import LockError, make_lock

    # a LockError says that somebody writes it at this moment
    with suppress(LockError), make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
        if _is_left(folder / "rwlock"):
            (folder / "rwlock").unlink()
    return mended


def _take_back(root: Path) -> bool:
    """Under DVC's lock, for another process may be writing dvc.lock."""
    from dvc.lock import LockError, make_lock

    folder = root / ".dvc/tmp"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(LockError), make_lock(str(folder / "lock"), tmp_dir=str(folder)):
        return lockfile.take_back(root)
    return False


def _is_left(file: Path) -> bool:
    """Whether a list of readers and writers is cut short, or all of them are gone."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        holders = [
            *content.get("write", {}).values(),
            *(one for many in content.get("read", {}).values() for one in many),
        ]
        return bool(holders) and not any(_holds(int(holder["pid"]), file.stat().st_mtime) for holder in holders)
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError, AttributeError):
        return True


def _holds(pid: int, since: float) -> bool:
    """Whether a process is alive, and not a later one with the number of one that was killed."""
    try:
        return psutil.Process(pid).create_time() <= since + 1
    except psutil.Error:
        return False


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    """The project's DVC repository, locked. DVC's exceptions become FlywheelErrors."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with lockfile.quick(), Repo(str(root)) as repo, _held(repo.lock):
            yield repo
    except LockError as error:
        raise Busy(busy(str(error))) from error
    except DvcException as error:
        raise FlywheelError(f"DVC cannot tell what is stale: {error}; {_fix(error)}") from error
    except FileNotFoundError as error:
        if error.filename is None or not os.path.islink(error.filename):
            raise
        raise FlywheelError(
            f"{error.filename} is a link to nothing; remove it, and `dvc checkout --force` or `dvc pull` brings back what was there"
        ) from error
    finally:
        logger.setLevel(level)


@contextmanager
def _held(lock: Any) -> Iterator[None]:
    """DVC's lock, which others hold while they ask what is stale and write down what ran, never while a stage runs. DVC itself
    waits for three seconds, which a busy machine takes for that.
    """
    from dvc.lock import LockError

    end = time.monotonic() + PATIENCE
    while True:
        try:
            lock.lock()
            break
        except LockError:
            if time.monotonic() > end:
                raise
    try:
        yield
    finally:
        lock.unlock()


def _fix(error: Exception) -> str:
    from dvc.scm import SCMError

    return "`git init` makes it one" if isinstance(error, SCMError) else "`flywheel render` rewrites dvc.yaml"


def busy(text: str) -> str:
    """The message for DVC's error about its locks: names the process that holds one."""
    holder = re.search(r"\(PID (\d+)\): (.*)", text)
    process = f" (pid {holder[1]}: {holder[2].strip()[-60:]})" if holder else ""
    return f"another process{process} is running a stage that this needs; wait for it, or stop it"
