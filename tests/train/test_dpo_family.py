"""What extends DPO, SELM and T-REG: their terms by hand, through the functions that the trainers use, and runs on the parent."""

from math import exp, log

import polars as pl
import pytest
import torch
from runs import FAST, PAIRS, contents, train, values

from tasks.train.dpo import DPO
from tasks.train.selm import SELM
from tasks.train.t_reg import TReg
from tasks.training.crediting import instructed, t_reg_losses, token_rewards
from tasks.training.exploring import selm_losses
from tasks.training.weights import load

pytestmark = pytest.mark.xdist_group("trl")
QUICK = FAST | {"epochs": 3}


def trainer_of(strategy, start, folder, reference=None, pairs=None):
    policy, tokenizer = load(start)
    trainer = strategy.dpo_trainer(policy, reference, tokenizer, PAIRS.head(4) if pairs is None else pairs, folder, 1)
    strategy.prepare(trainer)
    [piece], _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, "cpu")
    return trainer, piece


def disturbed(start):
    """Another model with the start's tokenizer."""
    policy, _ = load(start)
    torch.manual_seed(5)
    for weight in policy.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return policy


def plain_logprobs(policy, context, completion):
    """log p of each token of a completion, by a plain forward pass."""
    ids = torch.tensor(context + completion)
    with torch.no_grad():
        rows = policy(ids[None]).logits[0].log_softmax(-1)
    return rows[:-1].gather(1, ids[1:, None])[len(context) - 1 :, 0]


def test_the_exploration_term_by_hand():
    losses = selm_losses(torch.tensor([0.5, 1.0]), torch.tensor([2.0, -4.0]), alpha=0.1, beta=0.5)
    assert losses.tolist() == pytest.approx([0.6, 0.8], abs=1e-6)


def test_the_loss_of_selm_is_dpos_and_the_references_greedy_answer(parent, tmp_path, in_float32):
    reference = disturbed(parent)
    strategy = SELM(alpha=0.5, beta=0.7, batch=4, max_tokens=12)
    trainer, piece = trainer_of(strategy, parent, tmp_path / "a", reference)
    plain, same = trainer_of(DPO(beta=0.7, batch=4), parent, tmp_path / "b", reference)
    policy = load(parent)[0]
    by_hand = plain.compute_loss(plain.model, same).item()
    for prompt, both in zip(trainer.train_dataset["prompt_ids"], trainer.train_dataset["answer"], strict=True):
        answer = both[len(prompt) :]
        assert 1 <= len(answer) <= 12
        with torch.no_grad():
            likeliest = [
                reference(torch.tensor([both[: len(prompt) + n]])).logits[0, -1].argmax().item()
                for n in range(len(answer))
            ]
        assert answer == likeliest
        ratio = plain_logprobs(policy, prompt, answer).sum() - plain_logprobs(reference, prompt, answer).sum()
        by_hand += 0.5 * 0.7 * ratio.item() / 4
    assert trainer.compute_loss(trainer.model, piece).item() == pytest.approx(by_hand, abs=1e-5)


def test_the_token_rewards_and_the_regularization_by_hand():
    rewards = token_rewards(torch.log(torch.tensor([0.6, 0.2, 0.5])), torch.log(torch.tensor([0.2, 0.6, 0.5])))
    assert rewards.tolist() == pytest.approx([0.25, -0.25, 0.0], abs=1e-6)  # 3/4, 1/4, 1/2, each less a half
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True)  # chosen, rejected
    credit = torch.tensor([[0.25, -0.25], [0.1, 0.0]])
    margins = torch.tensor([log(3)])  # σ(−m) = 1/4
    losses = t_reg_losses(logprobs, credit, margins, beta=0.5)
    assert losses.tolist() == pytest.approx([0.25 * 0.5 * (0.25 * 1 - 0.25 * 2 + 0.1 * 3)], abs=1e-6)
    losses.sum().backward()
    assert torch.allclose(logprobs.grad, torch.tensor([[-0.03125, 0.03125], [-0.0125, 0.0]]), atol=1e-6)


def test_the_loss_of_t_reg_by_hand(parent, tmp_path, in_float32):
    reference = disturbed(parent)
    strategy = TReg(alpha=0.5, beta=0.7, batch=4)
    trainer, piece = trainer_of(strategy, parent, tmp_path / "a", reference)
    plain, same = trainer_of(DPO(beta=0.7, batch=4), parent, tmp_path / "b", reference)
    policy, tokenizer = load(parent)
    by_hand = plain.compute_loss(plain.model, same).item()
    for row in trainer.train_dataset:
        sums, terms = {}, 0.0
        contexts = [
            tokenizer.apply_chat_template(instructed(row["prompt"], text), add_generation_prompt=True)["input_ids"]
            for text in (strategy.better, strategy.worse)
        ]
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            good, bad = (plain_logprobs(reference, context, ids) for context in contexts)
            credit = 1 / (1 + torch.exp(bad - good)) - 0.5
            ours = plain_logprobs(policy, row["prompt_ids"], ids)
            terms -= 0.7 * (credit * ours).sum().item()
            sums[side] = 0.7 * (ours.sum() - plain_logprobs(reference, row["prompt_ids"], ids).sum()).item()
        by_hand += 0.5 * terms / (1 + exp(sums["chosen"] - sums["rejected"])) / 4
    assert trainer.compute_loss(trainer.model, piece).item() == pytest.approx(by_hand, abs=1e-5)


FAMILY = {"selm": SELM(**QUICK, alpha=0.01, max_tokens=8), "t_reg": TReg(**QUICK)}


@pytest.mark.parametrize("strategy", FAMILY.values(), ids=FAMILY)
def test_the_margin_rises_and_an_interrupted_run_ends_in_the_same_bytes(parent, tmp_path, strategy, stopped_halfway):
    calm = train(strategy, parent, tmp_path / "calm")
    margins = values(calm, "rewards/margins", "dpo")
    assert margins[-1] > margins[0] + 0.1
    with stopped_halfway(), pytest.raises(KeyboardInterrupt):
        train(strategy, parent, tmp_path / "stopped")
    assert calm.equals(train(strategy, parent, tmp_path / "stopped"))
    assert contents(tmp_path / "calm/model") == contents(tmp_path / "stopped/model")


def test_in_pieces_the_step_is_the_same(parent, tmp_path, in_float32):
    gentle = QUICK | {"epochs": 1, "muon_lr": 1e-4, "adamw_lr": 1e-4}
    pairs = PAIRS.head(8).with_columns(weight=pl.int_range(8) % 3 + 0.0)
    for kind in (SELM, TReg):
        whole, pieces = (
            values(
                train(kind(**gentle, micro_batch=n), parent, tmp_path / f"{kind.__name__}{n}", pairs=pairs), phase="dpo"
            )
            for n in (None, 2)
        )
        assert pieces == pytest.approx(whole, abs=1e-5)
