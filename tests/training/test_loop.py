"""The order of rows, steps and devices, and the watch over the curve."""

from collections import Counter
from math import inf, nan
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.errors import Diverged
from tasks.training.loop import PLOTTED, Schedule, arguments, at_intervals, in_order, on_one_device, watch


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    batch=st.integers(1, 12),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_every_row_is_taken_as_often_as_there_are_epochs_and_never_twice_in_a_step(lengths, batch, epochs, seed):
    order = in_order(lengths, batch, epochs, seed)
    assert Counter(order) == dict.fromkeys(range(len(lengths)), epochs)
    step = min(batch, len(lengths))
    groups = [order[i : i + step] for i in range(0, len(order), step)]
    assert all(len(set(group)) == len(group) for group in groups)
    assert len(groups) == Schedule(len(lengths), epochs, batch, None, 0.1, seed).steps
    assert order == in_order(lengths, batch, epochs, seed)


def test_the_rows_that_fill_no_batch_are_drawn_by_the_seed_and_not_by_length():
    lengths = list(range(100, 200))  # 100 rows, 12 a batch: 4 are left over each epoch
    last = [set(in_order(lengths, 12, 1, seed)[-4:]) for seed in range(40)]
    drawn = Counter(row for rows in last for row in rows)
    assert sum(drawn[row] for row in range(50)) == pytest.approx(80, abs=30)
    assert len(drawn) > 50
    assert max(drawn.values()) < 8
    # other ones in each epoch, in batches of their own that lie anywhere
    order = in_order(lengths, 12, 6, 0)  # 24 left over: two batches
    groups = [order[i : i + 12] for i in range(0, 600, 12)]
    mixed = [n for n, group in enumerate(groups) if max(group) - min(group) > 30]
    assert len(mixed) == 2
    assert len(set(groups[mixed[0]] + groups[mixed[1]])) == 24
    places = set()
    for seed in range(20):
        order = in_order(lengths, 12, 6, seed)
        groups = [order[i : i + 12] for i in range(0, 600, 12)]
        places |= {n for n, group in enumerate(groups) if max(group) - min(group) > 30}
    assert len(places) > 15


def test_batches_hold_rows_of_like_length_in_an_order_drawn_by_the_seed():
    lengths = [7, 1, 5, 3, 8, 2, 6, 4]
    order = in_order(lengths, 2, 1, 0)
    alike = {frozenset(order[i : i + 2]) for i in range(0, 8, 2)}
    assert alike == {frozenset(pair) for pair in ((1, 5), (3, 7), (2, 6), (0, 4))}
    assert len({tuple(in_order(lengths, 2, 1, seed)) for seed in range(20)}) > 5


def test_old_rows_come_in_steps_of_their_own_at_intervals():
    old = [n % 4 == 3 for n in range(40)]  # 30 new, 10 old ones, 4 a step, twice
    schedule = Schedule(40, 2, 4, None, 0.1, 0)
    order = at_intervals([1] * 40, old, schedule, 3)
    steps = [order[n : n + 4] for n in range(0, 80, 4)]
    assert Counter(order) == dict.fromkeys(range(40), 2)
    assert len(steps) == schedule.steps
    assert all(len(set(step)) == len(step) for step in steps)
    kinds = "".join("o" if all(old[n] for n in step) else "n" for step in steps)
    assert kinds == "nnnonnnonnnonnnonnno"
    # 15 steps of new rows, 5 of old ones: what the interval leaves over comes last
    kinds = ["o" if old[n] else "n" for n in at_intervals([1] * 40, old, schedule, 7)[::4]]
    assert "".join(kinds) == "nnnnnnnonnnnnnnonooo"
    assert at_intervals([1] * 40, [False] * 40, schedule, 3) == in_order([1] * 40, 4, 2, 0)


@pytest.mark.parametrize(
    ("schedule", "step", "at_once", "steps"),
    [
        (Schedule(100, 2, 48, None, 0.1, 0), 48, 48, 5),
        (Schedule(100, 2, 48, 12, 0.1, 0), 48, 12, 5),
        (Schedule(10, 3, 48, None, 0.1, 0), 10, 10, 3),  # an epoch is a step
        (Schedule(10, 3, 48, 4, 0.1, 0), 10, 2, 3),
        (Schedule(7, 3, 48, 4, 0.1, 0), 7, 1, 3),
    ],
)
def test_how_rows_become_steps(tmp_path, schedule, step, at_once, steps):
    assert (schedule.step, schedule.at_once, schedule.steps) == (step, at_once, steps)
    config = arguments(tmp_path, schedule)
    assert config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] == step


def test_with_several_devices_one_is_used(tmp_path, tiny_model):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    def trainer(settle):
        config = SFTConfig(**arguments(tmp_path, Schedule(1, 1, 1, None, 0.1, 0)))
        config._n_gpu = 2  # as with two visible ones
        rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        policy = AutoModelForCausalLM.from_pretrained(tiny_model)
        return SFTTrainer(policy, settle(config), train_dataset=rows, processing_class=tokenizer)

    with pytest.raises(ValueError, match="DataParallel"):
        trainer(lambda config: config)
    assert trainer(on_one_device).args.n_gpu == 1


@pytest.mark.parametrize("name", sorted(PLOTTED))
def test_no_value_of_the_curve_may_leave_the_finite_numbers(name):
    state = SimpleNamespace(log_history=[{"loss": 2.0}], global_step=3)
    for value in (inf, nan):
        with pytest.raises(Diverged, match=f"{name} is {value} at step 3"):
            watch().on_log(None, state, None, {"loss": 1.0, name: value})
    watch().on_log(None, state, None, {"loss": 1.0, name: 1.5})
