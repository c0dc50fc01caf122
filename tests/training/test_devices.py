"""A device belongs to one process at a time."""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from tasks.core import devices as module
from tasks.core.devices import device_lock, devices, held, kinds

TWO = "0, GPU-aaaa-1\n1, GPU-bbbb-2\n"


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """A machine with two GPUs, as its driver tells."""

    def make(answer=TWO, visible=None):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ("GPU-aaaa-1", "GPU-bbbb-2")),
        ("1,0", ("GPU-bbbb-2", "GPU-aaaa-1")),
        ("1, -1, 0", ("GPU-bbbb-2",)),
        ("GPU-bbbb", ("GPU-bbbb-2",)),
        ("MIG-cccc,0", ("MIG-cccc", "GPU-aaaa-1")),
        ("", ()),
        ("-1", ()),
    ],
)
def test_devices_are_the_visible_ones_however_they_are_named(gpus, visible, names):
    gpus(visible=visible)
    assert devices() == names


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 1, ("GPU-aaaa-1",)), ("1,0", 1, ("GPU-bbbb-2",)), ("1,0", 2, ("GPU-bbbb-2", "GPU-aaaa-1")),
     ("1", 2, ("GPU-bbbb-2",))],
)  # fmt: skip
def test_as_many_are_locked_as_asked_for_and_no_more(gpus, tmp_path, visible, count, names):
    gpus(visible=visible)
    with device_lock(count) as locked:
        assert locked == names
        assert {p.name for p in tmp_path.glob("*.lock")} == {f"flywheel-{n}.lock" for n in names}
    for path in tmp_path.glob("*.lock"):
        FileLock(path).acquire(timeout=0)


def test_the_second_of_two_is_waited_for_and_they_are_taken_in_one_order(gpus, tmp_path, monkeypatch):
    taken, acquire = [], FileLock.acquire
    monkeypatch.setattr(
        FileLock, "acquire", lambda lock, **how: taken.append(Path(lock.lock_file).name) or acquire(lock, **how)
    )
    for visible in ("0,1", "1,0"):
        gpus(visible=visible)
        with device_lock(2):
            pass
    assert taken == ["flywheel-GPU-aaaa-1.lock", "flywheel-GPU-bbbb-2.lock"] * 2
    gpus(visible="1")
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    child = fork.Process(target=hold, args=(started, tmp_path / "held"))
    child.start()
    assert started.wait(20)
    gpus(visible="0,1")
    with device_lock(2):
        assert time.monotonic() >= float((tmp_path / "held").read_text())
    child.join()


def test_without_a_gpu_nothing_is_locked(gpus, tmp_path, monkeypatch):
    gpus(answer="")
    with device_lock() as names:
        assert names == ()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert devices() == ()
    assert not list(tmp_path.glob("*.lock"))


def hold(started, path):
    with device_lock():
        path.write_text(f"{time.monotonic()}")
        started.set()
        time.sleep(0.5)
        path.write_text(f"{time.monotonic()}")


def test_a_second_process_waits_and_the_same_one_does_not(gpus, tmp_path):
    gpus()
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    child = fork.Process(target=hold, args=(started, tmp_path / "held"))
    child.start()
    assert started.wait(20)
    with device_lock() as names, device_lock() as again:
        assert names == again == ("GPU-aaaa-1",)
        assert time.monotonic() >= float((tmp_path / "held").read_text())
    child.join()


def test_the_seconds_for_which_each_gpu_is_held_are_counted_once(gpus, monkeypatch):
    gpus()
    clock = iter(range(100))
    monkeypatch.setattr(module, "_held", {})
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    with device_lock(2), device_lock(2):  # taken at 0, 1 and 2, 3; let go at 4 and 5
        assert held() == {}
    with device_lock():
        pass
    assert held() == {"GPU-bbbb-2": 3.0, "GPU-aaaa-1": 6.0}


def test_gpus_are_called_by_their_kind(gpus):
    gpus(answer="GPU-aaaa-1, NVIDIA H100 80GB HBM3\n")
    assert kinds(["GPU-aaaa-1", "MIG-cccc"]) == ["NVIDIA H100 80GB HBM3", "MIG-cccc"]
    assert kinds([]) == []


def test_a_killed_process_leaves_the_device_free(gpus, tmp_path):
    gpus()
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    child = fork.Process(target=hold, args=(started, tmp_path / "held"))
    child.start()
    assert started.wait(20)
    child.kill()
    child.join()
    clock = time.monotonic()
    with device_lock():
        assert time.monotonic() - clock < 5
