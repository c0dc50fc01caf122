"""Pieces on a real Ray cluster of two nodes: what is lost with a node, an actor or the driver."""

import json
import os
import random
import signal
import time
from contextlib import suppress
from types import SimpleNamespace

import driving
import projects
import pytest
from driving import drive, handed
from test_where import wait_for_receipts

from tasks.core import store
from tasks.core.errors import EngineError
from tasks.project import execute
from tasks.where import Needs
from tasks.where._crew import Crew
from tasks.where.ray import Ray, _Actors

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # nothing listens at the machine's own address
pytest.importorskip("ray", reason="Ray is not installed: pip install -c infra/requirements.lock 'flywheel[ray]'")
pytestmark = pytest.mark.timeout(900)
AT = "127.0.0.1"
TRIES, MANY = 5, 200_000
"""Tries of what is lost with a machine, and the prompts of one of them."""
NODE = {"num_cpus": 1, "node_ip_address": AT, "object_store_memory": 2**27}


def add_node(cluster, **resources):
    """Adds a node to the cluster. Ray gives it 30 s to start, which a busy machine may exceed."""
    for _ in range(3):
        with suppress(Exception):
            return cluster.add_node(**NODE | resources)
    return cluster.add_node(**NODE | resources)


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and two nodes of one CPU, on this machine's own address."""
    from ray.cluster_utils import Cluster

    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        add_node(cluster)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def on_ray(cluster, round_one):
    """Gives so many prompts to the project, whose pieces run on the cluster; returns what one process makes of them."""
    made = {}

    def prepare(count: int) -> tuple[str, list[str]]:
        if count not in made:
            driving.place(round_one, None)
            if count != driving.SOME:
                driving.fill(round_one, count)
                driving.small_pieces(round_one)
            execute.run_stage(round_one, "r1", "generate")
            made[count] = driving.made(round_one, "generate")
            assert len(set(made[count][1])) == len(made[count][1]) == 3 * count
            slow = [f"engine.seconds={0.0002 if count == driving.SOME else 0}"]
            projects.set_values(round_one, "r1", slow)
            driving.place(round_one, {"strategy": "ray", "address": cluster.address})
        driving.forget(round_one)
        return made[count]

    return prepare


def prompts(attempt: int) -> int:
    """Prompts of a try: where all are made, the last has many."""
    return MANY if attempt == TRIES - 1 else driving.SOME


def worker(root) -> int:
    """The process of the actor that did the last piece."""
    last = max(driving.receipts(root), key=lambda path: path.stat().st_mtime_ns)
    return int(json.loads(last.read_text())["by"].split()[-1])


def finished(process, root, whole) -> list[int]:
    """The pieces that were handed out by a driver that ended well: no row is lost or there twice, and all are in their order."""
    assert process.wait(800) == 0, process.stderr.read()
    assert driving.made(root, "generate") == whole
    return handed(root)


@pytest.mark.torture(
    "a node of a cluster killed while it is at a piece", "the same digest; at most its pieces in flight are done again"
)
def test_a_killed_node_costs_its_pieces_in_flight(cluster, round_one, on_ray, tries):
    for attempt in tries(TRIES):
        whole = on_ray(prompts(attempt))
        process = drive(round_one, "generate")
        wait_for_receipts(round_one, 2, process)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        given = finished(process, round_one, whole)
        assert len(given) <= len(set(given)) + 2
        assert len(set(given)) == len(store.manifests(round_one, "r1")["generate"].outputs["responses"].parts)
        add_node(cluster)


@pytest.mark.torture(
    "an actor killed while it is at a piece", "started again; the same digest; its pieces are done again"
)
def test_a_killed_actor_is_started_again(round_one, on_ray, tries):
    for attempt in tries(TRIES):
        whole = on_ray(prompts(attempt))
        process = drive(round_one, "generate")
        wait_for_receipts(round_one, 2, process)
        os.kill(worker(round_one), signal.SIGKILL)
        given = finished(process, round_one, whole)
        assert len(given) <= len(set(given)) + 2


@pytest.mark.torture(
    "`kill -9` of the driver of a cluster's workers after any receipt",
    "no piece with a receipt is done again; the same digest",
)
def test_a_killed_driver_loses_nothing(round_one, on_ray, tries):
    rng = random.Random(3)
    for _ in tries(20):
        whole = on_ray(driving.SOME)
        process = drive(round_one, "generate")
        wait_for_receipts(round_one, rng.randrange(1, 10), process)
        process.kill()
        process.wait()
        time.sleep(2)  # Ray ends the actors of a driver that is gone
        done = {int(path.stem) for path in driving.receipts(round_one)}
        driving.forget(round_one)
        again = finished(drive(round_one, "generate"), round_one, whole)
        assert not done & set(again)


def test_workers_go_where_their_gpus_are(cluster, round_one, on_ray):
    whole = on_ray(driving.SOME)
    node = add_node(cluster, num_cpus=2, num_gpus=2)
    try:
        where = {"strategy": "ray", "address": cluster.address, "gpus": 1}
        driving.place(round_one, where)
        process = drive(round_one, "generate")
        wait_for_receipts(round_one, 2, process)
        assert worker(round_one) in {p.pid for p in processes_below(node)}
        finished(process, round_one, whole)
        driving.place(round_one, where | {"gpus": 3})
        process = drive(round_one, "generate")
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


class Unreadable:
    """A job that machines cannot read, as where the project is not installed there."""

    needs = Needs()

    def __reduce__(self):
        return exec, ("import no_such_project",)


def test_machines_without_the_project_are_told_of(cluster):
    with pytest.raises(EngineError, match="no_such_project"):
        list(Ray(address=cluster.address, count=2).run(Unreadable(), [0, 1]))


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "NodeDiedError"])
def test_a_worker_that_ray_ended_for_another_reason_is_started_again(kind):
    from ray import exceptions

    greeted = []
    actors = object.__new__(_Actors)
    actors._ray = SimpleNamespace(exceptions=exceptions, get=lambda _: _raise(kind))
    actors._crew, actors._ready, actors._greet = Crew([4], 2), {0}, greeted.append
    assert actors._crew.next(0) == [4]
    actors._asked = {"answer": (0, 4)}
    assert list(actors._take("answer")) == []
    assert (greeted, list(actors._crew.waiting), actors._ready) == ([0], [4], set())


def _raise(kind):
    from ray import exceptions

    raise getattr(exceptions, kind)("short of memory")


def test_a_cluster_that_is_not_there_is_named(round_one):
    driving.place(round_one, {"strategy": "ray", "address": f"{AT}:1"})
    process = drive(round_one, "generate")
    assert process.wait() == 1
    assert f"{AT}:1" in process.stderr.read()
