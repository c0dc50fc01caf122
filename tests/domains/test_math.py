import gzip
import json
import lzma
import random
import re
import threading
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.core.errors import FlywheelError
from tasks.domains.math import Math, final, read

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
needs_gsm8k = [
    pytest.mark.needs_shared,
    pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K's files are not in {GSM8K}"),
    pytest.mark.xdist_group("gsm8k"),
]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def problem(question: str, answer: str = "1 + 1 = <<1+1=2>>2\n#### 2") -> str:
    return json.dumps({"question": question, "answer": answer})


@pytest.fixture
def small(tmp_path: Path) -> Math:
    """300 training questions, of which the test file has 5 too, in other spelling."""
    train = write(tmp_path / "train.jsonl", *(problem(f"What is question {i}?") for i in range(300)))
    test = write(tmp_path / "test.jsonl", *(problem(f"What  is QUESTION {i}?") for i in range(295, 310)))
    return Math(train=train, test=test)


@cache
def gsm8k() -> Math:
    return Math(train=GSM8K / "train.jsonl.gz", test=GSM8K / "test.jsonl.gz")


# Final answers


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("72", "72"),
        ("\\boxed{72}", "72"),
        ("so \\boxed{71}, no: \\boxed{72}.", "72"),
        ("$72.00", "72"),
        ("The answer is 72.", "72"),
        ("The answer is $72.", "72"),
        ("The final answer is: **72**", "72"),
        ("Answer:\n\n**$1,450.50**", "2901/2"),
        ("72 dollars", "72"),
        ("€72", "72"),
        ("72 €", "72"),
        ("1,000", "1000"),
        ("1,450,000", "1450000"),
        ("\\boxed{10{,}000}", "10000"),
        ("\\boxed{\\$1,000}", "1000"),
        ("\\boxed{72\\text{ clips}}", "72"),
        ("$\\frac{3}{4}$", "3/4"),
        ("\\dfrac{3}{4}", "3/4"),
        ("\\boxed{-\\frac{6}{8}}", "-3/4"),
        ("1 1/2", "3/2"),
        ("-1 1/2", "-3/2"),
        ("\\boxed{1\\frac{1}{2}}", "3/2"),
        ("36/2", "18"),
        ("1/2 cup", "1/2"),
        (".5", "1/2"),
        ("0.50", "1/2"),
        ("50%", "50"),
        ("$50\\%$", "50"),
        ("50 percent", "50"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("-$5", "-5"),
        ("- 5", "-5"),
        ("1e3", "1000"),
        ("007", "7"),
        ("x = 5", "5"),
        ("48+24 = 72", "72"),
        ("30 - 12 = 18", "18"),
        ("The answer is 48 + 24 = 72 clips", "72"),
        ("The answer is 72 clips in 2 months.", "72"),
        ("#### 72", "72"),
        ("It was 12 and 30.\n#### 42\n", "42"),
        ("She has $12 and $30, so $42", "42"),
        ("\\boxed{2^{3}}", "8"),
        ("\\boxed{9 \\times 8}", "72"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "sqrt(2)/2"),
        ("\\boxed{\\frac{\\sqrt{2}}{2}}", "sqrt(2)/2"),
        ("", None),
        ("I cannot say.", None),
        ("1/0", None),
        ("\\boxed{10 \\text{ or } 18}", None),
        ("\\boxed{10, 18}", None),
        ("The answer is 10 or 18.", None),
        ("The answer is not known. There were 18.", None),
        ("\\boxed{9^{9^{9^{9}}}}", None),
        ("\\boxed{\\sqrt{9}!}", None),
        ("The answer is 72. We had 70, and 70 + 1 + 1 = 72.", "72"),
        ("9" * 5000, None),
    ],
)
def test_the_final_answer_in_canonical_form(response: str, answer: str | None) -> None:
    assert final(response) == answer


@given(st.text() | st.text(alphabet="\\boxed{}frac^0123456789/.,-$% answer is#=sqrt\n", max_size=60))
@example("e}\\")  # Euler's number
def test_any_text_gives_an_answer_that_gives_itself_where_it_is_rational_or_none(text: str) -> None:
    answer = final(text)
    if answer is not None and re.fullmatch(r"-?\d+(/\d+)?", answer):
        assert final(f"\\boxed{{{answer}}}") == answer


@given(st.fractions(min_value=0, max_denominator=10_000))
def test_every_fraction_is_read_exactly(number: Fraction) -> None:
    top, bottom = number.numerator, number.denominator
    assert final(f"#### {number}") == final(f"\\boxed{{\\frac{{{top}}}{{{bottom}}}}}") == str(number)
    assert final(f"#### -{number}") == final(f"\\boxed{{-\\frac{{{top}}}{{{bottom}}}}}") == str(-number)


def test_off_the_main_thread_there_is_no_time_out_to_trip_over() -> None:
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(final("\\boxed{3\\sqrt{16}}")))
    thread.start()
    thread.join(timeout=60)
    assert found == ["12"]


# Verdicts


def test_a_verdict_needs_an_answer_on_both_sides(small: Math) -> None:
    assert small.verify("p", "#### 18", "18").passed is True
    assert small.verify("p", "#### 19", "18").passed is False
    for response, reference in [("no idea", "18"), ("#### 18", None), ("#### 18", "")]:
        verdict = small.verify("p", response, reference)
        assert verdict.passed is None
        assert verdict.error


# Splits and files


def test_splits_are_disjoint_and_the_test_file_wins(small: Math) -> None:
    splits = {s: {i.problem.casefold().replace("  ", " ") for i in small.items(s, 1000, 0)} for s in SPLITS}
    assert len(splits["heldout"]) == 15
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 310
    assert all(splits.values())


SPLITS = ("seeds", "train", "validation", "heldout", "gold")


def test_items_are_drawn_by_seed_and_not_by_place_in_the_file(small: Math, tmp_path: Path) -> None:
    lines = small.train.read_text().splitlines()
    turned = Math(train=write(tmp_path / "turned.jsonl", *reversed(lines)), test=small.test)
    assert small.items("train", 20, 3) == turned.items("train", 20, 3)
    assert small.items("train", 20, 3) != small.items("train", 20, 4)
    assert small.items("train", 5, 3) == small.items("train", 20, 3)[:5]


def test_gold_answers_are_right_exactly_where_they_say_so(small: Math) -> None:
    gold = small.items("gold", 1000, 0)
    assert {i.wrong_step for i in gold} == {None, 1}
    for item in gold:
        assert small.verify(item.problem, str(item.response), item.reference).passed is (item.wrong_step is None)
        assert "<<" not in str(item.response)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('{"question": "a"', "is not JSON"),
        ("[1]", "is not an object"),
        ('{"question": "a"}', "'answer' is None"),
        ('{"question": " ", "answer": "#### 1"}', "'question' is ' '"),
        ('{"question": "a", "answer": "1"}', "no final number at the end of '1'"),
        ('{"question": "a", "answer": "#### one"}', "no final number"),
    ],
)
def test_a_broken_line_is_named_with_its_fix(tmp_path: Path, broken: str, says: str) -> None:
    path = write(tmp_path / "broken.jsonl", problem("fine"), "", broken)
    with pytest.raises(FlywheelError, match=r"broken\.jsonl:3: .*a line is {") as caught:
        Math(train=path, test=path).items("heldout", 1, 0)
    assert says in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, small: Math) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(small.train.read_bytes())[:200])
    for path in (tmp_path / "absent.jsonl", cut, tmp_path):
        with pytest.raises(FlywheelError, match="cannot be read"):
            Math(train=path, test=small.test).items("train", 1, 0)


def test_a_gzipped_file_is_the_same_file(small: Math, tmp_path: Path) -> None:
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(small.train.read_bytes()))
    assert read(packed) == read(small.train)


# The real files

RECORDED = Path(__file__).parent / "gsm8k_solutions/solutions.jsonl.xz"
"""What four models answered to GSM8K's 1,319 test problems, with its authors' verdicts (Cobbe et al. 2021, arXiv:2110.14168;
github.com/openai/grade-school-math, `example_model_solutions.jsonl`)."""


def test_recorded_solutions_keep_their_authors_verdicts() -> None:
    with lzma.open(RECORDED, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    domain = Math(train=RECORDED, test=RECORDED)
    other = [r for r in rows if domain.verify("", r["solution"], r["reference"]).passed is not r["correct"]]
    assert other == []
    assert (len(rows), sum(r["correct"] for r in rows)) == (5276, 2001)


SPELLINGS = [
    "{n}", "{n}.", "${n}", "{n}.00", "${n}.00", "{n} dollars", "{n}%", "**{n}**", "\\boxed{{{n}}}", "$\\boxed{{{n}}}$",
    "\\boxed{{\\${n}}}", "\\[ x = \\boxed{{{n}}} \\]", "\\boxed{{{n}\\text{{ apples}}}}", "#### {n}", "####{n}",
    "The answer is {n}.", "The answer is: ${n}", "Answer: {n}", "**Answer:** {n} in 3 days", "The final answer is **{n}**.",
    "First 3 + 4 = 7.\nThen 2 * 5 = 10.\nThe answer is {n} apples.", "We had 12, so {n} remain.", "\\({n}\\)", "{n}/1",
    "{n}.0", "\\frac{{{n}}}{{1}}", "x = {n}", "\\boxed{{\\frac{{{twice}}}{{2}}}}", "{comma}", "\\boxed{{{comma}}}",
    "The answer is ${comma}.00.", "\\boxed{{\\${comma}}}", "{brace}",
]  # fmt: skip


def spellings(number: int) -> dict[str, str]:
    values = {
        "n": number,
        "twice": 2 * number,
        "comma": f"{number:,}",
        "brace": f"\\boxed{{{number:,}}}".replace(",", "{,}"),
    }
    return {s: s.format(**values) for s in SPELLINGS if number >= 0 or "frac" not in s}


def mutations(number: int, rng: random.Random) -> set[int | str]:
    digits = str(abs(number))
    swapped = int(digits[:-2] + digits[:-3:-1])
    found = {
        number + 1,
        number - 1,
        number + rng.choice([2, 3, -2, -3]),
        number * 10,
        -number,
        int(f"{number}1"),
        swapped,
    }
    return {m for m in found if m != number} | {f"{number}.5", f"{number}/7", f"1/{abs(number) + 2}", f"0.0{digits}"}


class TestGsm8k:
    pytestmark = needs_gsm8k

    def test_its_files_are_whole_and_its_splits_disjoint(self) -> None:
        splits = {s: [i.problem for i in gsm8k().items(s, 10_000, 1)] for s in SPLITS}
        assert len(splits["heldout"]) == 1319
        assert sum(map(len, splits.values())) == len({p for s in splits.values() for p in s}) == 1319 + 7473
        assert {s: len(p) // 50 for s, p in splits.items()} == {
            "seeds": 15, "train": 111, "validation": 16, "heldout": 26, "gold": 7,
        }  # fmt: skip

    def test_the_worked_solutions_are_right(self) -> None:
        solutions = read(GSM8K / "test.jsonl.gz").values()
        assert all(gsm8k().verify(q, a, a.rpartition("####")[2]).passed for q, a in solutions)

    def test_right_answers_in_every_spelling_are_accepted(self) -> None:
        numbers = [int(str(i.reference)) for i in gsm8k().items("heldout", 2000, 0)]
        refused = [t for n in numbers for t in spellings(n).values() if not gsm8k().verify("", t, str(n)).passed]
        assert refused == []
        assert sum(len(spellings(n)) for n in numbers) > 43_000

    def test_mutated_answers_are_refused_in_every_spelling(self) -> None:
        rng = random.Random(0)
        numbers = [int(str(i.reference)) for i in gsm8k().items("heldout", 2000, 0)]
        wrong = [(n, m) for n in numbers for m in sorted(mutations(n, rng), key=str)]
        said = [(n, t) for n, m in wrong for t in rng.sample(list(plain(m).values()), 3)]
        accepted = [(n, t) for n, t in said if gsm8k().verify("", t, str(n)).passed is not False]
        assert accepted == []
        assert len(said) > 35_000

    def test_gold_labels_are_what_the_verifier_finds(self) -> None:
        gold = gsm8k().items("gold", 1000, 0)
        assert all(
            gsm8k().verify(i.problem, str(i.response), i.reference).passed is (i.wrong_step is None) for i in gold
        )
        assert 0.4 < sum(i.wrong_step is None for i in gold) / len(gold) < 0.6


def plain(number: int | str) -> dict[str, str]:
    """Spellings that any number, whole or not, can be put into."""
    return {
        s: s.format(n=number) for s in ("{n}", "#### {n}", "The answer is {n}.", "\\boxed{{{n}}}", "So ${n} remain")
    }
