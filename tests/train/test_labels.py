"""What learns from right and wrong answers: KTO and NFT, by hand and on the small parent."""

from math import e, exp, log, sqrt

import polars as pl
import pytest
import torch
from pydantic import ValidationError
from runs import DOMAIN, FAST, PROBLEMS, contents, largest_difference, train, turn, values

from tasks.core.errors import ParamsError
from tasks.core.frames import frame
from tasks.core.tables import training
from tasks.train import TrainCase
from tasks.train.kto import KTO
from tasks.train.nft import NFT, with_rates
from tasks.training.negatives import NegativeTrainer, nft_terms
from tasks.training.unpaired import kto_losses
from tasks.training.weights import load

pytestmark = pytest.mark.xdist_group("trl")
ROWS = frame(
    training,
    [
        {"id": f"{n:02}{label}", "prompt": DOMAIN.solve(p), "completion": turn("Answer: 7" if label else "Day 1: 5+5=10"),
         "weight": 1.0, "label": label, "group": str(n), "member": "mine"}
        for n, p in enumerate(PROBLEMS[:20])
        for label in (True, False)
    ],
).collect()  # fmt: skip
QUICK = FAST | {"epochs": 2}


def logprobs(policy, tokenizer, row):
    """Sum of log p over the tokens of a completion, by a plain forward pass."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
    ids = torch.tensor(tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"])
    with torch.no_grad():
        logits = policy(ids[None]).logits[0].log_softmax(-1)
    return logits[:-1].gather(1, ids[1:, None])[len(prompt) - 1 :, 0]


def likelier(start, folder, rows):
    """By how much a training made right answers and wrong ones likelier, in nats a row."""
    (old, tokenizer), new = load(start), load(folder / "model")[0]
    gains = {}
    for row in rows.to_dicts():
        gain = (logprobs(new, tokenizer, row) - logprobs(old, tokenizer, row)).sum().item()
        gains.setdefault(row["label"], []).append(gain)
    return sum(gains[True]) / len(gains[True]), sum(gains[False]) / len(gains[False])


def test_the_terms_of_nft_by_hand():
    ratios = torch.tensor([[0.0, log(2), -log(2), 12.0]], requires_grad=True)
    rate = torch.tensor([0.25])
    right = nft_terms(ratios, torch.tensor([True]), rate, "failures")
    assert right.tolist() == [pytest.approx([0.0, 0.75 * log(2), -0.75 * log(2), 7.5], abs=1e-6)]
    # (1 − R/4) / (3/4): 1, 2/3 → 1, 7/6, far below 0 → 1
    wrong = nft_terms(ratios, torch.tensor([False]), rate, "failures")
    assert wrong.tolist() == [pytest.approx([0.0, 0.0, 0.75 * log(7 / 6), 0.0], abs=1e-6)]
    wrong.sum().backward()
    # d log max_v = (−R/3) / max; nothing beyond the cap
    slopes = [-1 / 3, -2 / 3, -(1 / 6) / (7 / 6), 0.0]
    assert ratios.grad.tolist() == [pytest.approx([0.75 * s for s in slopes], abs=1e-6)]
    root = nft_terms(ratios, torch.tensor([True]), rate, "root")
    assert root[0, 1].item() == pytest.approx(sqrt(3) * log(2), abs=1e-6)


def test_the_rate_of_a_group_is_its_share_of_true_labels_within_bounds():
    rows = pl.DataFrame({"group": [*"aaab", "c"], "label": [True, True, False, True, False]})
    assert with_rates(rows)["rate"].to_list() == pytest.approx([2 / 3] * 3 + [0.98, 0.02])


def test_the_loss_of_nft_begins_with_ratios_of_one_and_is_weighted(parent, tmp_path, in_float32):
    rows = with_rates(ROWS.head(4).with_columns(weight=pl.Series([1.0, 2.0, 0.0, 1.0])))
    policy, tokenizer = load(parent)
    made = NFT(batch=4).row_trainer(policy, tokenizer, rows, tmp_path, 1, NegativeTrainer, ("label", "rate"))
    trainer, _ = made
    trainer.remember()
    [piece], tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, "cpu")
    assert trainer.compute_loss(trainer.model, piece, num_items_in_batch=tokens).item() == pytest.approx(0, abs=1e-6)
    shifted = piece | {"old": piece["old"] - 0.5}  # log R = ½ everywhere: r̂ is ½ in both groups
    lengths = [len(logprobs(policy, tokenizer, row)) for row in rows.to_dicts()]
    wrong = log(max(1.0, (1 - sqrt(e) / 2) / 0.5))
    by_hand = -sum(
        0.5 * weight * length * (0.5 if label else wrong)
        for weight, length, label in zip(rows["weight"], lengths, rows["label"], strict=True)
    ) / sum(lengths)
    assert tokens == sum(lengths)
    assert trainer.compute_loss(trainer.model, shifted, num_items_in_batch=tokens).item() == pytest.approx(
        by_hand, abs=1e-6
    )


def test_the_losses_of_kto_by_hand():
    margins = torch.tensor([log(3), log(3), 0.0], requires_grad=True)  # σ(m) = 3/4
    losses = kto_losses(margins, torch.tensor([True, False, False]), 2.0, 0.5)
    assert losses.tolist() == pytest.approx([2 * 0.25, 0.5 * 0.75, 0.5 * 0.5], abs=1e-6)
    losses.sum().backward()
    assert margins.grad.tolist() == pytest.approx([-2 * 3 / 16, 0.5 * 3 / 16, 0.5 / 4], abs=1e-6)


def test_the_loss_of_kto_is_that_of_the_paper(parent, tmp_path, in_float32):
    policy, tokenizer = load(parent)
    reference = load(parent)[0]
    torch.manual_seed(3)
    for weight in reference.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    weights = {"00True": 1.0, "00False": 2.0, "01True": 0.0, "01False": 0.5}
    rows = ROWS.head(4).with_columns(weight=pl.col("id").replace_strict(weights))
    strategy = KTO(beta=0.7, batch=4, epochs=1, desirable_weight=1.5, undesirable_weight=0.5)
    case = TrainCase(rows, pl.DataFrame(), parent, None, tmp_path / "model", tmp_path, 1)
    ratios = {
        (a["id"], b["id"]): (
            logprobs(policy, tokenizer, a | {"completion": b["completion"]}).sum()
            - logprobs(reference, tokenizer, a | {"completion": b["completion"]}).sum()
        ).item()
        for a in rows.to_dicts()
        for b in rows.to_dicts()
    }
    trainer = strategy.label_trainer(policy, reference, tokenizer, case)
    [piece], _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, "cpu")
    texts = [tuple(i) for i in trainer.train_dataset["prompt_ids"]]
    ids = {
        tuple(tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True)["input_ids"]): r["prompt"]
        for r in rows.to_dicts()
    }
    order = [
        next(r["id"] for r in rows.to_dicts() if r["prompt"] == ids[text] and r["label"] == label)
        for text, label in zip(texts, trainer.train_dataset["label"], strict=True)
    ]
    kl = max(0.0, sum(ratios[a, order[n - 1]] for n, a in enumerate(order)) / 4)
    by_hand = 0.0
    for name in order:
        margin = 0.7 * (ratios[name, name] - kl)
        label = name.endswith("True")
        loss = (1.5 if label else 0.5) * (1 - 1 / (1 + exp(-(margin if label else -margin))))
        by_hand += weights[name] * loss / 4
    assert piece["weight"].tolist() == [weights[name] for name in order]
    assert trainer.compute_loss(trainer.model, piece).item() == pytest.approx(by_hand, abs=1e-6)


def label_trainer(start, folder, rows, **options):
    policy, tokenizer = load(start)
    return KTO(**options).label_trainer(
        policy, None, tokenizer, TrainCase(rows, pl.DataFrame(), start, None, folder / "model", folder, 1)
    )


def test_with_weights_of_one_the_loss_of_kto_is_that_of_trl(parent, tmp_path, in_float32):
    from trl import KTOTrainer

    trainer = label_trainer(parent, tmp_path, ROWS.head(6), batch=6, desirable_weight=1.5, undesirable_weight=0.5)
    [piece], _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, "cpu")
    piece |= {"ref_logps": piece["ref_logps"] - torch.arange(6) / 4, "ref_KL_logps": piece["ref_KL_logps"] - 2}
    ours = trainer.compute_loss(trainer.model, piece).item()
    theirs = KTOTrainer.compute_loss(trainer, trainer.model, trainer.split(piece)[0]).item()
    assert ours == pytest.approx(theirs, abs=1e-6)
    heavy = piece | {"weight": torch.full((6,), 2.0)}
    assert trainer.compute_loss(trainer.model, heavy).item() == pytest.approx(2 * theirs, abs=1e-6)


def test_the_last_row_of_kto_is_never_compared_with_itself(parent, tmp_path):
    trainer = label_trainer(parent, tmp_path, ROWS.head(5), batch=2)
    rows = trainer.train_dataset
    own, other = rows["completion_ids"], rows["KL_completion_ids"]
    assert list(other) == [own[1], own[0], own[3], own[2], own[3]]


@pytest.mark.parametrize("strategy", [KTO(**QUICK, micro_batch=4), NFT(**QUICK, micro_batch=4)], ids=["kto", "nft"])
def test_right_answers_get_likelier_than_wrong_ones(parent, tmp_path, strategy):
    curve = train(strategy, parent, tmp_path, rows=ROWS)
    right, wrong = likelier(parent, tmp_path, ROWS.head(8))
    assert right > 0.2
    assert right > wrong + 0.2
    losses = values(curve, phase=strategy.strategy_name())
    assert len(losses) == -(-2 * len(ROWS) // 8)


@pytest.mark.parametrize("strategy", [KTO(**QUICK), NFT(**QUICK)], ids=["kto", "nft"])
def test_it_goes_on_from_a_checkpoint_to_the_same_bytes(parent, tmp_path, strategy, stopped_halfway):
    calm = train(strategy, parent, tmp_path / "calm", rows=ROWS)
    with stopped_halfway(), pytest.raises(KeyboardInterrupt):
        train(strategy, parent, tmp_path / "stopped", rows=ROWS)
    again = train(strategy, parent, tmp_path / "stopped", rows=ROWS)
    assert contents(tmp_path / "calm/model") == contents(tmp_path / "stopped/model")
    assert calm.equals(again)


@pytest.mark.parametrize(("strategy", "column"), [(KTO(), "label"), (NFT(), "label"), (NFT(), "group")])
def test_a_row_without_what_it_learns_from_is_an_error_that_names_the_source(parent, tmp_path, strategy, column):
    rows = ROWS.with_columns(pl.when(pl.col("id") > "03").then(column).alias(column))
    with pytest.raises(ParamsError, match=rf"(?s)collect\.mine.*{column}"):
        train(strategy, parent, tmp_path, rows=rows)


def test_kto_needs_two_rows_at_once(parent, tmp_path):
    with pytest.raises(ParamsError, match="kto"):
        train(KTO(), parent, tmp_path, rows=ROWS.head(1))
    for sizes in ({"micro_batch": 1}, {"batch": 1}):
        with pytest.raises(ValidationError, match="2 or more"):
            KTO(**sizes)


@pytest.mark.parametrize("strategy", [KTO(**QUICK), NFT(**QUICK)], ids=["kto", "nft"])
def test_a_row_of_weight_zero_teaches_nothing(parent, tmp_path, strategy):
    train(strategy, parent, tmp_path, rows=ROWS.with_columns(weight=pl.lit(0.0)))
    assert largest_difference(tmp_path / "model", parent) < 1e-6
