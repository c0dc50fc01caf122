"""Training on two devices: the loss is that of one, a killed rank changes nothing, and what cannot be is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torture
from ranked import case_of, train_on_two
from runs import FAST, PAIRS, ROWS, contents, largest_difference, train, values

from tasks.core import errors
from tasks.core.errors import Diverged, FlywheelError, ParamsError
from tasks.train import _devices as module
from tasks.train._devices import CASE, ERROR, check_devices, on_devices, read_curve, write_case
from tasks.train.dpo import DPO
from tasks.train.nft import NFT
from tasks.train.sft import SFT
from tasks.training.loop import WHOLE, Schedule
from tasks.where.here import Here
from tasks.where.ray import Ray

pytestmark = pytest.mark.xdist_group("trl")
GENTLE = FAST | {"epochs": 1, "muon_lr": 1e-4, "adamw_lr": 1e-4}
"""Rates at which rounding errors do not grow from step to step."""


FULL = pytest.mark.skipif(torture.ALL not in os.environ, reason="takes minutes; `make torture` runs it")
UNEVEN = 37
"""Rows of which the last step has 5 of 8, which blank ones fill up."""


@pytest.mark.parametrize(
    ("strategy", "phase"),
    [(SFT(**GENTLE), "sft"), (DPO(**GENTLE, chosen=0.5, micro_batch=2), "dpo")],
    ids=["sft", "dpo in micro-batches"],
)
def test_the_loss_on_two_devices_is_that_on_one(parent, tmp_path, in_float32, strategy, phase):
    one = train(strategy, parent, tmp_path / "one", ROWS.head(UNEVEN), PAIRS.head(UNEVEN))
    two = train_on_two(strategy, case_of(parent, tmp_path / "two", ROWS.head(UNEVEN), PAIRS.head(UNEVEN)))
    for name in ("loss", "grad_norm"):
        assert values(two, name, phase) == pytest.approx(values(one, name, phase), rel=1e-3, abs=1e-5)
    assert len(values(two, phase=phase)) == 5
    assert largest_difference(tmp_path / "one/model", tmp_path / "two/model") < 1e-5
    assert largest_difference(tmp_path / "one/model", parent) > 1e-4


def test_shares_of_the_weights_give_the_loss_of_whole_ones(parent, tmp_path, in_float32, monkeypatch):
    """Against AdamW on all weights in one process; and the model is stored whole."""
    from tasks.training import loop

    sharded = SFT(**GENTLE, sharded=True)
    monkeypatch.setattr(
        loop, "optimizers",
        lambda policy, _, lr, schedule: (torch.optim.AdamW(policy.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.0), None),
    )  # fmt: skip
    one = train(SFT(**GENTLE), parent, tmp_path / "one", ROWS.head(UNEVEN))
    two = train_on_two(sharded, case_of(parent, tmp_path / "two", ROWS.head(UNEVEN)))
    assert values(two) == pytest.approx(values(one), abs=1e-5)
    assert largest_difference(tmp_path / "one/model", tmp_path / "two/model") < 1e-5
    assert {path.name for path in (tmp_path / "two/model").iterdir()} == {
        p.name for p in (tmp_path / "one/model").iterdir()
    }


@pytest.mark.torture(
    "`kill -9` of one of two ranks that train together", "from the last whole checkpoint to the same bytes"
)
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=FULL)], ids=["copies", "shares"])
def test_a_killed_rank_goes_on_from_the_checkpoint_to_the_same_bytes(parent, tmp_path, tries, sharded):
    strategy = SFT(**FAST | {"adamw_lr": 1e-4}, sharded=sharded)
    calm = train_on_two(strategy, case_of(parent, tmp_path / "calm"))
    for attempt in tries(10):
        case = case_of(parent, tmp_path / f"killed{attempt}")
        assert train_on_two(strategy, case, has_saved(case, 1 + attempt % 3)) is None
        assert not case.model.exists()
        assert train_on_two(strategy, case).equals(calm)
        assert contents(case.model) == contents(tmp_path / "calm/model")


def has_saved(case, count):
    """What says whether so many checkpoints were saved, of which the last two stay."""
    seen = set()
    return lambda: seen.update(whole(case)) or len(seen) >= count


def whole(case):
    return list((case.work / "sft").glob(f"checkpoint-*/{WHOLE}"))


@FULL
@pytest.mark.torture(
    "`kill -9` of a rank that `accelerate launch` started", "all ranks start again by themselves and end"
)
def test_launched_ranks_start_again_by_themselves(parent, tmp_path, tries):
    strategy = SFT(**FAST | {"epochs": 4})
    for attempt in tries(3):
        case = case_of(parent, tmp_path / f"killed{attempt}", ROWS.head(16))
        with ThreadPoolExecutor(1) as pool:
            curve, ranks = pool.submit(on_devices, strategy, case, (), Here()), ranks_of(case)
            while not curve.done() and not (whole(case) and ranks()):
                time.sleep(0.01)
            os.kill(ranks()[-1], signal.SIGKILL)
        assert [*curve.result()["step"].unique().sort()] == list(range(1, 9))
        assert {path.name for path in case.model.iterdir()} >= {"config.json", "model.safetensors"}
        assert not ranks(), "no rank is left"


def ranks_of(case):
    """What gives the process ids of the ranks of a case."""
    import psutil

    def find():
        place = str(case.work.absolute())
        found = [p for p in psutil.process_iter(["cmdline"]) if place in " ".join(p.info["cmdline"] or ())]
        return sorted(p.pid for p in found if "accelerate" not in " ".join(p.info["cmdline"]))

    return find


STARTER = """
import sys
from tasks.train import _devices
command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
_devices._run(command, None, sys.stdout.buffer)
"""


def test_ranks_end_with_the_process_that_started_them():
    import psutil

    stage = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    rank = psutil.Process(int(stage.stdout.readline()))
    stage.kill()
    stage.wait()
    rank.wait(20)


def test_an_error_of_a_rank_is_the_errors_own_kind(parent, tmp_path):
    case = case_of(parent, tmp_path, ROWS.head(16))
    with pytest.raises(Diverged, match="learning rate"):
        train_on_two(SFT(**FAST | {"muon_lr": 1e30, "adamw_lr": 1e30}), case)
    assert not case.model.exists()


def test_what_is_left_of_a_rank_that_only_died_is_told(parent, tmp_path):
    folder = write_case(SFT(), case_of(parent, tmp_path, ROWS.head(2)))
    (folder.parent / module.LOG).write_text("first\nRuntimeError: out of memory\n")
    with pytest.raises(FlywheelError, match="out of memory"):
        read_curve(folder)
    assert (folder / CASE).is_file()


def test_more_devices_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(module, "available", lambda: (2, "GPU"))
    check_devices(1, Here())
    check_devices(2, Here())
    check_devices(16, Ray())
    with pytest.raises(ParamsError, match=r"devices is 3.*2 GPUs.*where"):
        check_devices(3, Here())


@pytest.mark.parametrize(
    ("gpus", "expected"), [(("a", "b", "c"), (3, "GPU")), ((), (len(os.sched_getaffinity(0)), "CPU"))]
)
def test_devices_are_gpus_where_there_are_any(monkeypatch, gpus, expected):
    monkeypatch.setattr(module, "devices", lambda: gpus)
    assert module.available() == expected


@pytest.mark.parametrize(
    ("rows", "batch", "micro_batch", "devices", "share", "at_once"),
    [(100, 48, None, 2, 24, 24), (100, 48, 5, 2, 24, 4), (100, 9, None, 2, 5, 5), (3, 48, None, 2, 2, 2), (1, 48, None, 2, 1, 1)],
)  # fmt: skip
def test_the_rows_of_a_step_are_divided_among_the_devices(rows, batch, micro_batch, devices, share, at_once):
    schedule = Schedule(rows, 1, batch, micro_batch, 0.1, 0, devices=devices)
    assert (schedule.share, schedule.at_once) == (share, at_once)
    assert schedule.steps == Schedule(rows, 1, batch, micro_batch, 0.1, 0).steps


@pytest.mark.parametrize("values", [{"schedule": "wsd"}, {"parameters": "bfloat16"}])
def test_what_shares_of_weights_cannot_have_is_refused(values):
    with pytest.raises(ValueError, match="sharded"):
        SFT(sharded=True, **values)
    with pytest.raises(ValueError, match="sharded"):
        NFT(sharded=True)


def test_weights_kept_in_bfloat16_are_stored_as_their_start_is(parent, tmp_path):
    from tasks.training.weights import stored_dtype

    losses = values(train(SFT(**FAST, parameters="bfloat16"), parent, tmp_path))
    assert losses[-1] < 0.5 * losses[0]
    assert stored_dtype(tmp_path / "model") == stored_dtype(parent) == torch.float32


@FULL
@pytest.mark.torture("`kill -9` of a rank on a Ray cluster", "all ranks start again by themselves and end")
def test_ranks_on_a_cluster_start_again_by_themselves(parent, tmp_path):
    strategy, case = SFT(**FAST), case_of(parent, tmp_path / "ray")
    with ThreadPoolExecutor(1) as pool:
        curve = pool.submit(on_devices, strategy, case, (), Ray())
        while not curve.done() and not whole(case):
            time.sleep(0.01)
        os.kill(workers()[-1], signal.SIGKILL)
    calm = train_on_two(strategy, case_of(parent, tmp_path / "calm"))
    assert curve.result().select("step", "name").equals(calm.select("step", "name"))
    assert values(curve.result())[0] == pytest.approx(values(calm)[0], rel=0.01)  # one computes in bfloat16


def workers():
    """Process ids of Ray's workers of a training."""
    import psutil

    found = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or ())]
    return sorted(p.pid for p in found)


def test_what_a_rank_raised_is_raised_whatever_its_kind(tmp_path):
    for kind in ("UnknownName", "Diverged", "NoKind"):
        (tmp_path / ERROR).write_text(json.dumps({"kind": kind, "text": "there is no train 'x'"}))
        with pytest.raises(getattr(errors, kind, FlywheelError), match="there is no train 'x'"):
            read_curve(tmp_path)
