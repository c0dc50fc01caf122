"""An answer's grade against that of the prompt's likeliest one."""

from asked import judged, shown

from tasks.domains import Domain
from tasks.judge.gap import Gap

GOOD, BAD = "Verdict: correct", "Verdict: wrong"


def rows(*texts: str) -> list[dict]:
    """Responses of which the first is the likeliest."""
    return [{"id": str(n), "response": t, "mean_logprob": -float(n)} for n, t in enumerate(texts, 1)]


def run(texts: list[str], says, member=None, **more):
    return judged(member or Gap(), rows(*texts), lambda prompt, seed: says(shown(prompt)), domain=Domain(), **more)


def test_the_reference_has_a_half_and_others_half_the_gap_more_or_less():
    says = lambda text: BAD if text == "bad" else GOOD  # noqa: E731
    assert run(["bad", "good", "bad"], says).column() == {"1": 0.5, "2": 1.0, "3": 0.5}
    assert run(["good", "bad", "fine"], says).column() == {"1": 0.5, "2": 0.0, "3": 0.5}


def test_grades_are_means_over_the_samples():
    replies = {"ref": iter([GOOD, BAD, BAD, BAD]), "other": iter([GOOD, GOOD, GOOD, BAD])}
    asked = run(["ref", "other"], lambda text: next(replies[text]), Gap(samples=4, temperature=1.0))
    assert asked.column() == {"1": 0.5, "2": 0.5 + (0.75 - 0.25) / 2}
    assert asked.column("verdict") == {"1": None, "2": None}


def test_without_a_grade_of_the_reference_every_answer_is_an_error():
    asked = run(["odd", "good"], lambda text: "?" if text == "odd" else GOOD)
    assert asked.column() == {"1": None, "2": None}
    assert "reference" in asked.rows["2"]["error"]
    asked = run(["good", "odd"], lambda text: "?" if text == "odd" else GOOD)
    assert asked.column() == {"1": 0.5, "2": None}


def test_the_order_of_rows_does_not_matter_even_without_likelihoods():
    texts = [{"id": str(n), "response": f"t{n}"} for n in range(6)]
    says = lambda prompt, seed: GOOD if seed % 2 else BAD  # noqa: E731
    one = judged(Gap(), texts, says, domain=Domain())
    assert one.rows == judged(Gap(), texts, says, domain=Domain(), order=lambda rows: rows[::-1]).rows
    assert 0.5 in one.column().values()
