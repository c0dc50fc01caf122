"""Fine-tuning through TRL: rows are learnt, pairs are preferred, a kill changes nothing, NaN stops it."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from math import inf, nan
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from tasks import models
from tasks.base.scratch import Scratch
from tasks.domains.arithmetic import Arithmetic
from tasks.errors import Diverged, ModelRefused
from tasks.train import Lora
from tasks.train.sft import SFT
from tasks.train.sft_dpo import SFTThenDPO
from tasks.training import PLOTTED, WHOLE, _watch, load, save

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


def written(model):
    return {path.name: path.read_bytes() for path in model.iterdir()}


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


def test_an_adapter_is_drawn_by_the_seed(parent, tmp_path):
    params = SFTThenDPO(**FAST | {"epochs": 1}, pairs_batch=8, adapter=Lora(rank=4, dropout=0.1))
    for name, before in (("one", 1), ("again", 2)):
        torch.manual_seed(before)
        train(params, parent, tmp_path / name)
    assert weights(tmp_path / "one") == weights(tmp_path / "again")


PREFERRING = FAST | {"epochs": 1, "pairs_batch": 8, "pairs_epochs": 3}


@pytest.mark.parametrize(
    ("params", "phase"),
    [
        (SFT(**FAST), "sft"),
        (SFTThenDPO(**PREFERRING, adapter=Lora(rank=4)), "dpo"),
        (SFTThenDPO(**PREFERRING, adapter=Lora(rank=4, merge=False)), "dpo"),
    ],
    ids=["sft", "dpo", "dpo of an adapter that is not merged"],
)
def test_killed_after_a_checkpoint_it_ends_in_the_same_bytes(parent, tmp_path, params, phase):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    first = train(params, parent, calm)
    # not forked from here: where a backward pass has run already, it hangs in a forked child
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "tasks.training"])
    seen: set[int] = set()
    for _ in range(2):
        child = server.Process(target=train, args=(params, parent, killed))
        child.start()
        late = time.monotonic() + 120
        while child.is_alive() and checkpoints(killed, phase) <= seen and time.monotonic() < late:
            time.sleep(0.002)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        assert checkpoints(killed, phase) - seen, "it was killed before it had a checkpoint to go on from"
        seen |= checkpoints(killed, phase)
    second = train(params, parent, killed)
    assert written(calm / "model") == written(killed / "model")
    assert first.equals(second)


def checkpoints(folder, phase):
    """Steps of the checkpoints that were written to their end."""
    whole = (folder / "work" / phase).glob(f"checkpoint-*/{WHOLE}")
    return {int(path.parent.name.rpartition("-")[2]) for path in whole}


def test_nan_stops_it_and_writes_no_model(parent, tmp_path):
    with pytest.raises(Diverged):
        train(SFT(**FAST | {"matrices": 1e30, "rest": 1e30}), parent, tmp_path)
    assert not (tmp_path / "model").exists()


def test_weights_that_the_last_step_broke_are_not_saved(parent, tmp_path):
    policy, tokenizer = load(parent)
    policy.lm_head.weight.data[3, 4] = nan
    with pytest.raises(Diverged, match=r"weights are not finite, first in .*embed_tokens.*lower the learning rate"):
        save(policy, tokenizer, parent, tmp_path / "model", blend=0.5)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", sorted(PLOTTED))
def test_no_value_of_the_curve_may_leave_the_finite_numbers(name):
    state = SimpleNamespace(log_history=[{"loss": 2.0}], global_step=3)
    for value in (inf, nan):
        with pytest.raises(Diverged, match=f"the {name} is {value} at step 3"):
            _watch().on_log(None, state, None, {"loss": 1.0, name: value})
    _watch().on_log(None, state, None, {"loss": 1.0, name: 1.5})


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


ROUNDS = "data/round={}/model"


def adapted(project, name, parent, **how):
    """A round of a project whose adapter is not merged; its model's folder."""
    folder = project / ROUNDS.format(name)
    params = how.pop("params", SFT)(**FAST | {"adapter": Lora(rank=4, merge=False)} | how)
    place = {"parent_model": parent, "model": folder, "work": project / "work" / name}
    params(ROWS, PAIRS, **place, seed=1, domain=DOMAIN)
    return folder


@pytest.fixture
def project(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "one" / ROUNDS.format("r0"))
    return tmp_path / "one"


def same(one, other):
    new, old = (load(folder)[0].state_dict() for folder in (one, other))
    return max((new[name] - old[name]).abs().max().item() for name in new)


@pytest.mark.parametrize("blend", [1.0, 0.5])
def test_an_adapter_that_is_not_merged_is_the_merged_model(project, blend):
    r0 = project / ROUNDS.format("r0")
    alone = adapted(project, "r1", r0, blend=blend)
    merged = adapted(project, "merged", r0, blend=blend, adapter=Lora(rank=4))

    assert models.is_adapter(alone) and not (alone / "model.safetensors").exists()
    assert same(alone, merged) < 1e-5 < same(alone, r0)


SAVING = """
import sys
from pathlib import Path
from tasks.train import Lora
from tasks.training import load, save

parent, model = map(Path, sys.argv[1:])
alone = Lora(rank=4, merge=False)
save(*load(parent, alone, 1), parent, model, 1.0, alone)
"""


def test_an_adapters_files_are_the_same_in_every_process(project):
    r0, folders = project / ROUNDS.format("r0"), [project / ROUNDS.format(name) for name in ("r1", "r2")]
    for seed, folder in enumerate(folders):
        command = [sys.executable, "-c", SAVING, str(r0), str(folder)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": str(seed)})
    assert written(folders[0]) == written(folders[1])


def test_a_line_of_adapters_stands_on_its_first_base(project):
    r0 = project / ROUNDS.format("r0")
    first = adapted(project, "r1", r0)
    second = adapted(project, "r2", first, blend=0.5)
    whole = adapted(project, "whole", first, blend=0.5, adapter=Lora(rank=4))

    assert models.named_base(second) == r0
    assert json.loads((second / models.ADAPTER).read_text())["r"] == 8
    assert same(second, whole) < 1e-5 < same(second, first)


def test_pairs_go_on_with_the_adapter_that_the_rows_made(project):
    r0 = project / ROUNDS.format("r0")
    tuned = adapted(project, "r1", r0, params=SFTThenDPO, pairs_batch=8)
    assert json.loads((tuned / models.ADAPTER).read_text())["r"] == 4
    assert same(tuned, adapted(project, "r2", r0)) > 1e-5


def test_a_project_with_adapters_can_be_moved_but_not_given_another_base(project, tmp_path):
    before = models.digest(adapted(project, "r1", project / ROUNDS.format("r0")))
    moved = project.rename(tmp_path / "two")
    assert models.digest(moved / ROUNDS.format("r1")) == before

    config = moved / ROUNDS.format("r0") / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    with pytest.raises(ModelRefused, match="round=r0/model: is not the model that the adapter"):
        models.check(moved / ROUNDS.format("r1"))


ODD = {
    "few layers": ({"target_modules": ["q_proj"]}, r"down_proj\.lora_A\.weight is missing"),
    "scaled by the root of the rank": ({"use_rslora": True}, "use_rslora is True"),
    "magnitudes": ({"use_dora": True}, "use_dora is True; .*magnitude_vector is none of their factors"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 3}}, r"rank_pattern is \{'q_proj': 3\}"),
    "drawn from the weights, which it changed": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "whole modules": ({"modules_to_save": ["norm"]}, r"modules_to_save is \['norm'\]"),
}


@pytest.mark.parametrize(("how", "said"), ODD.values(), ids=ODD)
def test_an_adapter_of_another_kind_cannot_be_put_beside_a_new_one(project, monkeypatch, how, said):
    from peft import LoraConfig, get_peft_model

    r0 = project / ROUNDS.format("r0")
    config = LoraConfig(**{"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | how)
    get_peft_model(load(r0)[0], config).save_pretrained(project / "other")
    monkeypatch.setattr("tasks.training.fit", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(ModelRefused, match=f"(?s)other: this adapter .*{said}.*set train.adapter.merge to true"):
        adapted(project, "r1", project / "other")


def test_an_adapter_that_is_no_lora_is_not_loaded(project):
    from peft import IA3Config, get_peft_model

    r0 = project / ROUNDS.format("r0")
    get_peft_model(load(r0)[0], IA3Config(task_type="CAUSAL_LM")).save_pretrained(project / "other")
    with pytest.raises(ModelRefused, match="peft_type 'IA3', and only LORA is known"):
        adapted(project, "r1", project / "other", adapter=Lora(rank=4))
