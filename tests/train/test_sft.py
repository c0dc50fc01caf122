"""Fine-tuning through TRL: rows are learnt, a kill changes nothing, NaN stops it, memory can be saved."""

import multiprocessing
import signal
import time

import pytest
import torch
from runs import FAST, PROBLEMS, ROWS, contents, largest_difference, train, values, weights

from tasks.core.errors import Diverged
from tasks.train import Lora
from tasks.train.sft import SFT
from tasks.train.sft_dpo import SFTThenDPO
from tasks.training.loop import WHOLE


def test_sft_learns_the_rows(parent, tmp_path):
    losses = values(train(SFT(**FAST), parent, tmp_path))
    assert losses[-1] < 0.5 * losses[0]
    assert len(losses) == -(-3 * len(PROBLEMS) // 8)


def test_the_model_folder_is_laid_out_as_the_parents(parent, tmp_path):
    train(SFT(**FAST | {"epochs": 1}), parent, tmp_path)
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files <= {path.name for path in (tmp_path / "model").iterdir()}


def test_blend_averages_with_the_parent(parent, tmp_path):
    from safetensors.torch import load_file

    train(SFT(**FAST), parent, tmp_path / "all")
    train(SFT(**FAST | {"blend": 0.25}), parent, tmp_path / "quarter")
    old, new, blended = (
        load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        for folder in (parent, tmp_path / "all" / "model", tmp_path / "quarter" / "model")
    )
    assert (old.lerp(new, 0.25) - blended).abs().max() < 1e-6 < (old - new).abs().max()


def test_an_adapter_is_merged(parent, tmp_path):
    losses = values(train(SFT(**FAST, adapter=Lora(rank=4)), parent, tmp_path))
    assert losses[-1] < losses[0]
    assert b"lora" not in weights(tmp_path)


def test_an_adapter_is_drawn_by_the_seed(parent, tmp_path):
    strategy = SFTThenDPO(**FAST | {"epochs": 1}, dpo_batch=8, adapter=Lora(rank=4, dropout=0.1))
    for name, before in (("one", 1), ("again", 2)):
        torch.manual_seed(before)
        train(strategy, parent, tmp_path / name)
    assert weights(tmp_path / "one") == weights(tmp_path / "again")


PREFERRING = FAST | {"epochs": 1, "dpo_batch": 8, "dpo_epochs": 3}


@pytest.mark.parametrize(
    ("strategy", "phase"),
    [
        (SFT(**FAST), "sft"),
        (SFT(**FAST, micro_batch=4), "sft"),
        (SFTThenDPO(**PREFERRING, adapter=Lora(rank=4)), "dpo"),
        (SFTThenDPO(**PREFERRING, adapter=Lora(rank=4, merge=False)), "dpo"),
    ],
    ids=["sft", "sft in micro-batches", "dpo", "dpo of an adapter that is not merged"],
)
def test_killed_after_a_checkpoint_it_ends_in_the_same_bytes(parent, tmp_path, strategy, phase):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    first = train(strategy, parent, calm)
    # not forked from here: where a backward pass has run already, it hangs in a forked child
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["trl.trainer.sft_trainer", "tasks.training.preferring", "tasks.training.loop"])
    seen: set[int] = set()
    for _ in range(2):
        child = server.Process(target=train, args=(strategy, parent, killed))
        child.start()
        late = time.monotonic() + 120
        while child.is_alive() and checkpoints(killed, phase) <= seen and time.monotonic() < late:
            time.sleep(0.002)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        assert checkpoints(killed, phase) - seen, "it was killed before it had a checkpoint to go on from"
        seen |= checkpoints(killed, phase)
    second = train(strategy, parent, killed)
    assert contents(calm / "model") == contents(killed / "model")
    assert first.equals(second)


def checkpoints(folder, phase):
    """Steps of the checkpoints that were written to their end."""
    whole = (folder / "work" / phase).glob(f"checkpoint-*/{WHOLE}")
    return {int(path.parent.name.rpartition("-")[2]) for path in whole}


def test_nan_stops_it_and_writes_no_model(parent, tmp_path):
    with pytest.raises(Diverged):
        train(SFT(**FAST | {"muon_lr": 1e30, "adamw_lr": 1e30}), parent, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "saving", [{"micro_batch": 2}, {"gradient_checkpointing": True}, {"micro_batch": 4, "gradient_checkpointing": True}]
)
@pytest.mark.parametrize("adapter", [None, Lora(rank=4)], ids=["all weights", "adapter"])
def test_the_loss_is_the_same_with_less_memory(parent, tmp_path, in_float32, saving, adapter):
    # gentle rates: with high ones rounding errors grow from step to step
    gentle = FAST | {"epochs": 2, "muon_lr": 1e-4, "adamw_lr": 1e-4, "adapter": adapter}
    whole = values(train(SFT(**gentle), parent, tmp_path / "whole"))
    pieces = values(train(SFT(**gentle, **saving), parent, tmp_path / "pieces"))
    assert len(whole) == len(pieces) == -(-2 * len(PROBLEMS) // 8)
    assert pieces == pytest.approx(whole, abs=1e-5)
    assert largest_difference(tmp_path / "whole/model", tmp_path / "pieces/model") < 1e-5


def test_with_fewer_rows_than_a_batch_an_epoch_is_a_step(parent, tmp_path):
    curve = train(SFT(**FAST | {"batch": 48}), parent, tmp_path, rows=ROWS.head(5))
    assert len(values(curve)) == 3


@pytest.mark.parametrize("adapter", [None, Lora(rank=4)], ids=["all weights", "adapter"])
def test_without_a_rate_of_muon_adamw_steps_on_all(parent, tmp_path, in_float32, adapter):
    """What is learnt is what Trainer's own AdamW learns."""

    class Plain(SFT):
        def settings_of(self, work, schedule, steps):
            own = {"optim": "adamw_torch", "learning_rate": steps.adamw_lr, "adam_beta2": 0.98, "weight_decay": 0.0}
            return super().settings_of(work, schedule, steps) | own

        def optimizers_of(self, *_):
            return None, None

    rates = FAST | {"epochs": 2, "muon_lr": None, "adamw_lr": 1e-3, "adapter": adapter}
    mine = values(train(SFT(**rates), parent, tmp_path / "mine"))
    its = values(train(Plain(**rates), parent, tmp_path / "its"))
    assert mine == pytest.approx(its, abs=1e-5)
    assert mine != pytest.approx(values(train(SFT(**rates | {"muon_lr": 1e-3}), parent, tmp_path / "muon")), abs=1e-3)
    assert largest_difference(tmp_path / "mine/model", tmp_path / "its/model") < 1e-5
