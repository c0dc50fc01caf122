"""Strategies of several models or of several turns, on two problems with scripted solvers."""

from contextlib import contextmanager
from math import log
from pathlib import Path

import polars as pl
import pytest
from counting import counting
from pydantic import ValidationError

from tasks.core import frames, roster, tables
from tasks.core.errors import FlywheelError
from tasks.core.ids import seed_of
from tasks.domains import Domain, Verdict
from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Scored, turns
from tasks.engines.fake import Fake
from tasks.generate import GenerateCase, generate
from tasks.generate._drawing import failed, with_verdicts
from tasks.generate.ensemble import Ensemble
from tasks.generate.feedback import Feedback
from tasks.generate.guided import Guided, continued, probability
from tasks.generate.hint import Hint
from tasks.generate.sample import Sample
from tasks.generate.teacher import Teacher

DOMAIN = Arithmetic(easiest=1, hardest=3)
EASY, HARD = "Tom has 12 pens.\nDay 1: 5 found\nHow many?", "Tom has 12 pens.\nDay 1: 4 found\nHow many?"
RIGHT = {EASY: "Day 1: 12+5=17\nAnswer: 17", HARD: "Day 1: 12+4=16\nAnswer: 16"}
WRONG = {EASY: "Day 1: 12+5=18\nAnswer: 18", HARD: "Day 1: 12+4=15\nAnswer: 15"}


def prompt(name, problem, **more):
    return {"id": name, "problem": problem, "prompt": DOMAIN.solve(problem), "reference": None} | more


PROMPTS = [prompt("e", EASY, reference="17"), prompt("h", HARD, reference="16")]


def role(messages):
    return messages[0][1]


def problem_of(messages):
    return "\n".join(messages[1][1].split("\n")[:3]).rstrip()


def solver(*right):
    """Answers these problems rightly, and the others wrongly."""
    return Fake.scripted(lambda m, seed: (RIGHT if problem_of(m) in right else WRONG)[problem_of(m)])


def roster_of(**engines):
    return roster.Models({name: roster.Source(engine, lambda n=name: Path(n)) for name, engine in engines.items()})


def run(strategy, models, rows=PROMPTS, domain=DOMAIN, **others):
    members = {strategy.strategy_name(): strategy} | others
    pieces = generate(members, frames.frame(tables.prompts, rows), models, domain, 7).frames["responses"]
    made = pl.concat([frames.frame(tables.responses), *pieces], how="vertical_relaxed").collect()
    assert made["id"].is_unique().all()
    return made


def authors(rows, prompt):
    return rows.filter(pl.col("prompt_id") == prompt).select("sample", "author").rows()


def test_every_model_of_an_ensemble_answers_and_rows_name_it():
    models = roster_of(parent=solver(EASY), base=solver())
    rows = run(Ensemble(models=("parent", "base"), samples=2), models, sample=Sample(samples=2))

    own = rows.filter(member="ensemble")
    assert authors(own, "e") == [(0, "parent"), (1, "parent"), (0, "base"), (1, "base")]
    assert dict(own.filter(prompt_id="e").select("author", "answer").rows()) == {"parent": "17", "base": "18"}
    assert own["model"].n_unique() == 2
    assert own["seed"][0] == seed_of(7, "ensemble", "parent", "e", 0)
    assert not own["hinted"].any()


def test_a_further_model_changes_nothing_of_the_others():
    models = roster_of(parent=Fake(), base=Fake(), anchor=Fake())
    two = run(Ensemble(models=("parent", "base"), samples=2), models)
    three = run(Ensemble(models=("anchor", "base", "parent"), samples=2), models)
    assert set(two["id"]) < set(three["id"])


def test_no_model_is_named_twice():
    with pytest.raises(ValidationError, match="'base' twice"):
        Ensemble(models=("base", "parent", "base"))


def test_models_are_open_one_after_the_other():
    engine, openings = counting()
    engines = {n: engine.scripted(solver().answer) for n in ("parent", "base", "anchor")}
    for strategy in (Ensemble(models=tuple(engines)), Teacher(model="base"), Feedback(teacher="base")):
        models = roster_of(**engines)
        assert len(run(strategy, models)) > 16
        models.close()
    assert {count for _, count in openings} == {1}


def test_a_teacher_answers_what_the_student_does_not_solve():
    models = roster_of(parent=solver(EASY), base=solver(EASY, HARD))
    rows = run(Teacher(model="base", samples=2), models)

    assert authors(rows, "e") == [(0, "parent"), (1, "parent")]
    assert authors(rows, "h") == [(0, "parent"), (1, "parent"), (2, "base")]
    assert rows.filter(author="base")["answer"].to_list() == ["16"]
    assert models.meters["base"].requests == 1
    assert Teacher(model="base").opened_models() == {"parent", "base"}


def test_some_wrong_is_less_than_none_right():
    """One sample of each problem is right and one wrong."""
    parent = Fake.scripted(
        lambda m, seed: (RIGHT, WRONG)[seed == seed_of(7, "teacher", "parent", "e", 0)][problem_of(m)]
    )
    rows = {
        when: run(Teacher(model="base", samples=2, answers=2, when=when), roster_of(parent=parent, base=solver()))
        for when in ("some_wrong", "none_right")
    }
    assert authors(rows["some_wrong"], "e") == [(0, "parent"), (1, "parent"), (2, "base"), (3, "base")]
    assert authors(rows["none_right"], "e") == [(0, "parent"), (1, "parent")]


@pytest.mark.parametrize("parent", [Fake(error_rate=1.0), Fake(garbage_rate=1.0)])
@pytest.mark.parametrize(
    "strategy", [Teacher(model="base"), Hint(), Guided(teachers=("base",)), Feedback(teacher="base")]
)
def test_what_failed_or_has_no_answer_is_not_wrong(parent, strategy):
    rows = run(strategy, roster_of(parent=parent, base=Fake(down=True)))
    assert len(rows) == 16


@pytest.mark.parametrize(
    "strategy", [Teacher(model="base"), Hint(), Guided(teachers=("base",)), Feedback(teacher="base")]
)
def test_where_nothing_can_be_verified_the_domain_is_named(strategy):
    class Open(Domain):
        def hint(self, problem, reference=None):
            return "Think."

    with pytest.raises(FlywheelError, match="verifier"):
        run(strategy, roster_of(parent=Fake(down=True), base=Fake(down=True)), domain=Open())


def hinted(messages, seed):
    return RIGHT[problem_of(messages)] if role(messages) == "hint" else solver(EASY).answer(messages, seed)


def test_hinted_samples_only_where_all_own_ones_fail():
    rows = run(Hint(samples=2), roster_of(parent=Fake.scripted(hinted)))

    assert rows.filter(prompt_id="e").select("sample", "hinted").rows() == [(0, False), (1, False)]
    hard = rows.filter(prompt_id="h")
    assert hard.select("sample", "answer", "hinted").rows() == [
        (0, "15", False), (1, "15", False), (2, "16", True), (3, "16", True),
    ]  # fmt: skip


def test_the_hint_is_what_the_domain_says_and_only_the_solver_sees_it():
    seen = []
    engine = Fake.scripted(lambda m, seed: seen.append(m) or hinted(m, seed))
    run(Hint(samples=1), roster_of(parent=engine))
    assert seen[-1] == turns(DOMAIN.solve_with(HARD, DOMAIN.hint(HARD)))
    assert len(seen) == 3


def test_a_domain_without_hints_is_refused_before_a_model_is_opened():
    class Hintless(Domain):
        pass

    with pytest.raises(FlywheelError, match="hint"):
        run(Hint(), roster_of(parent=Fake(down=True)), domain=Hintless())


def understanding(engine, **probabilities):
    """The engine, with the probability of a reference after a trace that holds a word."""

    class Understanding(type(engine)):
        @contextmanager
        def open(self, model, cache=None):
            with super().open(model, cache) as policy:
                policy.score = score
                yield policy

    def score(prompts, completions, closed=False):
        for n, (chat, completion) in enumerate(zip(prompts, completions, strict=True)):
            assert completion == " 16" and chat[-1][1].endswith("Answer:")
            [p] = [p for word, p in probabilities.items() if word in chat[-1][1]]
            yield n, Scored((log(p), log(p / 2)) if p else (), None if p else "too long")

    return Understanding()


def says(text):
    return Fake.scripted(lambda m, seed: text)


def test_the_traces_that_the_student_understands_best_replace_random_own_ones():
    """aa, cc and dd are right, dd understood least; bb is wrong."""
    traces = {n: says(RIGHT[HARD].replace("\n", f"\n{n}\n")) for n in ("aa", "cc", "dd")} | {"bb": says(WRONG[HARD])}

    class Lenient(Arithmetic):
        """Whose verifier looks at the final answer alone."""

        def verify(self, problem, response, reference=None):
            lines = response.split("\n")
            return super().verify(problem, f"{lines[0]}\n{lines[-1]}", reference)

    student = understanding(solver(EASY), aa=0.75, cc=0.5, dd=0.25)
    models = roster_of(parent=student, **traces)
    rows = run(Guided(teachers=tuple(traces), samples=8), models, domain=Lenient(easiest=1, hardest=3))

    assert {a for _, a in authors(rows, "e")} == {"parent"}
    hard = rows.filter(prompt_id="h")
    assert len(hard) == 8
    assert hard.filter(pl.col("author") != "parent").select("author", "sample", "hinted").rows() == [
        ("aa", 8, False), ("cc", 8, False),
    ]  # fmt: skip
    other = run(
        Guided(teachers=tuple(traces), samples=8), models, [*PROMPTS[:1], prompt("i", HARD, reference="16")], Lenient()
    )
    left = [set(r.filter(author="parent", prompt_id=p)["sample"]) for r, p in ((rows, "h"), (other, "i"))]
    assert left[0] != left[1]  # drawn by prompt


def test_without_a_reference_none_is_replaced_and_no_teacher_opened():
    rows = run(Guided(teachers=("base",)), roster_of(parent=solver(), base=Fake(down=True)), [prompt("h", HARD)])
    assert set(rows["author"]) == {"parent"} and len(rows) == 8


def test_a_trace_whose_reference_cannot_be_scored_replaces_nothing():
    student = understanding(solver(), Day=0.0)
    rows = run(Guided(teachers=("base",)), roster_of(parent=student, base=solver(HARD)), PROMPTS[1:])
    assert set(rows["author"]) == {"parent"} and len(rows) == 8


def test_the_reference_stands_where_the_trace_has_its_answer():
    chat = (("user", "?"),)
    assert continued(chat, "16 or 15\nAnswer: 15", "15", "16") == ((*chat, ("assistant", "16 or 15\nAnswer:")), " 16")
    assert continued(chat, "fifteen", "15", "16") == ((*chat, ("assistant", "fifteen")), "\n16")
    assert probability(Scored((log(0.5), log(0.25)))) == pytest.approx(0.375, abs=1e-6)
    assert probability(Scored()) is None


def taught(messages, seed):
    """A student who gets the hard problem right once told which line is wrong, and a teacher who tells it."""
    if role(messages) == "feedback":
        return "Feedback: Line 1 is wrong."
    corrected = role(messages) in ("refine", "revise") and "Line 1 is wrong." in messages[1][1]
    return RIGHT[HARD] if corrected else solver(EASY).answer(messages, seed)


def test_the_student_answers_again_with_the_teachers_feedback():
    engine = Fake.scripted(taught)
    models = roster_of(parent=engine, base=engine)
    rows = run(Feedback(teacher="base", samples=2), models)

    assert authors(rows, "e") == [(0, "parent"), (1, "parent")]
    assert rows.filter(prompt_id="h").select("sample", "answer", "hinted").rows() == [
        (0, "15", False), (1, "15", False), (2, "16", True), (3, "16", True),
    ]  # fmt: skip
    assert models.meters["base"].requests == 2
    assert set(rows["author"]) == {"parent"}


@pytest.mark.parametrize("base", [Fake(error_rate=1.0), says("All nonsense.")])
def test_feedback_that_did_not_come_is_a_row_with_an_error(base):
    rows = run(Feedback(teacher="base", samples=1), roster_of(parent=solver(EASY), base=base))
    [error] = rows.filter("hinted")["error"]
    assert error.startswith("no feedback")
    assert rows.filter("hinted").select("answer", "sample").rows() == [(None, 1)]


def test_a_cut_off_answer_is_not_checked_and_a_failed_one_neither():
    class Strict(Arithmetic):
        """Whose verifier calls everything wrong."""

        def verify(self, problem, response, reference=None):
            return Verdict(False)

    rows = [{"id": "c", "prompt_id": "e", "response": "1", "finish_reason": "length"},
            {"id": "f", "prompt_id": "e", "response": "", "finish_reason": "error", "error": "down"},
            {"id": "w", "prompt_id": "h", "response": "1", "finish_reason": "stop"}]  # fmt: skip
    case = GenerateCase(frames.frame(tables.prompts, PROMPTS).collect(), roster_of(), Strict(), 1)
    checked = with_verdicts(frames.frame(tables.responses, rows).collect(), case)
    assert checked["passed"].to_list() == [None, None, False]
    assert failed(checked, case)["id"].to_list() == ["h"]


def test_a_real_student_understands_one_trace_better_than_another(tiny_model, tmp_path):
    from tasks.engines.transformers import Transformers

    chat = turns(DOMAIN.solve(HARD))
    texts = [continued(chat, trace, "16", "16") for trace in (RIGHT[HARD], "16", "no answer at all")]
    with roster.one(Transformers(), tiny_model, cache=tmp_path).open() as student:
        scored = dict(student.score([c for c, _ in texts], [reference for _, reference in texts]))
    understood = [probability(scored[n]) for n in range(3)]
    assert all(0 < p < 1 for p in understood) and len(set(understood)) == 3
