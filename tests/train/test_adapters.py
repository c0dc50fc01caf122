"""Adapters that are not merged: the same model as merged ones, side by side with a parent's, in a project that moves."""

import json
import os
import shutil
import subprocess
import sys

import polars as pl
import pytest
from runs import FAST, PAIRS, ROWS, contents, largest_difference

from tasks.core import models
from tasks.core.errors import ModelRefused
from tasks.train import Lora, TrainCase
from tasks.train.dpo import DPO
from tasks.train.kto import KTO
from tasks.train.nft import NFT
from tasks.train.selm import SELM
from tasks.train.sft import SFT
from tasks.train.sft_dpo import SFTThenDPO
from tasks.train.t_reg import TReg
from tasks.training.weights import load

ROUNDS = "data/round={}/model"


def adapted(project, name, start, strategy=SFT, **changes):
    """A round of a project whose adapter is not merged; its model's folder."""
    folder = project / ROUNDS.format(name)
    trainer = strategy(**FAST | {"adapter": Lora(rank=4, merge=False)} | changes)
    trainer(TrainCase(ROWS, PAIRS, start, None, folder, project / "work" / name, 1))
    return folder


@pytest.fixture
def project(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "one" / ROUNDS.format("r0"))
    return tmp_path / "one"


@pytest.mark.parametrize("blend", [1.0, 0.5])
def test_an_adapter_that_is_not_merged_is_the_merged_model(project, blend):
    r0 = project / ROUNDS.format("r0")
    alone = adapted(project, "r1", r0, blend=blend)
    merged = adapted(project, "merged", r0, blend=blend, adapter=Lora(rank=4))

    assert models.is_adapter(alone)
    assert not (alone / "model.safetensors").exists()
    assert largest_difference(alone, merged) < 1e-5 < largest_difference(alone, r0)


SAVING = """
import sys
from pathlib import Path
from tasks.train import Lora
from tasks.training.weights import load, save

start, model = map(Path, sys.argv[1:])
alone = Lora(rank=4, merge=False)
save(*load(start, alone, 1), start, model, 1.0, alone)
"""


def test_an_adapters_files_are_the_same_in_every_process(project):
    r0, folders = project / ROUNDS.format("r0"), [project / ROUNDS.format(name) for name in ("r1", "r2")]
    for seed, folder in enumerate(folders):
        command = [sys.executable, "-c", SAVING, str(r0), str(folder)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": str(seed)})
    assert contents(folders[0]) == contents(folders[1])


def test_a_line_of_adapters_stands_on_its_first_base(project):
    r0 = project / ROUNDS.format("r0")
    first = adapted(project, "r1", r0)
    second = adapted(project, "r2", first, blend=0.5)
    whole = adapted(project, "whole", first, blend=0.5, adapter=Lora(rank=4))

    assert models.named_base(second) == r0
    assert json.loads((second / models.ADAPTER).read_text())["r"] == 8
    assert largest_difference(second, whole) < 1e-5 < largest_difference(second, first)


def test_pairs_go_on_with_the_adapter_that_the_rows_made(project):
    r0 = project / ROUNDS.format("r0")
    tuned = adapted(project, "r1", r0, SFTThenDPO, dpo_batch=8)
    assert json.loads((tuned / models.ADAPTER).read_text())["r"] == 4
    assert largest_difference(tuned, adapted(project, "r2", r0)) > 1e-5


def test_a_project_with_adapters_can_be_moved_but_not_given_another_base(project, tmp_path):
    before = models.digest(adapted(project, "r1", project / ROUNDS.format("r0")))
    moved = project.rename(tmp_path / "two")
    assert models.digest(moved / ROUNDS.format("r1")) == before

    config = moved / ROUNDS.format("r0") / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    with pytest.raises(ModelRefused, match="round=r0/model"):
        models.check(moved / ROUNDS.format("r1"))


ODD = {
    "few layers": ({"target_modules": ["q_proj"]}, r"down_proj\.lora_A\.weight"),
    "scaled by the root of the rank": ({"use_rslora": True}, "use_rslora"),
    "magnitudes": ({"use_dora": True}, "use_dora.*magnitude_vector"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
    "drawn from the weights, which it changed": ({"init_lora_weights": "pissa"}, "init_lora_weights.*pissa"),
    "biases": ({"bias": "all"}, "bias"),
    "whole modules": ({"modules_to_save": ["norm"]}, "modules_to_save"),
}


@pytest.mark.parametrize(("changes", "word"), ODD.values(), ids=ODD)
def test_an_adapter_of_another_kind_cannot_be_put_beside_a_new_one(project, monkeypatch, changes, word):
    from peft import LoraConfig, get_peft_model

    r0 = project / ROUNDS.format("r0")
    config = LoraConfig(**{"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes)
    get_peft_model(load(r0)[0], config).save_pretrained(project / "other")
    monkeypatch.setattr("tasks.training.loop.fit", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(ModelRefused, match=rf"(?s)other: .*{word}.*train\.adapter\.merge"):
        adapted(project, "r1", project / "other")


def test_an_adapter_that_is_no_lora_is_not_loaded(project):
    from peft import IA3Config, get_peft_model

    r0 = project / ROUNDS.format("r0")
    get_peft_model(load(r0)[0], IA3Config(task_type="CAUSAL_LM")).save_pretrained(project / "other")
    with pytest.raises(ModelRefused, match="IA3"):
        adapted(project, "r1", project / "other", adapter=Lora(rank=4))


ADAPTED = {
    "dpo": (DPO, {}),
    "selm": (SELM, {"max_tokens": 4}),
    "t_reg": (TReg, {}),
    "kto": (KTO, {}),
    "nft": (NFT, {}),
}


@pytest.mark.parametrize(("strategy", "options"), ADAPTED.values(), ids=ADAPTED)
def test_whatever_trains_can_train_an_adapter_alone(project, strategy, options):
    r0, folder = project / ROUNDS.format("r0"), project / ROUNDS.format("r1")
    labelled = ROWS.with_columns(label=pl.col("id") < "t20", group=pl.lit("g"))
    trainer = strategy(**FAST | {"epochs": 1, "adapter": Lora(rank=4, merge=False)} | options)
    trainer(TrainCase(labelled, PAIRS, r0, None, folder, project / "work", 1))
    assert models.is_adapter(folder)
    assert json.loads((folder / models.ADAPTER).read_text())["r"] == 4
    assert largest_difference(folder, r0) > 1e-5
