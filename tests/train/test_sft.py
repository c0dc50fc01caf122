"""Fine-tuning through TRL: rows are learnt, pairs are preferred, a kill changes nothing, NaN stops it."""

import multiprocessing
import time

import polars as pl
import pytest

from tasks.base.scratch import Scratch
from tasks.domains.arithmetic import Arithmetic
from tasks.errors import Diverged
from tasks.train import Lora
from tasks.train.sft import SFT
from tasks.train.sft_dpo import SFTThenDPO

DOMAIN = Arithmetic()
PROBLEMS = [item.problem for item in DOMAIN.items("train", 42, 0)]


def turn(text):
    return [{"role": "assistant", "content": text}]


ROWS = pl.DataFrame([{"prompt": DOMAIN.solve(p), "completion": turn("Answer: 7")} for p in PROBLEMS])
PAIRS = pl.DataFrame(
    [{"prompt": DOMAIN.solve(p), "chosen": turn("Answer: 7"), "rejected": turn("Answer: 8")} for p in PROBLEMS]
)
FAST = {"epochs": 3, "blend": 1.0, "batch": 8, "matrices": 0.02, "rest": 0.01}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    tiny = Scratch(hidden=32, layers=1, ffn=64, easy=60, clean=0, noisy=0, comparing=0, checking=0, chunk=60, batch=600)
    tiny(folder / "model", folder / "work", 0, DOMAIN)
    return folder / "model"


def train(params, parent, folder, rows=ROWS, pairs=PAIRS):
    place = {"parent_model": parent, "model": folder / "model", "work": folder / "work"}
    return params(rows, pairs, **place, seed=1, domain=DOMAIN)


def loss(curve, phase="sft"):
    return curve.filter(phase=phase, name="loss").sort("step")["value"].to_list()


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_sft_learns_the_rows(parent, tmp_path):
    curve = train(SFT(**FAST), parent, tmp_path)
    assert loss(curve)[-1] < 0.5 * loss(curve)[0]
    assert len(loss(curve)) == -(-3 * len(PROBLEMS) // 8)


def test_the_model_folder_is_laid_out_as_the_parents(parent, tmp_path):
    train(SFT(**FAST | {"epochs": 1}), parent, tmp_path)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert wanted <= {path.name for path in (tmp_path / "model").iterdir()}


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
    curve = train(SFT(**FAST, adapter=Lora(rank=4)), parent, tmp_path)
    assert loss(curve)[-1] < loss(curve)[0]
    assert b"lora" not in weights(tmp_path)


def test_killed_while_it_trains_it_ends_in_the_same_bytes(parent, tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    first = train(SFT(**FAST), parent, calm)
    fork = multiprocessing.get_context("fork")
    for seconds in (0.6, 1.1, 1.7):
        child = fork.Process(target=train, args=(SFT(**FAST), parent, killed))
        child.start()
        time.sleep(seconds)
        child.kill()
        child.join()
    second = train(SFT(**FAST), parent, killed)
    assert weights(calm) == weights(killed)
    assert first.equals(second)


def test_nan_stops_it_and_writes_no_model(parent, tmp_path):
    with pytest.raises(Diverged):
        train(SFT(**FAST | {"matrices": 1e30, "rest": 1e30}), parent, tmp_path)
    assert not (tmp_path / "model").exists()


def test_dpo_prefers_the_chosen(parent, tmp_path):
    params = SFTThenDPO(**FAST | {"epochs": 1}, pairs_batch=8, pairs_epochs=3, pairs_matrices=0.02, pairs_rest=0.01)
    curve = train(params, parent, tmp_path)
    assert set(curve["phase"]) == {"sft", "dpo"}
    margins = curve.filter(phase="dpo", name="rewards/margins").sort("step")["value"]
    assert margins[-1] > margins[0]


def test_either_step_is_left_out_without_rows_for_it(parent, tmp_path):
    params = SFTThenDPO(**FAST | {"epochs": 1}, pairs_batch=8)
    assert set(train(params, parent, tmp_path / "a", rows=ROWS.clear())["phase"]) == {"dpo"}
    assert set(train(params, parent, tmp_path / "b", pairs=PAIRS.clear())["phase"]) == {"sft"}
