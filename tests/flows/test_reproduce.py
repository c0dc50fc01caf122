import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import projects
import psutil
import pytest
from prefect.logging import disable_run_logger
from prefect.states import Failed

from flows import reproduce as reproduce_file
from flows.reproduce import Reproduced, StageFailed, _is_retryable, failure, reproduce, stopping_stages
from tasks.project import graph

KILLED = """
from prefect.logging import disable_run_logger
from flows.reproduce import reproduce
with disable_run_logger():
    reproduce.fn("gate@r2")
"""


@pytest.fixture
def gate(made):
    """Replaces the command of the stage `gate`; its outputs stay where they are."""

    def put(command: str) -> None:
        text = (made / "dvc.yaml").read_text()
        (made / "gate.sh").write_text(command)
        (made / "dvc.yaml").write_text(text.replace('flywheel stage gate "$DVC_STAGE"', 'sh gate.sh "$DVC_STAGE"'))

    return put


def run(address: str) -> Reproduced:
    with disable_run_logger():
        return reproduce.fn(address)


def test_what_is_up_to_date_does_not_run(made):
    assert not run("gate@r2").ran


def test_an_edit_runs_the_stage_and_no_other(made):
    projects.set_exam(made, "gate", "improves", alpha=0.04)
    assert graph.stale(made, "r2") == ["gate@r1", "gate@r2"], "which makes the plan"
    before = (made / "data/round=r2/manifests/gate.json").read_text()
    done = run("gate@r2")
    assert done.ran
    assert done.address == "gate@r2"
    assert (made / "data/round=r2/manifests/gate.json").read_text() != before
    assert not run("gate@r2").ran


def test_in_a_flow_the_next_stages_process_waits_and_is_gone_with_the_flow(made):
    with stopping_stages():
        assert not run("gate@r1").ran
        assert not run("gate@r2").ran
        waiting = [psutil.Process(spare.pid) for spare in reproduce_file._spare]
        assert len(waiting) == 1
        waiting[0].kill()  # nobody needs it to go on
        waiting[0].wait()
        assert not run("judge@r1").ran
        waiting = [psutil.Process(spare.pid) for spare in reproduce_file._spare]
    assert not any(process.is_running() for process in waiting)


def test_a_failure_carries_the_stages_own_message(gate):
    gate("echo working; echo 'flywheel: no room\n  on the disk' >&2; exit 1")
    with pytest.raises(StageFailed) as raised:
        run("gate@r2")
    assert str(raised.value) == "gate@r2: no room\n  on the disk"
    assert raised.value.kind == "lasting"


@pytest.mark.parametrize(
    ("command", "kind", "retries"),
    [
        ("exit 75", "engine", [True, True, True]),
        ("kill -9 $$", "killed", [True, False, False]),
        ("exit 3", "lasting", [False] * 3),
    ],
)
def test_what_is_retried_and_how_often(gate, command, kind, retries):
    gate(command)
    with pytest.raises(StageFailed) as raised:
        run("gate@r2")
    assert raised.value.kind == kind
    failed = Failed(data=raised.value)
    assert [_is_retryable(None, SimpleNamespace(run_count=n), failed) for n in (1, 2, 3)] == retries


def test_a_stage_that_another_process_runs_is_waited_for(gate, monkeypatch):
    """As when two rounds with one parent are started at once, and the parent is made first."""
    monkeypatch.setattr("flows.reproduce.PAUSE", 0.1)
    gate("echo > started; while [ ! -e go ]; do sleep 0.1; done")
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-s", "gate@r2"], start_new_session=True, stdout=subprocess.DEVNULL
    )
    with ThreadPoolExecutor() as pool:
        try:
            while not Path("started").exists():
                assert other.poll() is None
                time.sleep(0.05)
            waiting = pool.submit(run, "gate@r2")
            with pytest.raises(TimeoutError):
                waiting.result(6)
            assert other.poll() is None
        finally:
            Path("go").touch()
            other.wait()
        assert not waiting.result(60).ran, "it was up to date then"


def test_without_a_message_of_its_own_the_last_lines_are_shown():
    lines = [
        "Running stage 'x@r1':",
        "> flywheel stage x r1",
        *(f"line {i}" for i in range(30)),
        "",
        "ERROR: failed to reproduce 'x@r1': exited with 1",
    ]
    assert failure(lines) == "\n".join(f"line {i}" for i in range(15, 30))
    assert failure([]) == "it ended without output"


def test_whatever_ends_the_flow_ends_its_stages_and_their_children(gate):
    gate("sleep 60 & echo $! > child; wait")
    with ThreadPoolExecutor() as pool, pytest.raises(KeyboardInterrupt), stopping_stages():
        stage = pool.submit(run, "gate@r2")
        while not Path("child").exists() or not Path("child").read_text().strip():
            time.sleep(0.05)
        child = psutil.Process(int(Path("child").read_text()))
        raise KeyboardInterrupt
    assert isinstance(stage.exception(), StageFailed)
    assert not _is_retryable(None, SimpleNamespace(run_count=1), Failed(data=stage.exception())), (
        "a stopped stage is not retried"
    )
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_flow_that_is_killed_takes_its_stage_along(gate, tmp_path):
    """`kill -9` leaves the flow no chance to end anything."""
    # Deaf to SIGTERM, and an orphan where its shell is ended first. `wait $!` fails when it was ended, a bare `wait` succeeds.
    deaf = r"trap '' TERM; echo \$\$ > child; while :; do sleep 0.1; done"
    gate(f'sh -c "{deaf}" & wait $!')
    flow = subprocess.Popen([sys.executable, "-c", KILLED], cwd=Path.cwd())
    while not Path("child").exists() or not Path("child").read_text().strip():
        assert flow.poll() is None
        time.sleep(0.05)
    child = psutil.Process(int(Path("child").read_text()))
    [stage] = (p for p in child.parents() if p.ppid() == flow.pid)
    locked = Path("dvc.lock").read_text()
    flow.kill()
    flow.wait()
    gone, alive = psutil.wait_procs([child, stage], timeout=60)
    assert gone and not alive
    assert Path("dvc.lock").read_text() == locked, "what was there is not taken for the result of the new command"
    gate("exit 0")
    assert run("gate@r2").ran, "its lock is free again"
