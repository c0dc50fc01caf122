"""Weights and smoothings of pairs, and references that are soups."""

from math import exp, log

import polars as pl
import pytest
import torch
from runs import FAST, PAIRS, largest_difference, train, values

from tasks.core.errors import ModelRefused
from tasks.train.dpo import DPO
from tasks.training.preferring import conservative, either_turned
from tasks.training.soup import load_soup
from tasks.training.weights import load

pytestmark = pytest.mark.xdist_group("trl")
QUICK = FAST | {"epochs": 3}


def test_the_loss_of_a_pair_by_hand():
    # m = log 3: σ(m) = 3/4, σ(−m) = 1/4
    margins, smoothing = torch.tensor([log(3)] * 3), torch.tensor([0.0, 0.25, 0.5])
    expected = [-log(0.75), -0.75 * log(0.75) - 0.25 * log(0.25), -0.5 * log(0.75) - 0.5 * log(0.25)]
    assert conservative(margins, smoothing).tolist() == pytest.approx(expected, abs=1e-6)
    assert either_turned(torch.tensor([0.0, 0.3, 1.0]), 0.1).tolist() == pytest.approx([0.1, 0.34, 0.9], abs=1e-6)


@pytest.fixture
def other(parent, tmp_path):
    """Another model with the parent's tokenizer."""
    return disturbed(parent, tmp_path / "other", 5)


def disturbed(parent, folder, seed):
    policy, tokenizer = load(parent)
    torch.manual_seed(seed)
    for weight in policy.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def piece_of(parent, other, folder, pairs, **options):
    """A trainer, and the batch of its one step."""
    (policy, tokenizer), reference = load(parent), load(other)[0]
    trainer = DPO(beta=0.7, batch=len(pairs), **options).dpo_trainer(policy, reference, tokenizer, pairs, folder, 1)
    [piece], _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, "cpu")
    return trainer, piece


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("chosen", [0.0, 0.5])
def test_without_weights_it_is_the_loss_of_trl(parent, other, tmp_path, in_float32, smoothing, chosen):
    """TRL knows smoothing in `robust` alone, [(1−ε) s − ε f] / (1−2ε): 2(1−ε) s − (1−2ε) robust = (1−ε) s + ε f."""
    from trl import DPOTrainer

    rows = PAIRS.head(4).with_columns(smoothing=pl.lit(smoothing))
    trainer, piece = piece_of(parent, other, tmp_path, rows, chosen=chosen)
    ours = trainer.compute_loss(trainer.model, piece).item()
    trainer.label_smoothing = smoothing
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    if smoothing:
        trainer.loss_types, trainer.loss_weights = ["sigmoid", "robust"], [2 * (1 - smoothing), -(1 - 2 * smoothing)]
    if chosen:
        trainer.loss_types, trainer.loss_weights = [*trainer.loss_types, "sft"], [*trainer.loss_weights, chosen]
    theirs = DPOTrainer.compute_loss(trainer, trainer.model, trainer.split(piece)[0]).item()
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_each_pair_has_its_weight_and_its_smoothing(parent, other, tmp_path, in_float32):
    weights, smoothings = [1.0, 2.0, 0.0, 0.5], [0.0, 0.1, 0.2, 0.4]
    rows = PAIRS.head(4).with_columns(weight=pl.Series(weights), smoothing=pl.Series(smoothings))
    trainer, piece = piece_of(parent, other, tmp_path, rows, smoothing=0.1, chosen=0.5)
    with torch.no_grad():
        batch = {n: piece[n] for n in ("input_ids", "attention_mask")}
        labels = piece["input_ids"].masked_fill(piece["completion_mask"] == 0, -100)
        logprobs = trainer.model(**batch, labels=labels, fused_lm_head=True).log_probs
    good, bad = (half.sum(1).tolist() for half in logprobs.chunk(2))
    by_hand = 0.0
    for n, (weight, own) in enumerate(zip(piece["weight"].tolist(), piece["smoothing"].tolist(), strict=True)):
        margin = 0.7 * (good[n] - piece["ref_chosen_logps"][n] - bad[n] + piece["ref_rejected_logps"][n]).item()
        eps = own * 0.9 + (1 - own) * 0.1
        right, wrong = (-log(1 / (1 + exp(-m))) for m in (margin, -margin))
        by_hand += weight * ((1 - eps) * right + eps * wrong) / 4
        by_hand -= 0.5 * weight * good[n] / int(piece["completion_mask"][:4, 1:].sum())
    assert sorted(piece["weight"].tolist()) == sorted(weights)
    assert trainer.compute_loss(trainer.model, piece).item() == pytest.approx(by_hand, abs=1e-5)


def test_a_step_is_the_mean_over_its_pairs_in_pieces_of_any_size(parent, tmp_path, in_float32):
    rows = PAIRS.head(11).with_columns(weight=pl.int_range(11) % 3 + 0.0, smoothing=(pl.int_range(11) % 5) / 10)
    curves = []
    for name, pieces in {"whole": None, "pieces": 2}.items():
        strategy = DPO(**QUICK | {"muon_lr": 1e-4, "adamw_lr": 1e-4}, chosen=1.0, micro_batch=pieces)
        curves.append(values(train(strategy, parent, tmp_path / name, pairs=rows), phase="dpo"))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert largest_difference(tmp_path / "whole/model", tmp_path / "pieces/model") < 1e-5


def test_dpo_alone_prefers_the_chosen_and_learns_nothing_from_pairs_of_weight_zero(parent, tmp_path):
    curve = train(DPO(**QUICK), parent, tmp_path / "a")
    assert set(curve["phase"]) == {"dpo"}
    margins = values(curve, "rewards/margins", "dpo")
    assert margins[-1] > margins[0] + 0.1
    train(DPO(**QUICK), parent, tmp_path / "b", pairs=PAIRS.with_columns(weight=pl.lit(0.0)))
    assert largest_difference(tmp_path / "b/model", parent) < 1e-6


def test_a_reference_may_be_the_average_of_several(parent, other, tmp_path):
    third = disturbed(parent, tmp_path / "third", 6)
    soup = load_soup({other: 0.5, third: 0.3, parent: 0.2})[0].state_dict()
    parts = [load(folder)[0].state_dict() for folder in (other, third, parent)]
    for name, weight in soup.items():
        average = 0.5 * parts[0][name] + 0.3 * parts[1][name] + 0.2 * parts[2][name]
        assert torch.allclose(weight, average, atol=1e-6)
    losses = values(train(DPO(**QUICK), parent, tmp_path / "a", reference={parent: 0.5, other: 0.5}), phase="dpo")
    assert abs(losses[0] - log(2)) > 1e-3
    same = values(train(DPO(**QUICK), parent, tmp_path / "b", reference={parent: 1.0}), phase="dpo")
    assert same[0] == pytest.approx(log(2), abs=1e-4)


def test_models_of_other_shapes_or_words_are_not_averaged(parent, tmp_path, tiny_model):
    with pytest.raises(ModelRefused, match="vocabulary"):
        load_soup({parent: 0.5, tiny_model: 0.5})
    with pytest.raises(ModelRefused, match="vocabulary"):
        train(DPO(**QUICK, reference="base"), parent, tmp_path, reference=tiny_model)
    assert not (tmp_path / "model").exists()
