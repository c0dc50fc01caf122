"""Learning rates of `wsd`, and rounds that go on from the trunk of the one before."""

import pytest
from pydantic import ValidationError
from runs import FAST, largest_difference, train, weights

from tasks.core import models
from tasks.train import Lora
from tasks.train.dpo import DPO
from tasks.train.sft import SFT
from tasks.training.loop import Schedule
from tasks.training.trunk import trunk_of

pytestmark = pytest.mark.xdist_group("trl")
INFINITE = FAST | {"schedule": "infinite", "decay": 0.25}


def test_the_factors_by_hand():
    schedule = Schedule(80, 1, 4, None, 0.1, 0, "wsd", 0.2)  # 20 steps: 2 of warm-up, 4 of decay
    assert (schedule.steps, schedule.warmup_steps, schedule.trunk_steps) == (20, 2, 16)
    factors = [schedule.factor(step) for step in range(20)]
    assert factors[:16] == pytest.approx([0, 0.5] + [1] * 14)
    assert factors[16:] == pytest.approx([1, 0.1**0.25, 0.1**0.5, 0.1**0.75], abs=1e-6)
    assert schedule.factor(20) == pytest.approx(0.1)
    assert [Schedule(4, 1, 4, None, 0.1, 0, "wsd", 0.1).factor(0)] == [1.0]  # one step, all decay
    without_warmup = Schedule(80, 1, 4, None, 0.0, 0, "wsd", 0.2)
    assert [without_warmup.factor(step) for step in range(17)] == [1.0] * 17, "no step is wasted at a rate of 0"


def test_the_trainer_follows_the_schedule(parent, tmp_path):
    from transformers import TrainerCallback

    rates = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **_):
            rates.append([group["lr"] for group in optimizer.param_groups])

    class Watched(SFT):
        def watch(self, trainer, schedule):
            trainer.add_callback(Rates())

    strategy = Watched(**FAST | {"schedule": "wsd", "decay": 0.25})
    train(strategy, parent, tmp_path)
    schedule = strategy.schedule_of(42, strategy.steps, 1)
    expected = [[peak * schedule.factor(step) for peak in (0.02, 0.01)] for step in range(16)]
    assert [rate for step in rates for rate in step] == pytest.approx([rate for step in expected for rate in step])


def test_a_round_goes_on_from_the_trunk_and_keeps_its_own(parent, tmp_path):
    train(SFT(**INFINITE), parent, tmp_path / "one")
    first = tmp_path / "one" / "model"
    assert trunk_of(parent) == parent
    assert trunk_of(first) == first / "trunk"
    models.check(first / "trunk")
    assert largest_difference(first, first / "trunk") > 1e-4
    train(SFT(**FAST | {"schedule": "wsd", "decay": 0.25}), parent, tmp_path / "plain")
    assert weights(tmp_path / "plain") == weights(tmp_path / "one")  # the same branch; the trunk is only kept
    assert models.digest(first) == models.digest(tmp_path / "plain" / "model")

    train(SFT(**INFINITE), first, tmp_path / "two")
    train(SFT(**FAST | {"schedule": "wsd", "decay": 0.25}), first / "trunk", tmp_path / "by hand")
    assert weights(tmp_path / "two") == weights(tmp_path / "by hand")


def test_an_interrupted_run_keeps_the_same_trunk(parent, tmp_path, stopped_halfway):
    strategy = SFT(**INFINITE | {"decay": 0.7})  # the decay has begun when it stops
    train(strategy, parent, tmp_path / "calm")
    with stopped_halfway(), pytest.raises(KeyboardInterrupt):
        train(strategy, parent, tmp_path / "stopped")
    train(strategy, parent, tmp_path / "stopped")
    for folder in ("model", "model/trunk"):
        calm, stopped = ((tmp_path / name / folder / "model.safetensors").read_bytes() for name in ("calm", "stopped"))
        assert calm == stopped


def test_pairs_have_wsd_and_trunks_have_all_weights(parent, tmp_path):
    curve = train(DPO(**FAST | {"epochs": 1, "schedule": "wsd"}), parent, tmp_path)
    assert len(curve)
    with pytest.raises(ValidationError, match="infinite"):
        SFT(schedule="infinite", adapter=Lora())
    with pytest.raises(ValidationError):
        DPO(schedule="infinite")
