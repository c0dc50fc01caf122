"""`kill -9` of stages at any instant: no row is lost or doubled, and the next run makes the same bytes."""

import random
import shutil
from pathlib import Path

import faults
import pytest

from tasks.core import store
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of

BASE_AND_ROUNDS = ("r0", "r1", "r2")


@pytest.fixture
def server():
    with faults.ready("tasks.project.execute", "pyarrow.parquet", "scipy.stats", "sklearn.linear_model"):
        yield


def forget(root, name, stage):
    """Removes what a stage wrote, as if it had never run."""
    place = store.round_folder(root, name)
    for output in store.manifests(root, name)[stage].outputs:
        shutil.rmtree(place / output)
    (place / "manifests" / f"{stage}.json").unlink()


@pytest.mark.torture(
    "`kill -9` of a stage while it reads, computes or writes, half of them for the first time",
    "nothing, the old version or the new one, whole; after the next run the bytes of an undisturbed one",
)
def test_a_killed_stage_loses_and_doubles_nothing(made, tries, server):
    blocks = load_params(made).blocks
    stages = [(name, stage.name) for name in BASE_AND_ROUNDS for stage in stages_of(blocks[name])]
    before, seconds, kills = faults.rows(made), {}, 0
    for attempt in tries(160):
        chance = random.Random(attempt)
        name, stage = chance.choice(stages)
        if stage not in seconds:
            seconds[stage] = faults.duration(made, run_stage, Path(), name, stage)
            assert faults.rows(made) == before
        if chance.random() < 0.5:
            forget(made, name, stage)
        kills += faults.killed(chance.uniform(0, seconds[stage]), made, run_stage, Path(), name, stage)
        faults.check_files(made, *BASE_AND_ROUNDS)
        assert faults.run(made, run_stage, Path(), name, stage) == 0
        assert faults.rows(made) == before, f"{stage}@{name}, try {attempt}"
    assert kills
