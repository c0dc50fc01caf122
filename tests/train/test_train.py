"""What the stage gives a trainer, with a trainer that only records it."""

from typing import Any, ClassVar

import polars as pl
import pytest
from pydantic import PrivateAttr, ValidationError

from tasks import train as stage
from tasks.core import tables
from tasks.core.errors import ParamsError
from tasks.core.frames import frame
from tasks.core.roster import Models, Source
from tasks.engines.fake import Fake
from tasks.train import CURVE, Training
from tasks.train.combine import Combine
from tasks.train.dpo import DPO
from tasks.train.kto import KTO
from tasks.train.mistakes import MistakeTuning
from tasks.train.nft import NFT
from tasks.train.selm import SELM
from tasks.train.sema import SEMA
from tasks.train.sft import SFT
from tasks.train.sft_dpo import SFTThenDPO
from tasks.train.t_reg import TReg
from tasks.where.here import Here

QUESTION = [{"role": "user", "content": "2+2?"}]


def turn(text):
    return [{"role": "assistant", "content": text}]


class Recorder(Training):
    _cases: list[Any] = PrivateAttr(default_factory=list)

    def __call__(self, case):
        self._cases.append(case)
        (case.model / "weights").write_text("trained")
        steps = {"step": [1, 2, 1], "phase": ["sft", "sft", "dpo"], "name": ["loss"] * 3, "value": [2.0, 1.0, 0.5]}
        return pl.DataFrame(steps, schema=CURVE)


class PairRecorder(Recorder):
    learns_from_preferences: ClassVar[bool] = True
    has_reference: ClassVar[bool] = True


ROW = {"id": "t1", "member": "answers", "prompt_id": "p1", "response_id": "r1", "model": "m1", "source": "responses",
       "prompt": QUESTION, "completion": turn("4"), "weight": 1.0, "label": True, "group": "p1", "tokens": 9}  # fmt: skip
PAIR = {"id": "d1", "member": "pairs", "prompt_id": "p1", "chosen_id": "r0", "rejected_id": "r1", "source": "responses",
        "prompt": QUESTION, "chosen": turn("4"), "rejected": turn("5"), "weight": 1.0, "smoothing": 0.0, "tokens": 9}  # fmt: skip
LONG = {"error": "long: 600 tokens, max_length is 512"}


@pytest.fixture
def run(tmp_path):
    def call(strategy, training=(), preferences=(), options=None):
        sources = {}
        for name in ("parent", "base", "anchor"):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "weights").write_text(name)
            sources[name] = Source(Fake(), lambda folder=folder: folder)
        (tmp_path / "model").mkdir(exist_ok=True)
        rows = {"training": frame(tables.training, training), "preferences": frame(tables.preferences, preferences)}
        place = {"model": tmp_path / "model", "work": tmp_path / "work"}
        return stage.train(
            strategy, options or stage.TrainOptions(), **rows, models=Models(sources), **place, seed=3, where=Here()
        )

    return call


def test_a_trainer_gets_the_rows_without_an_error(run, tmp_path):
    strategy = PairRecorder()
    more = [ROW | {"id": "t2"} | LONG, ROW | {"id": "t0", "reward": 0.5}]
    result = run(strategy, [ROW, *more], [PAIR, PAIR | {"id": "d0"} | LONG])
    [case] = strategy._cases
    assert case.training["id"].to_list() == ["t0", "t1"]
    assert case.preferences["id"].to_list() == ["d1"]
    assert (case.start, case.reference) == (tmp_path / "parent", None)
    assert (case.model, case.work, case.seed) == (tmp_path / "model", tmp_path / "work", 3)
    assert result.metrics == {"trained": 1.0, "sft_loss": 1.0, "dpo_loss": 0.5}
    assert result.plots["train"].rows() == [("sft", 1, 2.0), ("sft", 2, 1.0), ("dpo", 1, 0.5)]
    assert not result.warnings


@pytest.mark.parametrize("start", ["parent", "base", "anchor"])
@pytest.mark.parametrize("rows", [{}, {"training": [ROW | LONG]}, {"preferences": [PAIR]}])
def test_a_round_without_rows_takes_the_weights_that_it_starts_from(run, tmp_path, start, rows):
    strategy = Recorder(start=start)
    result = run(strategy, **rows)
    assert result.metrics == {"trained": 0.0}
    assert (tmp_path / "model/weights").read_text() == start
    assert strategy._cases == []
    assert result.plots["train"].columns == ["phase", "step", "loss"]
    assert len(result.warnings) == 1


def test_pairs_alone_are_enough_for_who_learns_from_them(run):
    strategy = PairRecorder()
    assert run(strategy, preferences=[PAIR]).metrics["trained"] == 1.0
    assert strategy._cases[0].preferences["id"].to_list() == ["d1"]


@pytest.mark.parametrize(
    ("start", "reference", "opened"),
    [
        ("parent", "start", {"parent"}),
        ("base", "start", {"base"}),
        ("base", "base", {"base"}),
        ("anchor", "parent", {"anchor", "parent"}),
    ],
)
def test_start_and_reference_are_folders_of_models(run, tmp_path, start, reference, opened):
    strategy = PairRecorder(start=start, reference=reference)
    assert strategy.opened_models() == opened
    run(strategy, [ROW])
    [case] = strategy._cases
    assert case.start == tmp_path / start
    assert case.reference == (None if reference == "start" else {tmp_path / reference: 1.0})


def test_a_reference_may_be_several_models_with_shares_that_sum_to_one(run, tmp_path):
    strategy = PairRecorder(reference={"parent": 0.5, "base": 0.25, "anchor": 0.25})
    assert strategy.opened_models() == {"parent", "base", "anchor"}
    run(strategy, [ROW])
    assert strategy._cases[0].reference == {
        tmp_path / "parent": 0.5,
        tmp_path / "base": 0.25,
        tmp_path / "anchor": 0.25,
    }
    for shares in ({"parent": 0.5, "base": 0.4}, {"parent": 1.5, "base": -0.5}, {}, {"start": 1.0}):
        with pytest.raises(ValidationError, match="reference"):
            PairRecorder(reference=shares)


def test_two_names_of_one_folder_are_one_model(tmp_path):
    sources = {name: Source(Fake(), lambda: tmp_path) for name in ("parent", "base")}
    shares = stage._reference_folders(PairRecorder(reference={"parent": 0.5, "base": 0.5}), Models(sources))
    assert shares == {tmp_path: 1.0}


def test_rows_of_training_are_no_matter_to_who_does_not_learn_from_them(run):
    class PairsAlone(PairRecorder):
        learns_from_training: ClassVar[bool] = False

    strategy = PairsAlone()
    assert run(strategy, [ROW | {"label": False}]).metrics == {"trained": 0.0}
    assert run(strategy, [ROW | {"label": False}], [PAIR]).metrics["trained"] == 1.0
    assert strategy._cases[0].training.is_empty()
    assert not DPO.learns_from_training


def test_a_reference_without_a_loss_that_has_one_is_refused():
    assert SFTThenDPO(reference="base").reference == "base"
    with pytest.raises(ValidationError, match="reference"):
        SFT(reference="base")
    with pytest.raises(ValidationError):
        SFT(start="grandparent")


SPECIAL = {
    "training": {"weight": 0.5, "label": False, "tag": "good", "mask": [{"start": 0, "end": 2}]},
    "preferences": {"weight": 0.0, "smoothing": 0.1},
}


@pytest.mark.parametrize(("table", "column"), [(t, c) for t, columns in SPECIAL.items() for c in columns])
def test_a_column_that_the_trainer_ignores_is_refused(run, table, column):
    rows = {"training": [ROW, ROW | {"id": "t2"}], "preferences": [PAIR, PAIR | {"id": "d2"}]}
    rows[table][1] |= {column: SPECIAL[table][column], "member": "mine"}

    class Using(PairRecorder):
        used_columns: ClassVar[frozenset[str]] = frozenset({f"{table}.{column}"})

    assert run(Using(), **rows).metrics["trained"] == 1.0
    with pytest.raises(ParamsError, match=rf"(?s)collect\.mine.*\b{column}\b"):
        run(PairRecorder(), **rows)
    rows[table][1] |= LONG
    assert run(PairRecorder(), **rows).metrics["trained"] == 1.0


def test_what_each_strategy_honours():
    rows = {"training.weight", "training.mask", "training.tag"}
    pairs = {"preferences.weight", "preferences.smoothing"}
    assert SFT.used_columns == rows
    assert SFTThenDPO.used_columns == rows | pairs
    assert DPO.used_columns == SELM.used_columns == TReg.used_columns == pairs
    assert Combine.used_columns == SEMA.used_columns == rows
    assert MistakeTuning.used_columns == NFT.used_columns == rows | {"training.label"}
    assert KTO.used_columns == {"training.weight", "training.label", "training.tag"}


def test_pairs_are_no_matter_to_who_does_not_learn_from_them(run):
    strategy = Recorder()
    run(strategy, [ROW], [PAIR | {"smoothing": 0.1}])
    assert strategy._cases[0].preferences.is_empty()


@pytest.mark.parametrize("sizes", [{"batch": 48, "micro_batch": 5}, {"batch": 5, "micro_batch": 5, "dpo_batch": 12}])
def test_a_micro_batch_must_divide_the_batch(sizes):
    with pytest.raises(ValidationError, match="micro_batch"):
        SFTThenDPO(**sizes)
    assert SFT(batch=48, micro_batch=12).micro_batch == 12


def test_the_stage_says_what_it_reads():
    arguments = {i.argument for i in stage.train.inputs if not i.opened}
    assert arguments == {"training", "preferences"}
    assert {i.argument for i in stage.train.inputs if i.opened} == {
        "parent_model", "base_model", "anchor_model", "grandparent_model",
    }  # fmt: skip
    assert stage.train.outputs == ("model",)
