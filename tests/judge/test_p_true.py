"""P(True) and P(IK) from the probabilities of two words."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from asked import PROBLEM, judged

from tasks.core import roster
from tasks.domains import FALSE, TRUE
from tasks.engines import Scored
from tasks.engines.fake import Fake
from tasks.engines.transformers import Transformers
from tasks.judge.p_true import PTrue, share


class Scripted(Fake):
    """Scores a prompt and a word as `says(prompt, word)` does: the log-probabilities of the word's tokens, or an error."""

    says: object = None

    @contextmanager
    def open(self, model, cache=None):
        def score(prompts, completions, closed=False):
            assert not closed
            for n, (prompt, word) in enumerate(zip(prompts, completions, strict=True)):
                said = self.says(prompt[-1][1], word)
                yield n, Scored(error=said) if isinstance(said, str) else Scored(tuple(said))

        yield SimpleNamespace(digest="", score=score)


def asked(member, responses, says, **more):
    prompts = []
    rows = judged(member, responses, None, engine=Scripted(says=lambda p, w: prompts.append(p) or says(p, w)), **more)
    return rows, prompts


def test_the_score_is_the_share_of_true_among_both_words():
    def says(prompt, word):
        true = [math.log(0.3), math.log(0.5)] if "answer: 11" in prompt else [math.log(0.01), 0.0]
        return true if word == TRUE else [math.log(0.05)]

    rows, _ = asked(PTrue(), ["11", "12"], says)
    assert rows.column() == {"1": pytest.approx(0.15 / 0.2, abs=1e-6), "2": pytest.approx(0.01 / 0.06, abs=1e-6)}
    assert rows.column("verdict") == {"1": "pass", "2": "fail"}
    assert rows.rows["1"]["rationale"] == f"log P(True) = {math.log(0.15):.4f}"


@pytest.mark.parametrize(("p", "q", "value"), [(-1e4, -1e4 - math.log(3), 0.75), (0.0, -1e5, 1.0), (-math.inf, 0, 0.0)])
def test_very_small_probabilities_have_a_share(p, q, value):
    assert share(p, q) == pytest.approx(value)


def test_the_other_samples_final_answers_are_brainstormed_as_often_as_they_were_sampled():
    rows = [{"id": str(n), "response": f"so {a}", "answer": a} for n, a in enumerate(["7", "7", "8"])]
    rows.append({"id": "3", "response": "I do not know"})
    _, prompts = asked(PTrue(), rows, lambda prompt, word: [-1.0])

    shown = {p.partition("Possible answer: ")[2].partition("\n")[0]: p.partition("answers:\n")[2] for p in prompts}
    ideas = {answer: sorted(text.partition("\n\n")[0].split("\n")) for answer, text in shown.items()}
    assert ideas["7"] == ["7", "8", "I do not know"]
    assert ideas["8"] == ["7", "7", "I do not know"]
    assert ideas["I do not know"] == ["7", "7", "8"]


def test_so_many_ideas_are_drawn_whatever_the_order_of_the_rows():
    texts = [str(n) for n in range(9)]
    says = lambda prompt, word: [-len(prompt) / 100 - ord(prompt[40]) / 50 - len(word)]  # noqa: E731
    rows, prompts = asked(PTrue(ideas=2), texts, says)
    assert all(len(p.partition("answers:\n")[2].partition("\n\n")[0].split("\n")) == 2 for p in prompts)
    assert len(prompts) == 2 * 9
    again, _ = asked(PTrue(ideas=2), texts, says, order=lambda rows: rows[::-1])
    assert again.rows == rows.rows
    _, prompts = asked(PTrue(ideas=0), texts, says)
    assert all(p.partition("answers:\n")[2].startswith("\n\n") for p in prompts)


def test_equal_questions_are_asked_once():
    _, prompts = asked(PTrue(), ["11", "11"], lambda prompt, word: [-1.0])
    assert len(prompts) == 2


def test_knowledge_is_one_probability_for_a_prompt():
    rows, prompts = asked(
        PTrue(about="knowledge"), ["11", "12"], lambda p, word: [math.log(0.6 if word == TRUE else 0.2)]
    )
    assert rows.column() == {"1": pytest.approx(0.75), "2": pytest.approx(0.75)}
    assert set(rows.column("verdict").values()) == {None}
    assert len(prompts) == 2
    assert all(PROBLEM in p and "11" not in p for p in prompts)
    assert (PTrue().auditable, PTrue(about="knowledge").auditable) == (True, False)


@pytest.mark.parametrize("word", [TRUE, FALSE])
def test_a_word_that_could_not_be_scored_is_an_error(word):
    rows, _ = asked(PTrue(), ["11"], lambda prompt, asked: "time-out" if asked == word else [-1.0])
    assert (rows.rows["1"]["score"], rows.rows["1"]["error"]) == (None, "time-out")


def test_two_impossible_words_are_an_error():
    rows, _ = asked(PTrue(), ["11"], lambda prompt, word: [-math.inf])
    assert (rows.rows["1"]["score"], rows.rows["1"]["verdict"]) == (None, None)
    assert rows.rows["1"]["error"]


def test_without_responses_no_model_is_loaded():
    assert judged(PTrue(), [], None, engine=Fake(down=True)).rows == {}


def test_a_real_model_scores_both_words(tiny_model):
    models = roster.one(Transformers(), tiny_model)
    rows = judged(PTrue(), ["11", "12"], None, models=models)
    models.close()
    scores = list(rows.column().values())
    assert all(0 < score < 1 for score in scores)
    assert scores[0] != scores[1]
