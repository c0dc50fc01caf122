"""Multiple choice: a question, its options, and the letter of the right one, as in ARC (Clark et al. 2018,
arXiv:1803.05457) and MMLU (Hendrycks et al. 2020, arXiv:2009.03300).

    Which of these is a mammal?        The trout and the crow are no mammals.
    A. trout                           Answer: C
    B. crow
    C. bat

A file holds one JSON object a line: `{"question": "…", "options": ["…", "…"], "answer": "B"}`. The files of the two
benchmarks are read as they are: `choices` for the options (ARC's with `text` and `label`), `answerKey` for the answer, and
an answer that counts from 0. The test file is the held-out set, whole; the training file is divided among the other splits
by a hash of the question, and a question that the test file has too is left out.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tasks.core.errors import FlywheelError
from tasks.core.ids import seed_of
from tasks.domains import Domain, Item, Message, Split, Verdict
from tasks.domains._jsonl import json_lines, text_of
from tasks.domains._statements import attributed, denied, sentence

SOLVE = "Reason step by step. End with a line 'Answer: ' and the letter of the right option alone."
WRITE = (
    "Write one new question of the same kind and difficulty, with its options a line each, lettered in the same way. "
    "Give only the question and the options."
)
LINE = 'a line is {"question": "…", "options": ["…", "…"], "answer": "B"}'
SHARES = {"seeds": range(10), "validation": range(10, 20), "gold": range(20, 25), "train": range(25, 100)}
"""Percentiles of the question's hash that make up each split of the training file."""

OPTION = re.compile(r"([A-Z])[.)] (\S.*)")
ANNOUNCED = re.compile(r"(?<![\w-])(?i:answer)(?: is\b|\s*:)[\s:*]*(?:(?i:option)\s+)?\(?([A-Z])\)?(?![\w'’])")
BARE = re.compile(r"[\s*]*\(?([A-Z])\)?[\s*]*(?:\.[\s*]*)?")
TAKEN_BACK = re.compile(
    r"[\s*]*(?:(?:,|/|&|\+|-|–|or\b|and\b|to\b|through\b)\s*(?:(?i:option)\s+)?\(?[A-Z]\b|or\b|(?:is|was|are)\s+(?:not|wrong|incorrect|false)\b"
    r"|(?:is|was)n['’]t\b|[<>=~≠≈])|[^\W\d_A-Za-z]"
)
"""What follows a letter that is one of several, or no answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A problem taken apart."""

    text: str
    """The question alone."""
    options: tuple[str, ...]
    """Their texts, that of letter A first."""

    @property
    def problem(self) -> str:
        """The question with its lettered options, as a problem's text."""
        return "\n".join([self.text, *(f"{a}. {o}" for a, o in zip(ascii_uppercase, self.options, strict=False))])

    def shuffled(self, seed: int, moving: str) -> tuple["Question", str]:
        """The options in another order, drawn by seed among those in which the option of the letter `moving` has another
        letter, and that letter.
        """
        place, rng = ascii_uppercase.index(moving), random.Random(seed)
        places = list(range(len(self.options)))
        while places.index(place) == place:
            rng.shuffle(places)
        other = Question(self.text, tuple(self.options[n] for n in places))
        return other, ascii_uppercase[places.index(place)]


class Choices(Domain):
    """Questions of multiple choice, answered by the letter of an option."""

    train: Path
    """JSONL file, gzipped or not, for the splits seeds, train, validation and gold."""
    test: Path
    """JSONL file, gzipped or not, for the held-out split."""

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        """Up to `count` questions of a split in an order drawn by `seed`. Raises FlywheelError for a broken file."""
        rows = read_file(self.test)
        if split != "heldout":
            own = read_file(self.train).items()
            rows = {k: r for k, r in own if k not in rows and seed_of(k) % 100 in SHARES[split]}
        drawn = sorted(rows, key=lambda key: (seed_of(seed, key), key))[:count]
        return [gold(*rows[k]) if split == "gold" else Item(rows[k][0].problem, None, rows[k][1]) for k in drawn]

    def parse(self, text: str) -> Item | None:
        """The question that a model wrote; None without options that are lettered from A on and differ."""
        question = read(re.sub(r"^(?:problem|question)\s*(?:\d+\s*)?:\s*", "", text.strip(), flags=re.IGNORECASE))
        return Item(question.problem) if question else None

    def answer(self, response: str) -> str | None:
        """The letter that the last "Answer:" or "answer is" names, or that the response is; None where there is none, or where it
        is denied, doubted or one of several.
        """
        *_, announced = [None, *ANNOUNCED.finditer(response)]
        if announced is None:
            bare = BARE.fullmatch(response)
            return bare[1] if bare else None
        before, _, _ = sentence(response, announced.start(), announced.end())
        question = sentence(response, announced.start(1), announced.end(1)).question
        taken_back = TAKEN_BACK.match(response, announced.end()) or denied(before) or attributed(before)
        return None if question or taken_back else announced[1]

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        """Whether the response's letter is that of `reference`; without either, or with a letter that no option has, it is an
        error.
        """
        answer, question = self.answer(response), read(problem)
        if not reference or answer is None:
            return Verdict(None, error="no answer in the response" if reference else "no reference answer")
        if question is None or answer not in ascii_uppercase[: len(question.options)]:
            return Verdict(None, error=f"the problem has no option {answer}")
        return Verdict(answer == reference)

    def write(self, examples: list[str], level: int | None) -> list[Message]:
        """Author: one new question with its options."""
        problems = "\n\n".join(f"Problem {i}:\n{e}" for i, e in enumerate(examples, 1))
        return [{"role": "user", "content": f"{problems}\n\n{WRITE}"}]

    def solve(self, problem: str) -> list[Message]:
        """Solver: reason in steps, close with `Answer: ` and the letter."""
        return [{"role": "user", "content": f"{problem}\n\n{SOLVE}"}]

    def reasoning(self, response: str) -> str:
        """What a response says before the sentence that announces its answer."""
        announced = list(ANNOUNCED.finditer(response))
        if not announced:
            return "" if BARE.fullmatch(response) else response.strip()
        return response[: sentence_start(response, announced[-1].start())].strip()


def sentence_start(text: str, place: int) -> int:
    """Where the line or sentence begins in which `place` lies."""
    return max((m.end() for m in re.finditer(r"\n|[.!?]\s", text[:place])), default=0)


def read(problem: str) -> Question | None:
    """Takes a problem apart; None without a question and at least two options that are lettered from A on and differ."""
    lines = problem.strip().split("\n")
    first = next((n for n, line in enumerate(lines) if OPTION.fullmatch(line.strip())), len(lines))
    found = [OPTION.fullmatch(line.strip()) for line in lines[first:]]
    letters, options = "".join(m[1] for m in found if m), [m[2].strip() for m in found if m]
    text = "\n".join(lines[:first]).strip()
    whole = len(options) == len(found) >= 2 and letters == ascii_uppercase[: len(letters)]
    return Question(text, tuple(options)) if text and whole and len(set(options)) == len(options) else None


def read_file(path: Path) -> dict[str, tuple[Question, str]]:
    """Question and right letter of every line of a file, by the question in lower case with single spaces."""
    rows: dict[str, tuple[Question, str]] = {}
    for where, line in json_lines(path, LINE):
        question = Question(text_of(line, "question", where, LINE), tuple(options_of(line, where)))
        if read(question.problem) != question:
            raise FlywheelError(f"{where}: its options are not 2 to 26 different lines of text; {LINE}")
        rows.setdefault(" ".join(question.problem.casefold().split()), (question, letter_of(line, question, where)))
    return rows


def options_of(line: dict[str, Any], where: str) -> list[str]:
    """The options of a line, each as one line of text."""
    options = line.get("options", line.get("choices"))
    texts = options.get("text") if isinstance(options, dict) else options
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise FlywheelError(f"{where}: 'options' is {str(options)[:80]!r}, expected a list of texts; {LINE}")
    return [" ".join(text.split()) for text in texts]


def letter_of(line: dict[str, Any], question: Question, where: str) -> str:
    """The letter of the right option: as a letter, as ARC's label, or as a place from 0."""
    answer = line.get("answer", line.get("answerKey"))
    options = line.get("options", line.get("choices"))
    labels = options.get("label", []) if isinstance(options, dict) else ascii_uppercase[: len(question.options)]
    place = answer if type(answer) is int else list(labels).index(answer) if answer in [*labels] else -1
    if not 0 <= place < len(question.options):
        raise FlywheelError(f"{where}: 'answer' is {answer!r}, the letter of none of its options; {LINE}")
    return ascii_uppercase[place]


def gold(question: Question, letter: str) -> Item:
    """An answer whose correctness is known: the right letter, or, for half of the questions, another one."""
    others = [a for a in ascii_uppercase[: len(question.options)] if a != letter]
    right = seed_of("gold", question.problem) % 2 == 0
    said = letter if right else others[seed_of("slip", question.problem) % len(others)]
    return Item(question.problem, None, letter, f"Answer: {said}", None if right else 1)
