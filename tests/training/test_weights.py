"""Weights on disk: their precision, averages, and no broken ones."""

import shutil
from math import nan

import pytest
import torch
from safetensors import safe_open

from tasks.core.errors import Diverged
from tasks.training.lora import Lora
from tasks.training.weights import blend_with, load, save, stored_dtype

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def stored(folder, dtype):
    """A copy of a model in another precision."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.save_pretrained(folder.parent / str(dtype))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder.parent / str(dtype))
    return folder.parent / str(dtype)


def precisions(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118


@pytest.mark.parametrize("adapter", [None, Lora(rank=2)], ids=["all weights", "merged adapter"])
@pytest.mark.parametrize("dtype", NAMES)
def test_a_model_is_trained_in_float32_and_saved_as_its_start_was(tiny_model, tmp_path, dtype, adapter):
    start = stored(shutil.copytree(tiny_model, tmp_path / "models" / "tiny"), dtype)
    assert stored_dtype(start) == dtype
    policy, tokenizer = load(start, adapter)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    save(policy, tokenizer, start, tmp_path / "model", 0.5, adapter)
    assert precisions(tmp_path / "model") == {NAMES[dtype]}
    again, old = (load(folder)[0].state_dict() for folder in (tmp_path / "model", start))
    assert all(torch.equal(again[name], weight) for name, weight in old.items())


def test_the_average_is_made_where_the_trained_weights_are():
    trained, old = torch.nn.Linear(2, 2, device="meta"), torch.nn.Linear(2, 2).state_dict()
    blend_with(trained, old, 0.5)  # a mix of devices is refused
    assert trained.weight.device.type == "meta"
    trained = torch.nn.Linear(2, 1, bias=False)
    trained.weight.data = torch.tensor([[1.0, 3.0]])
    blend_with(trained, {"weight": torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)}, 0.25)
    assert trained.weight.tolist() == [[0.25, 1.5]]


def test_weights_that_the_last_step_broke_are_not_saved(tiny_model, tmp_path):
    policy, tokenizer = load(tiny_model)
    policy.lm_head.weight.data[3, 4] = nan
    with pytest.raises(Diverged, match=r"embed_tokens.*learning rate"):
        save(policy, tokenizer, tiny_model, tmp_path / "model", blend=0.5)
    assert not (tmp_path / "model").exists()
