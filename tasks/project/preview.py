"""A round on a few prompts: every stage before `train`, in a scratch place, so that nothing stays but answers in the request
cache.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import polars as pl

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.core.plan import TRANSPORT, Plan
from tasks.core.tables import prompts as PROMPTS
from tasks.project import plan as plans
from tasks.project import scratch
from tasks.project.edit import STATE, lock
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of

PLACE = Path(STATE) / "preview"
CACHE = "data/cache/requests"


@contextmanager
def previewed(
    root: Path, name: str, prompts: int, report: Callable[[str], None] = lambda stage: None
) -> Iterator[dict[str, store.Manifest]]:
    """Makes the data of a round from so many prompts, and yields the manifests; tables are in `place(root, name)` until the
    block ends. `report` is told each stage before it runs.

    Raises:
        FlywheelError: for a base, which makes no data, and whatever a stage raises.
    """
    load_params(root).block(name)  # refuses an unknown name before anything is removed: `/` would be the whole disk
    here = place(root, name)
    with lock(root, f"preview-{name}"):
        shutil.rmtree(here, ignore_errors=True)
        try:
            stages = _prepare(root, here, name, prompts)
            yield _run(here, name, stages, prompts, report)
        finally:
            shutil.rmtree(here, ignore_errors=True)


def place(root: Path, name: str) -> Path:
    """The scratch place of a round's preview."""
    return root.absolute() / PLACE / name


def _prepare(root: Path, here: Path, name: str, prompts: int) -> list[str]:
    """Fills the scratch place with plans of the stages, which it returns, and with links to all that they read."""
    params = load_params(root)
    block = params.block(name)
    if block.is_base:
        raise FlywheelError(f"{name} is a base, which makes no data; name a round")
    (root / CACHE).mkdir(parents=True, exist_ok=True)
    scratch.mirror(root, here, name)
    scratch.link(root, here, [CACHE])
    chosen = [s for s in stages_of(block) if s.name not in ("train", "evaluate", "gate")]
    for stage in chosen:
        scratch.write_plan(here, _few(plans.plan(root, params, block, stage), prompts))
    (here / TRANSPORT).write_text(json.dumps(plans.transports(params)), encoding="utf-8")
    return [s.name for s in chosen]


def _few(plan: Plan, prompts: int) -> Plan:
    """The plan with no member that writes or takes more than so many prompts."""
    if plan.stage != "prompts":
        return plan
    members = {n: v | ({"count": min(v["count"], prompts)} if "count" in v else {}) for n, v in plan.members.items()}
    return plan.model_copy(update={"members": members})


def _run(
    here: Path, name: str, stages: list[str], prompts: int, report: Callable[[str], None]
) -> dict[str, store.Manifest]:
    made: dict[str, store.Manifest] = {}
    with chdir(here):
        for stage in stages:
            report(stage)
            made[stage] = run_stage(Path(), name, stage)
            if stage == "prompts":
                _cut(Path(), name, prompts)
    return made


def _cut(root: Path, name: str, prompts: int) -> None:
    """Leaves so many of the usable prompts, where several members, or one without a `count`, made more."""
    rows = store.read(root, name, PROMPTS.name)
    rows = rows.filter(pl.col("error").is_not_null() | (pl.col("error").is_null().cum_sum() <= prompts))
    manifest = store.manifests(root, name)["prompts"]
    with store.writing(root, name, "prompts") as draft:
        draft.table(PROMPTS, rows)
        draft.commit(manifest.model_copy(update={"outputs": draft.outputs}))
