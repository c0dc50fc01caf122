"""Pieces on a real Ray cluster of two nodes: what is lost with a node, an actor or the driver."""

import json
import os
import random
import signal
import time

import driving
import projects
import pytest
from test_where import drive, handed, wait_for_receipts

from tasks.core import store
from tasks.project import execute

pytest.importorskip("ray", reason="Ray is not installed: pip install -c infra/requirements.lock 'flywheel[ray]'")
pytestmark = pytest.mark.timeout(900)
AT = "127.0.0.1"
NODE = {"num_cpus": 1, "node_ip_address": AT, "object_store_memory": 2**27}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and two nodes of one CPU, on this machine's own address."""
    from ray.cluster_utils import Cluster

    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def on_ray(cluster, round_one):
    """The project with pieces on the cluster, each of which takes a while, and what one process makes of it."""
    execute.run_stage(round_one, "r1", "generate")
    whole = driving.made(round_one, "generate")
    seconds = 0.0002 * 3_000 / driving.many_prompts()
    projects.set_values(round_one, "r1", [f"engine.seconds={seconds}"])
    driving.place(round_one, {"strategy": "ray", "address": cluster.address})
    return round_one, whole


def worker(root) -> int:
    """The process of the actor that did the last piece."""
    last = max(driving.receipts(root), key=lambda path: path.stat().st_mtime_ns)
    return int(json.loads(last.read_text())["by"].split()[-1])


def finished(process, root, whole) -> list[int]:
    """The pieces that were handed out by a driver that ended well and lost no row."""
    assert process.wait(800) == 0, process.stderr.read()
    digest, ids = driving.made(root, "generate")
    assert (digest, ids) == whole
    assert len(set(ids)) == len(ids) == 3 * driving.many_prompts()
    return handed(root)


@pytest.mark.torture(
    "a node of a cluster killed while it is at a piece", "the same digest; at most its pieces in flight are done again"
)
def test_a_killed_node_costs_its_pieces_in_flight(cluster, on_ray, tries):
    root, whole = on_ray
    for _ in tries(10):
        driving.forget(root)
        process = drive(root, "generate")
        wait_for_receipts(root, 2, process)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        given = finished(process, root, whole)
        assert len(given) <= len(set(given)) + 2
        assert len(set(given)) == len(store.manifests(root, "r1")["generate"].outputs["responses"].parts)
        cluster.add_node(**NODE)


@pytest.mark.torture(
    "an actor killed while it is at a piece", "started again; the same digest; its pieces are done again"
)
def test_a_killed_actor_is_started_again(on_ray, tries):
    root, whole = on_ray
    for _ in tries(10):
        driving.forget(root)
        process = drive(root, "generate")
        wait_for_receipts(root, 2, process)
        os.kill(worker(root), signal.SIGKILL)
        given = finished(process, root, whole)
        assert len(given) <= len(set(given)) + 2


@pytest.mark.torture(
    "`kill -9` of the driver of a cluster's workers after any receipt",
    "no piece with a receipt is done again; the same digest",
)
def test_a_killed_driver_loses_nothing(on_ray, tries):
    root, whole = on_ray
    rng = random.Random(3)
    for _ in tries(20):
        driving.forget(root)
        process = drive(root, "generate")
        wait_for_receipts(root, rng.randrange(1, 10), process)
        process.kill()
        process.wait()
        time.sleep(2)  # Ray ends the actors of a driver that is gone
        done = {int(path.stem) for path in driving.receipts(root)}
        (root / driving.LOG).unlink()
        again = finished(drive(root, "generate"), root, whole)
        assert not done & set(again)


def test_workers_go_where_their_gpus_are(cluster, on_ray):
    root, whole = on_ray
    node = cluster.add_node(**NODE | {"num_cpus": 2, "num_gpus": 2})
    try:
        where = {"strategy": "ray", "address": cluster.address, "gpus": 1}
        driving.place(root, where)
        driving.forget(root)
        process = drive(root, "generate")
        wait_for_receipts(root, 2, process)
        of_node = {raylet.pid for raylet in processes_below(node)}
        assert worker(root) in of_node
        finished(process, root, whole)
        driving.place(root, where | {"gpus": 3})
        process = drive(root, "generate")
        assert process.wait() == 1
        assert "no machine of the cluster has room for a worker of 1 CPU and 3 GPU" in process.stderr.read()
    finally:
        cluster.remove_node(node)


def processes_below(node):
    import psutil

    raylet = node.all_processes["raylet"][0].process.pid
    return psutil.Process(raylet).children(recursive=True)


def test_compared_prompts_are_compared_on_a_cluster_too(cluster, round_one):
    for stage in ("generate", "judge", "filter"):
        execute.run_stage(round_one, "r1", stage)
    whole = {stage: driving.made(round_one, stage) for stage in ("judge", "filter")}
    driving.place(round_one, {"strategy": "ray", "address": cluster.address})
    for stage in ("judge", "filter"):
        process = drive(round_one, stage)
        assert process.wait() == 0, process.stderr.read()
        assert driving.made(round_one, stage) == whole[stage]


def test_a_cluster_that_is_not_there_is_named(round_one):
    driving.place(round_one, {"strategy": "ray", "address": f"{AT}:1"})
    process = drive(round_one, "generate")
    assert process.wait() == 1
    assert f"{AT}:1" in process.stderr.read()
