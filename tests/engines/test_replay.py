"""Answers of a round that was recorded by the store, and what is refused instead of being replayed."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks import store
from tasks.engines import Completion, Request, Sampling
from tasks.engines.replay import Replay
from tasks.errors import EngineError, StoreError
from tasks.tables import frame, prompts, responses

CHAT = [{"role": "user", "content": "How many?"}]
ANSWERS = [
    {"id": "a", "prompt_id": "p1", "seed": 1, "response": "Answer: 8", "tokens": 3, "prompt_tokens": 4,
     "finish_reason": "stop", "logprob": -0.5, "entropy": 0.25, "self_certainty": 2.0, "model": "digest"},
    {"id": "b", "prompt_id": "p1", "seed": 2, "error": "it failed", "model": "digest"},
]  # fmt: skip


def record(stage, table, rows, **params):
    with store.writing(Path(), "r1", stage) as draft:
        draft.table(table, frame(table, rows))
        told = {"inputs": {}, "code": {}, "seed": 1, "versions": {}, "metrics": {}, "tokens": {}, "seconds": {}}
        draft.commit(store.Manifest(round="r1", stage=stage, outputs=draft.outputs, params={stage: params}, started="",
                                    finished="", **told))  # fmt: skip


def digest():
    return store.digest([(name, store.find(Path(), "r1", name)[1].digest) for name in ("prompts", "responses")])


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A round with two answers, the second an error; gives the digest to pin."""
    monkeypatch.chdir(tmp_path)
    record("prompts", prompts, [{"id": "p1", "problem": "How many?", "prompt": CHAT}])
    record("generate", responses, ANSWERS, strategy="sample", max_tokens=64)
    return digest()


def ask(pinned, seeds, content="How many?", **sampling):
    sampling = Sampling(**{"max_tokens": 64, **sampling})
    wanted = [Request((("user", content),), sampling, seed) for seed in seeds]
    with Replay(round="r1", digest=pinned).open(Path("no/model")) as policy:
        return [c for _, c in policy.sample(wanted)], policy.digest


def test_recorded_answers_come_back_whole(recorded):
    (answer, failed), model = ask(recorded, [1, 2])
    assert answer == Completion("Answer: 8", 3, 4, "stop", -0.5, 0.25, 2.0)
    assert failed == Completion("", finish_reason="error", error="it failed")
    assert model == "digest"


def test_what_was_not_recorded_is_an_error(recorded):
    assert "not recorded: r1 has no response" in ask(recorded, [3])[0][0].error
    assert "not recorded" in ask(recorded, [1], "How much?")[0][0].error


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 128}, "max_tokens 128, not 64 as in r1"),
        ({"temperature": 0.0}, "temperature 0.0, not 1.0"),  # a default of the recorded strategy
    ],
)
def test_an_answer_drawn_in_another_way_is_not_replayed(recorded, sampling, message):
    assert message in ask(recorded, [1], **sampling)[0][0].error


def test_other_tables_than_the_pinned_ones_are_refused(recorded):
    record("generate", responses, ANSWERS[:1], strategy="sample", max_tokens=64)
    with pytest.raises(EngineError, match=rf"r1 recorded has the digest {digest()}.*engine\.digest is {recorded}"):
        ask(recorded, [1])


def test_a_part_that_is_not_what_was_written_is_refused(recorded):
    part = next(Path("data/round=r1/responses").glob("*.parquet"))
    raw = bytearray(part.read_bytes())
    raw[-20] ^= 1
    part.write_bytes(raw)
    with pytest.raises(StoreError, match="is not what was written"):
        ask(recorded, [1])


def test_a_round_without_a_record_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="r1 has no 'prompts' yet"):
        ask("0" * 64, [1])


def test_it_wants_a_round_and_a_digest():
    for given in ({"round": "r1"}, {"round": "r1", "digest": "abc"}, {"round": "", "digest": "0" * 64}):
        with pytest.raises(ValidationError):
            Replay(**given)


def test_it_cannot_score(recorded):
    assert not Replay.scores
    with Replay(round="r1", digest=recorded).open(Path("no/model")) as policy:
        with pytest.raises(EngineError, match="cannot score"):
            policy.score([()], [""])
