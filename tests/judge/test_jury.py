"""Other models as judges: pooled, by name, and never two in memory."""

from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.core import frames, roster, tables
from tasks.core.errors import EngineError, UnknownName
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.engines.transformers import Transformers
from tasks.judge import JudgeOptions, judge
from tasks.judge.jury import Jury
from tasks.judge.self_judge import SelfJudge

PROBLEM = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
PROMPTS = [{"id": "p", "problem": PROBLEM, "prompt": [{"role": "user", "content": PROBLEM}]}]
ANSWERS = [{"id": f"p{n}", "prompt_id": "p", "sample": n, "response": f"Answer: {n}", "answer": str(n)} for n in (7, 8)]


def approving(*answers):
    """An engine that finds these answers right."""

    def answer(messages, seed):
        return "Verdict: correct" if messages[-1][1].rstrip()[-1] in answers else "Verdict: wrong"

    return Fake.scripted(answer)


def roster_of(**engines):
    return roster.Models({name: roster.Source(engine, lambda n=name: Path(n)) for name, engine in engines.items()})


def judged(models, jurors, **members):
    tabled = frames.frame(tables.prompts, PROMPTS), frames.frame(tables.responses, ANSWERS)
    members |= {"jury": Jury(models=jurors)}
    rows = judge(members, JudgeOptions(reward="jury"), *tabled, models=models, domain=Arithmetic(), seed=3).collect()
    return {r["response_id"]: r for r in rows.filter(member="jury").iter_rows(named=True)}


def test_scores_are_averaged_and_verdicts_voted_on():
    models = roster_of(one=approving("8"), two=approving("8"), three=approving("7"))
    rows = judged(models, ["one", "two", "three"])
    assert (rows["p8"]["score"], rows["p8"]["verdict"]) == (pytest.approx(2 / 3), "pass")
    assert (rows["p7"]["score"], rows["p7"]["verdict"]) == (pytest.approx(1 / 3), "fail")

    rows = judged(models, ["one", "three"])
    assert [(rows[p]["score"], rows[p]["verdict"]) for p in ("p7", "p8")] == [(0.5, None)] * 2


def test_a_juror_that_cannot_be_read_does_not_count():
    rows = judged(
        roster_of(one=approving("8"), two=Fake(garbage_rate=1.0), three=Fake(error_rate=1.0)), ["one", "two", "three"]
    )
    assert (rows["p8"]["score"], rows["p7"]["score"]) == (1.0, 0.0)


def test_no_two_models_are_open_together_and_each_is_opened_once():
    opened, events = [], []

    class Counting(Fake):
        @contextmanager
        def open(self, model, cache=None):
            opened.append(model)
            events.append((str(model), len(opened)))
            with super().open(model, cache) as policy:
                yield policy
            opened.remove(model)

    models = roster_of(parent=Counting(), one=Counting(), two=Counting())
    judged(models, ["two", "one"], a_jury_first=Jury(models=["one"]), self_judge=SelfJudge())
    models.close()
    assert events[0] == ("parent", 1)  # members that ask the parent alone come first
    assert [name for name, _ in events] == ["parent", "one", "two", "one"]
    assert {count for _, count in events} == {1} and not opened
    assert {name: m.requests for name, m in models.meters.items()} == {"parent": 2, "one": 4, "two": 2}


def test_the_author_may_be_a_juror():
    rows = judged(roster_of(parent=approving("8"), one=approving("8")), ["parent", "one"])
    assert rows["p8"]["score"] == 1.0


def test_a_juror_that_fails_is_named():
    with pytest.raises(EngineError, match="bad"):
        judged(roster_of(good=approving("8"), bad=Fake(down=True)), ["good", "bad"])
    with pytest.raises(UnknownName, match="'good'"):
        judged(roster_of(good=approving("8")), ["god"])


def test_a_jury_names_the_models_that_it_opens():
    assert Jury(models=["teacher", "base"]).opened_models() == {"teacher", "base"}
    assert SelfJudge().opened_models() == {"parent"}
    with pytest.raises(ValidationError):
        Jury(models=[])


def test_real_models_judge_one_after_the_other(tiny_model, tmp_path):
    sources = {n: roster.Source(Transformers(batch_size=s), lambda: tiny_model) for n, s in (("a", 4), ("b", 8))}
    with closing(roster.Models(sources, tmp_path)) as models:
        rows = judged(models, ["a", "b"])
    assert len(rows) == 2 and all((r["score"] is None) == (r["error"] is not None) for r in rows.values())
