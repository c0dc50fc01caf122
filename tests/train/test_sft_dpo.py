"""DPO after SFT: pairs are preferred, the loss is the one of the papers, the reference is the one that is named."""

import os
import shutil
from math import exp, log

import pytest
import torch
from runs import FAST, PAIRS, ROWS, largest_difference, train, values

from tasks.core.errors import ModelRefused
from tasks.train import Lora
from tasks.train.sft_dpo import SFTThenDPO
from tasks.training.weights import load

QUICK = FAST | {"epochs": 1, "dpo_batch": 8}


def test_dpo_prefers_the_chosen(parent, tmp_path):
    strategy = SFTThenDPO(**QUICK, dpo_epochs=3, dpo_muon_lr=0.02, dpo_adamw_lr=0.01)
    curve = train(strategy, parent, tmp_path)
    assert set(curve["phase"]) == {"sft", "dpo"}
    margins = values(curve, "rewards/margins", "dpo")
    assert margins[-1] > margins[0]


def test_either_step_is_left_out_without_rows_for_it(parent, tmp_path):
    strategy = SFTThenDPO(**QUICK)
    assert set(train(strategy, parent, tmp_path / "a", rows=ROWS.clear())["phase"]) == {"dpo"}
    assert set(train(strategy, parent, tmp_path / "b", pairs=PAIRS.clear())["phase"]) == {"sft"}


def logprobs(policy, tokenizer, pair, key):
    """log p of each token of a completion, by a plain forward pass."""
    prompt = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True)["input_ids"]
    ids = torch.tensor(tokenizer.apply_chat_template(pair["prompt"] + pair[key])["input_ids"])
    with torch.no_grad():
        rows = policy(ids[None]).logits[0].log_softmax(-1)
    return rows[:-1].gather(1, ids[1:, None])[len(prompt) - 1 :, 0]


@pytest.fixture
def other(parent, tmp_path):
    """Another model with the parent's tokenizer."""
    policy, tokenizer = load(parent)
    torch.manual_seed(5)
    for weight in policy.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    policy.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("chosen", [0.0, 0.5])
def test_the_loss_is_that_of_conservative_dpo(parent, other, tmp_path, in_float32, smoothing, chosen):
    strategy = SFTThenDPO(smoothing=smoothing, chosen=chosen, beta=0.7, dpo_batch=4)
    (policy, tokenizer), reference = load(parent), load(other)[0]
    pairs = PAIRS.head(4)
    shares, terms = [], []
    for pair in pairs.to_dicts():
        good, bad = (logprobs(policy, tokenizer, pair, key) for key in ("chosen", "rejected"))
        ref_good, ref_bad = (logprobs(reference, tokenizer, pair, key) for key in ("chosen", "rejected"))
        margin = 0.7 * ((good.sum() - ref_good.sum()) - (bad.sum() - ref_bad.sum())).item()
        right, wrong = (-log(1 / (1 + exp(-m))) for m in (margin, -margin))  # -log sigma
        terms.append((1 - smoothing) * right + smoothing * wrong)
        shares += good.tolist()
    by_hand = sum(terms) / len(terms) - chosen * sum(shares) / len(shares)
    trainer = strategy.dpo_trainer(policy, reference, tokenizer, pairs, tmp_path / "work", 1)
    [piece], _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, "cpu")
    assert trainer.compute_loss(trainer.model, piece).item() == pytest.approx(by_hand, abs=1e-5)


def test_smoothing_is_seen_in_what_is_learnt(parent, tmp_path):
    final = []
    for smoothing in (0.0, 0.4):
        strategy = SFTThenDPO(**QUICK, chosen=0, smoothing=smoothing, dpo_epochs=3, dpo_muon_lr=0.02, dpo_adamw_lr=0.01)
        final.append(values(train(strategy, parent, tmp_path / f"{smoothing}"), "rewards/margins", "dpo")[-1])
    assert final[1] < 0.9 * final[0]


def test_the_reference_start_is_the_policy_after_sft(parent, tmp_path):
    # no step has been made in the first one, so policy and reference are equal: the margin is 0, the loss log 2
    losses = values(train(SFTThenDPO(**QUICK, chosen=0), parent, tmp_path), phase="dpo")
    assert losses[0] == pytest.approx(log(2), abs=1e-5)


@pytest.mark.parametrize("adapter", [None, Lora(rank=4), Lora(rank=4, merge=False)], ids=["all", "merged", "alone"])
def test_another_reference_is_the_one_of_the_loss(parent, tmp_path, adapter):
    strategy = SFTThenDPO(**QUICK, chosen=0, reference="parent", adapter=adapter)
    losses = values(train(strategy, parent, tmp_path, reference=parent), phase="dpo")
    assert abs(losses[0] - log(2)) > 1e-3  # SFT has moved the policy away from it
    # without SFT the policy is the parent
    calm = values(train(strategy, parent, tmp_path / "calm", rows=ROWS.clear(), reference=parent), phase="dpo")
    assert calm[0] == pytest.approx(log(2), abs=1e-4)


def test_the_variables_of_the_process_stay_while_a_trainer_is_made(parent, tmp_path, monkeypatch):
    """Threads of libraries read them, and the C library frees what they read."""
    changed = []
    monkeypatch.setattr(os, "unsetenv", changed.append)
    train(SFTThenDPO(**QUICK, chosen=0), parent, tmp_path)
    assert set(changed) <= {b"PYTORCH_NVML_BASED_CUDA_CHECK"}, "which accelerate sets for a moment, to look for GPUs"


def test_a_reference_with_other_tokens_is_refused(parent, tmp_path, tiny_model):
    with pytest.raises(ModelRefused, match="vocabulary"):
        train(SFTThenDPO(**QUICK, reference="base"), parent, tmp_path, reference=tiny_model)
    assert not (tmp_path / "model").exists()


def test_the_loss_of_a_step_is_that_of_all_its_pairs(parent, tmp_path, in_float32):
    # completions of several lengths, and a last step with fewer pairs: the mean of the pieces' means is another loss
    long = [row | {"chosen": [{"role": "assistant", "content": f"Day 1: {'5+5=10 ' * n}\nAnswer: 7"}]}
            for n, row in enumerate(PAIRS.head(11).to_dicts())]  # fmt: skip
    pairs = PAIRS.clear().vstack(type(PAIRS)(long, schema=PAIRS.schema))
    curves = []
    for name, saving in {"whole": {}, "pieces": {"micro_batch": 2, "gradient_checkpointing": True}}.items():
        strategy = SFTThenDPO(**QUICK, dpo_epochs=2, dpo_muon_lr=1e-4, dpo_adamw_lr=1e-4, **saving)
        curve = train(strategy, parent, tmp_path / name, rows=ROWS.clear(), pairs=pairs)
        curves.append(values(curve, phase="dpo"))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert largest_difference(tmp_path / "whole/model", tmp_path / "pieces/model") < 1e-5


def test_a_copy_of_the_start_may_be_the_reference(parent, tmp_path):
    copy = shutil.copytree(parent, tmp_path / "copy")
    strategy = SFTThenDPO(**QUICK, reference="base")
    train(strategy, parent, tmp_path / "one", rows=ROWS.clear(), reference=copy)
    train(SFTThenDPO(**QUICK), parent, tmp_path / "two", rows=ROWS.clear())
    assert largest_difference(tmp_path / "one/model", tmp_path / "two/model") < 1e-5


@pytest.mark.parametrize("adapter", [None, Lora(rank=4)], ids=["all weights", "adapter"])
def test_both_steps_compute_in_bfloat16(parent, tmp_path, adapter):
    """accelerate wraps a model once for mixed precision: of the second trainer nothing may be left out of it."""
    seen = []

    class Watched(SFTThenDPO):
        def load(self, case):
            policy, tokenizer = super().load(case)
            layer = next(m for n, m in policy.named_modules() if n.endswith("down_proj"))
            layer.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
            return policy, tokenizer

    curve = train(Watched(**QUICK, adapter=adapter), parent, tmp_path)
    assert set(curve["phase"]) == {"sft", "dpo"}
    assert set(seen) == {torch.bfloat16}
