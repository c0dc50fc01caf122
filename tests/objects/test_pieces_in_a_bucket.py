"""Pieces whose parts workers put into a bucket: the same wherever they run; what a killed driver, and what a part that is gone, cost."""

import json
import os
import shutil
import time
from contextlib import chdir
from pathlib import Path

import driving
import projects
import pytest
from driving import drive, handed

from tasks.core import pointers, store
from tasks.core.errors import StoreError
from tasks.project import driver, execute, pieces, plan

SOME = 120
PROCESSES = {"strategy": "processes", "count": 2}
FILTER = {"threshold": {"min_reward": 0.4, "per_level": 3 * SOME // 10}}
"""It compares prompts, which takes two passes."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory, apart):
    """A project whose stages ran in its folder, in one process, and what they made. Its path is in what the fake engine says."""
    root = projects.make(tmp_path_factory.mktemp("alone"), rounds=1, git=False)
    projects.write_recipe(root, "small", projects.SMALL | {"filter": FILTER})
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAX_PROMPTS", "MAX_REQUESTS", "MAX_ROWS", "IDS_PER_PIECE"):
            patch.setattr(pieces, name, getattr(pieces, name))
        with chdir(root):
            plan.write(root)
            for name, stage in (("r0", "base"), ("r1", "prompts")):
                execute.run_stage(root, name, stage)
            driving.fill(root, SOME)
            driving.small_pieces(root)
            made = {stage: execute.run_stage(root, "r1", stage).outputs for stage in ("generate", "judge", "filter")}
        yield root, shutil.copytree(root, tmp_path_factory.mktemp("saved"), symlinks=True, dirs_exist_ok=True), made


@pytest.fixture
def root(alone, url, faults, monkeypatch):
    """It, as the working directory; from now on its `data:` is a bucket."""
    shutil.rmtree(alone[0])
    shutil.copytree(alone[1], alone[0], symlinks=True)
    monkeypatch.chdir(alone[0])
    projects.rewrite(alone[0], lambda content: content.update(data=url))
    plan.write(alone[0])
    return alone[0]


@pytest.fixture(scope="module")
def on_ray(keys):
    """A node of Ray on this machine, whose workers have the keys of the bucket."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # read when Ray is imported
    pytest.importorskip("ray", reason="Ray is not installed: make ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "node_ip_address": "127.0.0.1", "object_store_memory": 2**27, "include_dashboard": False}
    with chdir("/"):  # where its workers begin: the project's folder is replaced meanwhile
        cluster = Cluster(initialize_head=True, head_node_args=node)
    yield {"strategy": "ray", "count": 2, "address": cluster.address}
    cluster.shutdown()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["processes", "ray"])
def test_pieces_in_a_bucket_are_those_of_a_folder(alone, root, bucket, where, request):
    driving.place(root, PROCESSES if where == "processes" else request.getfixturevalue("on_ray"))
    for stage in ("generate", "filter"):
        assert execute.run_stage(root, "r1", stage).outputs == alone[2][stage]
        assert len(next(iter(alone[2][stage].values())).parts) > 4
    assert not bucket.names("receipts/")


@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_elsewhere_and_a_part_that_is_gone_is_made_again(alone, root, on_ray, bucket):
    projects.set_values(root, "r1", ["engine.seconds=0.01"])
    driving.place(root, on_ray)
    process = drive(root, "generate")
    while not (receipts := bucket.names("receipts/")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    gone = store.Part(**json.loads(bucket.read(receipts[0]))["parts"][0])
    bucket.delete(pointers.object_name(gone))
    time.sleep(2)  # Ray ends the actors of a driver that is gone
    done = {int(Path(name).stem) for name in bucket.names("receipts/")}
    driving.forget(root)
    driving.place(root, PROCESSES)
    said = drive(root, "generate").communicate()[1]
    assert not done & set(handed(root))
    assert f"{gone.sha256}.parquet, a part of" in said and "is missing; run its stage again" in said
    driving.forget(root)
    assert drive(root, "generate").wait() == 0
    assert handed(root) == [int(Path(receipts[0]).stem)]
    assert store.manifests(root, "r1")["generate"].outputs == alone[2]["generate"]


def test_what_a_first_pass_left_and_is_gone_is_made_again(alone, root, bucket, monkeypatch):
    with monkeypatch.context() as stopping, pytest.raises(ZeroDivisionError):
        stopping.setattr(driver, "_together", lambda receipts: 1 / 0)
        execute.run_stage(root, "r1", "filter")
    bucket.delete(next(name for name in bucket.names("receipts/") if name.endswith("-0.parquet")))
    with pytest.raises(StoreError, match="run the stage again"):
        execute.run_stage(root, "r1", "filter")
    assert execute.run_stage(root, "r1", "filter").outputs == alone[2]["filter"]
