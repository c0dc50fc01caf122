"""Two ranks that train together on this machine's CPUs, by gloo: forked from a server that has the libraries, not launched."""

import multiprocessing
import os
import socket
import time
from functools import partial

from runs import PAIRS, ROWS

from tasks.train import TrainCase
from tasks.train._devices import read_curve, write_case

PRELOADED = ["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "tasks.training.preferring", "tasks.training.loop",
             "tasks.train._rank"]  # fmt: skip


def case_of(start, folder, rows=ROWS, pairs=PAIRS, devices=2):
    return TrainCase(rows, pairs, start, None, folder / "model", folder / "work", 1, devices)


def train_on_two(strategy, case, until=None):
    """The curve; with `until`, a condition, one rank is killed once that holds, and None is returned."""
    folder, port = write_case(strategy, case), _free_port()
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    ranks = [server.Process(target=partial(_rank, folder, rank, port)) for rank in range(case.devices)]
    for rank in ranks:
        rank.start()
    while until and not until():
        time.sleep(0.005)
        assert all(rank.is_alive() for rank in ranks), "a rank ended before it could be killed"
    if until:
        ranks[1].kill()
    for rank in ranks:
        rank.join(240)
        rank.kill()
    return None if until else read_curve(folder)


def _rank(folder, rank, port):
    from tasks.train._rank import run_rank
    from tasks.training import loop

    arguments = loop.arguments
    loop.arguments = lambda *schedule: arguments(*schedule) | {"bf16": False}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    run_rank(folder)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
