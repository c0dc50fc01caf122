"""Answers of a round that was recorded by the store, and what is refused instead of being replayed."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.core import store
from tasks.core.errors import EngineError, StoreError
from tasks.core.frames import frame
from tasks.core.plan import Plan
from tasks.core.tables import prompts, responses
from tasks.engines import Completion, Request, Sampling
from tasks.engines.replay import Replay

CHAT = [{"role": "user", "content": "How many?"}]
ANSWERS = [
    {"id": "a", "member": "sample", "prompt_id": "p1", "seed": 1, "response": "Answer: 8", "tokens": 3, "prompt_tokens": 4,
     "finish_reason": "stop", "logprob": -0.5, "entropy": 0.25, "self_certainty": 2.0, "model": "digest"},
    {"id": "b", "member": "sample", "prompt_id": "p1", "seed": 2, "error": "it failed", "model": "digest"},
    {"id": "c", "member": "cold", "prompt_id": "p1", "seed": 5, "response": "Answer: 9", "finish_reason": "stop"},
]  # fmt: skip
MEMBERS = {
    "sample": {"strategy": "sample", "temperature": 1.0, "max_tokens": 64, "stop": ["\n"]},
    "cold": {"strategy": "sample", "temperature": 0.6, "max_tokens": 64, "stop": ["\n"]},
}


def record(stage, table, rows, **members):
    with store.writing(Path(), "r1", stage) as draft:
        draft.table(table, frame(table, rows))
        plan = Plan(round="r1", stage=stage, seed=1, members=members)
        nothing = {"inputs": {}, "versions": {}, "metrics": {}, "tokens": {}, "seconds": {}}
        draft.commit(store.Manifest(round="r1", stage=stage, plan=plan, outputs=draft.outputs, started="", finished="",
                                    **nothing))  # fmt: skip


def digest():
    return store.digest([(name, store.find(Path(), "r1", name)[1].digest) for name in ("prompts", "responses")])


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A round with two answers, the second an error; gives the digest to pin."""
    monkeypatch.chdir(tmp_path)
    record("prompts", prompts, [{"id": "p1", "problem": "How many?", "prompt": CHAT}])
    record("generate", responses, ANSWERS, **MEMBERS)
    return digest()


def ask(pinned, seeds, content="How many?", **sampling):
    sampling = Sampling(**{"max_tokens": 64, "stop": ("\n",), **sampling})
    wanted = [Request((("user", content),), sampling, seed) for seed in seeds]
    with Replay(round="r1", digest=pinned).open(Path("no/model")) as policy:
        return [c for _, c in policy.sample(wanted)], policy.digest


def test_recorded_answers_come_back_whole(recorded):
    (answer, failed), model = ask(recorded, [1, 2])
    assert answer == Completion("Answer: 8", 3, 4, "stop", -0.5, 0.25, 2.0)
    assert failed == Completion("", finish_reason="error", error="it failed", permanent=True)
    assert not answer.permanent
    assert model == "digest"


def test_what_was_not_recorded_is_an_error(recorded):
    [unknown] = ask(recorded, [3])[0]
    assert "not recorded: r1 has no response" in unknown.error
    assert unknown.permanent
    assert "not recorded" in ask(recorded, [1], "How much?")[0][0].error


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 128}, "max_tokens 128, not 64 as in r1"),
        ({"temperature": 0.0}, "temperature 0.0, not 1.0"),
        ({"stop": ()}, "stop"),
    ],
)
def test_an_answer_drawn_in_another_way_is_not_replayed(recorded, sampling, message):
    [other] = ask(recorded, [1], **sampling)[0]
    assert message in other.error
    assert other.permanent


def test_each_member_has_its_own_sampling(recorded):
    hot, cold = ask(recorded, [1, 5], temperature=0.6)[0]
    assert "temperature 0.6, not 1.0" in hot.error
    assert cold.text == "Answer: 9"


def test_other_tables_than_the_pinned_ones_are_refused(recorded):
    record("generate", responses, ANSWERS[:1], **MEMBERS)
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
    for fields in ({"round": "r1"}, {"round": "r1", "digest": "abc"}, {"round": "", "digest": "0" * 64}):
        with pytest.raises(ValidationError):
            Replay(**fields)


def test_it_cannot_score(recorded):
    assert not Replay.scores
    with Replay(round="r1", digest=recorded).open(Path("no/model")) as policy:
        with pytest.raises(EngineError, match="cannot score"):
            policy.score([()], [""], closed=True)
        with pytest.raises(EngineError, match="cannot embed.*transformers"):
            policy.embed(["8"])


def test_a_trace_was_not_recorded(recorded):
    [answer] = ask(recorded, [1], trace=True)[0]
    assert (answer.text, answer.token_logprobs, answer.token_entropies) == ("Answer: 8", None, None)
    assert Replay.lacks({"traces", "samples"}) == ["token log-probabilities"]
