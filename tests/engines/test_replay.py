from pathlib import Path

import pytest

from tasks.engines import Completion, Request, Sampling
from tasks.engines.replay import Replay
from tasks.errors import EngineError
from tasks.tables import frame, prompts, responses

CHAT = [{"role": "user", "content": "How many?"}]


@pytest.fixture
def recorded(tmp_path):
    """Two answers in two parts, the second an error."""
    for table, rows in (
        (prompts, [{"id": "p1", "problem": "How many?", "prompt": CHAT}]),
        (responses, [
            {"id": "a", "prompt_id": "p1", "seed": 1, "response": "Answer: 8", "tokens": 3, "prompt_tokens": 4,
             "finish_reason": "stop", "logprob": -0.5, "entropy": 0.25, "self_certainty": 2.0, "model": "digest"},
            {"id": "b", "prompt_id": "p1", "seed": 2, "error": "it failed", "model": "digest"},
        ]),
    ):  # fmt: skip
        (tmp_path / table.name).mkdir()
        for part, row in enumerate(rows):
            frame(table, [row]).collect().write_parquet(tmp_path / table.name / f"part-{part}.parquet")
    return str(tmp_path)


def ask(folder, seeds, content="How many?"):
    wanted = [Request((("user", content),), Sampling(), seed) for seed in seeds]
    with Replay(folder=folder).open(Path("no/model")) as policy:
        return [c for _, c in policy.sample(wanted)], policy.digest


def test_recorded_answers_come_back_whole(recorded):
    (answer, failed), digest = ask(recorded, [1, 2])
    assert answer == Completion("Answer: 8", 3, 4, "stop", -0.5, 0.25, 2.0)
    assert failed == Completion("", finish_reason="error", error="it failed")
    assert digest == "digest"


def test_what_was_not_recorded_is_an_error(recorded):
    assert "not recorded" in ask(recorded, [3])[0][0].error
    assert "not recorded" in ask(recorded, [1], "How much?")[0][0].error


def test_a_folder_without_a_record_is_a_clear_error(tmp_path):
    with pytest.raises(EngineError, match="nothing is recorded there"):
        ask(str(tmp_path), [1])


def test_it_cannot_score(recorded):
    assert not Replay.scores
    with Replay(folder=recorded).open(Path("no/model")) as policy, pytest.raises(EngineError, match="cannot score"):
        policy.score([()], [""])
