"""Pieces give the same rows in the same order and files wherever they run, and `where` decides nothing else."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import chdir, contextmanager
from pathlib import Path
from types import SimpleNamespace

import driving
import projects
import pytest
from driving import drive, handed

from tasks.core import store, tables
from tasks.core.errors import EngineError, FlywheelError, ParamsError, StoreError
from tasks.core.plan import Plan
from tasks.engines.fake import Fake
from tasks.engines.transformers import Transformers
from tasks.engines.vllm import Vllm
from tasks.project import driver, execute, pieces, plan
from tasks.project.params import load_params
from tasks.where import Needs
from tasks.where._crew import DEATHS, Crew
from tasks.where.processes import Processes

STAGES = ("generate", "judge", "filter", "critique", "pair")
"""Of these `critique` sees all rows at once, wherever the others run."""


def wait_for_receipts(root: Path, count: int, process: subprocess.Popen) -> None:
    while len(driving.receipts(root)) < count and process.poll() is None:
        time.sleep(0.002)


def test_processes_make_what_one_process_makes_in_the_same_order(round_one):
    alone = {}
    for stage in STAGES:
        made = execute.run_stage(round_one, "r1", stage)
        alone[stage] = driving.made(round_one, stage)
        assert stage == "critique" or len(next(iter(made.outputs.values())).parts) > 4
    driving.place(round_one, {"strategy": "processes", "count": 2})
    for stage in STAGES:
        execute.run_stage(round_one, "r1", stage)
        assert driving.made(round_one, stage) == alone[stage]
    assert not list((round_one / "data/cache/work").glob("r1-*"))


def test_pieces_are_what_the_whole_is(round_one, monkeypatch):
    manifests = {}
    for most in (driving.pieces.MAX_PROMPTS, 10**6):
        monkeypatch.setattr(pieces, "MAX_PROMPTS", most)
        manifests[most] = execute.run_stage(round_one, "r1", "generate")
        rows = store.read(round_one, "r1", "responses")
        manifests[most] = (manifests[most], rows)
    (cut, pieced), (whole, rows) = manifests.values()
    assert pieced.equals(rows)
    assert (cut.metrics, cut.tokens, cut.usage) == (whole.metrics, whole.tokens, whole.usage)
    assert [p.file for p in whole.outputs["responses"].parts] == ["part-00000.parquet"]
    for part in cut.outputs["responses"].parts:
        assert part.sha256[:16] in part.file
        assert part.first <= part.last


def test_a_piece_reads_its_own_parts_alone(round_one):
    execute.run_stage(round_one, "r1", "generate")
    responses = store.manifests(round_one, "r1")["generate"].outputs["responses"]
    damaged = round_one / "data/round=r1/responses" / responses.parts[-1].file
    content = damaged.read_bytes()
    damaged.write_bytes(b"x" * len(content))
    with pytest.raises(StoreError, match=damaged.name):
        execute.run_stage(round_one, "r1", "judge")
    assert not driving.receipts(round_one)
    damaged.write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])  # which the footer does not tell
    with pytest.raises(StoreError, match=damaged.name):
        execute.run_stage(round_one, "r1", "judge")
    done = driving.receipts(round_one)
    assert len(done) >= 2
    assert damaged.name not in "".join(path.read_text() for path in done)


def test_where_is_in_no_plan_and_makes_nothing_stale(round_one):
    before = {p: p.read_bytes() for p in (round_one / "data/plan").glob("r*/*.json")}
    driving.place(round_one, {"strategy": "ray", "count": 4})
    assert {p: p.read_bytes() for p in (round_one / "data/plan").glob("r*/*.json")} == before
    assert json.loads((round_one / "data/plan/transport.json").read_text())["r1.where"]["count"] == 4
    assert load_params(round_one).block("r1").where.count == 4
    assert "where" not in Plan.read(round_one, "r1", "judge").text


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ({"strategy": "rai"}, "did you mean 'ray'"),
        ({"strategy": "processes", "cuont": 2}, "did you mean 'count'"),
        ({"strategy": "processes", "count": 0}, "greater than or equal to 1"),
        ("ray", "must name its strategy"),
        (None, "must name its strategy"),
    ],
)
def test_a_wrong_where_is_named_with_its_fix(round_one, where, why):
    projects.rewrite(round_one, lambda content: content["rounds"]["r1"].update({"where": where}))
    with pytest.raises(ParamsError, match=r"rounds\.r1\.where") as error:
        load_params(round_one)
    assert why in str(error.value)


def test_a_round_has_its_bases_where_unless_it_says_another(round_one):
    projects.rewrite(round_one, lambda content: content["bases"]["r0"].update({"where": {"strategy": "processes"}}))
    assert load_params(round_one).block("r1").where.strategy_name() == "processes"
    driving.place(round_one, {"strategy": "here"})
    assert load_params(round_one).block("r1").where.strategy_name() == "here"


def test_without_ray_the_message_says_how_to_get_it(round_one, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    driving.place(round_one, {"strategy": "ray"})
    with pytest.raises(FlywheelError, match=r"flywheel\[ray\]"):
        execute.run_stage(round_one, "r1", "generate")


@pytest.mark.torture(
    "`kill -9` of the driver after any receipt", "no piece with a receipt is done again; the same digest"
)
def test_a_killed_driver_skips_what_is_done(round_one, tries, monkeypatch):
    execute.run_stage(round_one, "r1", "generate")
    whole = driving.made(round_one, "generate")
    count, rng = len(store.manifests(round_one, "r1")["generate"].outputs["responses"].parts), random.Random(7)
    for attempt in tries(20):
        driving.place(round_one, {"strategy": "processes", "count": 2} if attempt % 2 else None)
        (round_one / driving.LOG).unlink(missing_ok=True)
        process = drive(round_one, "generate")
        wait_for_receipts(round_one, rng.randrange(1, count), process)
        process.kill()
        process.wait()
        time.sleep(0.5)  # workers that saw it die
        driving.receipts(round_one)[0].write_bytes(b"{")  # a damaged one is none
        done = {int(path.stem) for path in driving.receipts(round_one)[1:]}
        before = len(handed(round_one))
        process = drive(round_one, "generate")
        assert process.wait() == 0, process.stderr.read()
        again = handed(round_one)[before:]
        assert not done & set(again)
        assert len(again) == count - len(done)
        assert driving.made(round_one, "generate") == whole


def test_a_worker_that_dies_is_started_anew_and_its_piece_done_again(round_one):
    execute.run_stage(round_one, "r1", "generate")
    whole = driving.made(round_one, "generate")
    projects.set_values(round_one, "r1", ["engine.seconds=0.0002"])
    driving.place(round_one, {"strategy": "processes", "count": 2})
    process = drive(round_one, "generate")
    wait_for_receipts(round_one, 1, process)
    by = json.loads(driving.receipts(round_one)[0].read_text())["by"]
    os.kill(int(by.split()[-1]), signal.SIGKILL)
    assert process.wait() == 0, process.stderr.read()
    assert driving.made(round_one, "generate") == whole
    assert len(handed(round_one)) <= len(whole[1]) // (3 * driving.pieces.MAX_PROMPTS) + 2


def test_an_engine_that_is_lost_ends_the_stage_and_what_is_done_stays(round_one):
    projects.set_values(round_one, "r1", ["engine.down=true"])
    for where in (None, {"strategy": "processes", "count": 2}):
        driving.place(round_one, where)
        with pytest.raises(EngineError, match="down"):
            execute.run_stage(round_one, "r1", "generate")
    assert not driving.receipts(round_one)


def test_pieces_with_failed_requests_are_done_again_in_another_try(round_one):
    projects.set_values(round_one, "r1", ["engine.error_rate=0.1"])
    plan.write(round_one)
    with pytest.raises(EngineError, match="max_error_share"):
        execute.run_stage(round_one, "r1", "generate")
    assert not driving.receipts(round_one)  # a tenth of every piece failed
    projects.set_values(round_one, "r1", ["engine.error_rate=0.001"])
    plan.write(round_one)
    manifest = execute.run_stage(round_one, "r1", "generate")
    assert manifest.metrics["response_errors"] > 0


def test_rows_that_break_a_check_name_themselves_and_leave_no_receipt(round_one, monkeypatch):
    monkeypatch.setitem(tables.responses.checks, "short", "tokens < 0")
    with pytest.raises(FlywheelError, match="break the check 'short'"):
        execute.run_stage(round_one, "r1", "generate")
    assert not driving.receipts(round_one)


def test_a_piece_that_kills_every_worker_is_given_up():
    crew = Crew[int]([7, 8], in_flight=2)
    with pytest.raises(FlywheelError, match="piece 7"):
        for worker in range(DEATHS):
            assert crew.next(worker)[0] == 7
            crew.died(worker, "signal 9")


def test_workers_that_die_before_they_begin_are_not_started_for_ever():
    crew = Crew[int]([1], in_flight=1)
    for _ in range(3):  # the other has died so often only while it was at a piece, or after that
        assert crew.died("a", "signal 9")
    assert crew.next("a") == [1]
    assert crew.died("a", "signal 9")
    assert [crew.died("b", "no module") for _ in range(DEATHS)] == [True] * (DEATHS - 1) + [False]
    crew.check(1)
    with pytest.raises(EngineError, match=r"before it began \(no module\)"):
        crew.check(0)


class CutOff:
    """A job whose pieces meet a file that is cut off."""

    needs = Needs()

    @contextmanager
    def open(self):
        def work(piece):
            raise EOFError("the file is cut off")

        yield work


def test_an_end_of_file_within_a_piece_is_no_end_of_the_worker():
    with pytest.raises(EOFError, match="the file is cut off") as error:
        list(Processes(count=1).run(CutOff(), [0]))
    assert 'test_where.py", line' in error.value.__notes__[0]  # where it was raised


def test_workers_have_what_their_engine_needs():
    def needs(engine, available: int) -> tuple[int, int]:
        models = SimpleNamespace(names=["parent"], engine=lambda _: engine)
        found = driver.needs(models)
        return found.cpus, found.gpus_of(available)

    assert needs(Transformers(threads=4, device="cpu"), 8) == (4, 0)
    assert (needs(Transformers(), 8), needs(Transformers(), 0)) == ((1, 1), (1, 0))
    assert needs(Transformers(threads=2, device="cuda"), 0) == (2, 1)
    assert needs(Vllm(tensor_parallel=2, data_parallel_size=2), 8) == (1, 4)
    assert needs(Fake(), 8) == (1, 0)


IN_NO_FOLDER = """
import os, pickle, sys
from tasks.where.ray import _Worker
from test_where import Elsewhere

os.rmdir(os.getcwd())
assert _Worker(pickle.dumps(Elsewhere()), {}).work(0) is None
"""


class Elsewhere(CutOff):
    """A job that is done in the project's folder, as pieces are."""

    @contextmanager
    def open(self):
        with chdir(Path(__file__).parent):
            yield lambda piece: None


def test_a_node_that_was_started_in_a_folder_that_is_gone_does_pieces(tmp_path):
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root, root / "tests", Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", IN_NO_FOLDER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
