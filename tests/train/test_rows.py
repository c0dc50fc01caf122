"""Weights, masks and tags of rows in SFT: what the loss is, and what it leaves out to the last bit."""

import polars as pl
import pytest
import torch
from runs import DOMAIN, FAST, PROBLEMS, ROWS, train, turn, values

from tasks.core.errors import ModelRefused
from tasks.core.frames import frame
from tasks.core.tables import training
from tasks.train.sft import SFT
from tasks.training.masking import masked_labels
from tasks.training.weights import load

pytestmark = pytest.mark.xdist_group("trl")
TEXT = "Day 1: 5+5=10\nAnswer: 7"


def rows(*changes):
    """Rows of one text each, with these changes."""
    plain = {"completion": turn(TEXT), "weight": 1.0}
    made = [
        plain | {"id": f"t{n}", "prompt": DOMAIN.solve(problem)} | change
        for n, (problem, change) in enumerate(zip(PROBLEMS, changes, strict=False))
    ]
    return frame(training, made).collect()


class Step:
    """One step of a trainer: its loss, the gradient of the last hidden states, the batch."""

    def __init__(self, start, folder, table, **options):
        policy, tokenizer = load(start)
        self.trainer, _ = SFT(batch=8, **options).row_trainer(policy, tokenizer, table, folder, 1)
        [self.batch], self.tokens = self.trainer.get_batch_samples(iter(self.trainer.get_train_dataloader()), 1, "cpu")
        policy.model.register_forward_hook(lambda *call: self.keep(call[-1].last_hidden_state))
        self.loss = self.trainer.compute_loss(policy, self.batch, num_items_in_batch=self.tokens)
        self.loss.backward()
        self.gradients = self.hidden.grad

    def keep(self, hidden):
        self.hidden = hidden
        hidden.retain_grad()


def surprises(start, table):
    """−log p of each completion token of each row, by a plain forward pass."""
    policy, tokenizer = load(start)
    found = []
    for row in table.to_dicts():
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        ids = torch.tensor(tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"])
        with torch.no_grad():
            logprobs = policy(ids[None]).logits[0].log_softmax(-1)
        found.append(-logprobs[:-1].gather(1, ids[1:, None])[len(prompt) - 1 :, 0])
    return found


def test_the_loss_is_the_weighted_sum_over_the_unweighted_tokens(parent, tmp_path, in_float32):
    table = rows({}, {"weight": 2.0}, {"weight": 0.0})
    one, two, three = surprises(parent, table)
    by_hand = (one.sum() + 2 * two.sum()) / (len(one) + len(two) + len(three))
    step = Step(parent, tmp_path, table)
    assert step.tokens == len(one) + len(two) + len(three)
    assert step.loss.item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_with_weights_of_one_it_is_the_loss_of_trl(parent, tmp_path):
    from trl import SFTTrainer

    step = Step(parent, tmp_path, rows({}, {}, {}))
    batch, _ = step.trainer.split(step.batch)
    theirs = SFTTrainer.compute_loss(step.trainer, step.trainer.model, batch, num_items_in_batch=step.tokens)
    assert step.loss.item() == theirs.item()


def test_a_row_of_weight_zero_has_no_gradient_and_one_of_weight_two_has_twice_as_much(parent, tmp_path, in_float32):
    gradients = Step(parent, tmp_path / "a", rows({}, {"weight": 0.0}, {"weight": 2.0})).gradients
    plain = Step(parent, tmp_path / "b", rows({}, {}, {})).gradients
    sizes = sorted((g.abs().sum() / p.abs().sum()).item() for g, p in zip(gradients, plain, strict=True))
    assert sizes[0] == 0.0
    assert sizes[1:] == pytest.approx([1.0, 2.0], abs=1e-5)


def test_masked_tokens_have_no_gradient_at_all(parent, tmp_path):
    start = TEXT.index("5+5")
    table = rows({"mask": [{"start": start, "end": start + len("5+5=1")}]})
    step, plain = Step(parent, tmp_path / "a", table), Step(parent, tmp_path / "b", rows({}))
    tokenizer = step.trainer.processing_class
    ids, labels = step.batch["input_ids"][0], step.batch["labels"][0]
    hidden = (labels == -100) & (plain.batch["labels"][0] != -100)
    # "10" is a token of its own that the span ends in: what a mask touches in part is masked
    assert tokenizer.decode(ids[hidden]).replace(" ", "") in ("5+5=10", "5+5=1")
    before = torch.roll(hidden, -1)  # the states that predict them
    assert not step.gradients[0][before].any()
    kept = torch.roll(labels != -100, -1)
    assert step.gradients[0][kept].any(1).all()
    assert step.tokens == plain.tokens - hidden.sum()


def test_a_tag_is_in_the_text_that_is_trained_on_and_moves_the_mask(parent, tmp_path):
    span = {"start": 0, "end": len("Day 1: 5+5=10")}
    step = Step(parent, tmp_path, rows({"tag": "[RIGHT]", "mask": [span]}))
    ids, labels = step.batch["input_ids"][0], step.batch["labels"][0]
    decode = step.trainer.processing_class.decode
    assert f"[RIGHT] {TEXT}" in decode(ids)
    trained = decode(labels[labels != -100])
    assert "[RIGHT]" in trained
    assert "Answer: 7" in trained
    assert "5+5" not in trained


class Stripping:
    """A tokenizer of characters whose template strips, or rewrites, what the assistant said."""

    name_or_path = "stripping"

    def __init__(self, rewrite=str.strip):
        self.rewrite = rewrite

    def apply_chat_template(self, chat, tokenize, add_generation_prompt=False):
        turns = [f"<{m['role']}>{self.rewrite(m['content'])}" for m in chat]
        return "".join([*turns, "<assistant>" * add_generation_prompt])

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) for c in text], "offset_mapping": [(n, n + 1) for n in range(len(text))]}


def labels(tokenizer, text, **spans):
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": turn(text), "tag": None, "mask": [spans]}
    ids = [ord(c) for c in tokenizer.apply_chat_template(row["prompt"] + row["completion"], False)]
    return "".join(
        "." if n < 0 else chr(n) for n in masked_labels(row | {"input_ids": ids, "labels": ids}, tokenizer)["labels"]
    )


def test_the_mask_is_found_where_the_template_strips_and_refused_where_it_rewrites():
    assert labels(Stripping(), "  a wrong step", start=4, end=9) == "<user>a<assistant>a ..... step"
    with pytest.raises(ModelRefused, match="mask"):
        labels(Stripping(str.upper), "wrong", start=0, end=2)


def test_a_run_with_all_of_it_learns(parent, tmp_path):
    table = ROWS.with_columns(
        weight=pl.when(pl.col("id") < "t20").then(2.0).otherwise(0.5),
        tag=pl.when(pl.col("id") < "t10").then(pl.lit("[X]")),
        mask=pl.when(pl.col("id") > "t10").then(pl.lit([{"start": 0, "end": 6}], dtype=ROWS.schema["mask"])),
    )
    losses = values(train(SFT(**FAST | {"epochs": 6}, micro_batch=4), parent, tmp_path, rows=table))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_nobody_is_told_of_a_training(parent, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *what, **more: told.append(what))
    Step(parent, tmp_path, rows({}))
    assert not told


def test_replayed_rows_are_spaced(parent, tmp_path):
    strategy = SFT(**FAST, replay_interval=2)
    table = ROWS.with_columns(source=pl.when(pl.col("id") < "t16").then(pl.lit("replay")))
    order = strategy.row_order(table, [1] * len(ROWS), strategy.schedule_of(len(ROWS), strategy.steps, 1))
    old = ["".join("o" if n < 16 else "n" for n in order[k : k + 8]) for k in range(0, 9 * 8, 8)]
    assert old == ["n" * 8, "n" * 8, "o" * 8] * 3
    losses = values(train(strategy, parent, tmp_path, rows=table))
    assert losses[-1] < 0.5 * losses[0]
