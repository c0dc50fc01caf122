r"""Word problems in free text with one number as the answer, as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168).

A file holds one JSON object a line, `{"question": …, "answer": …}`, whose answer ends in `#### 18`. The test file is
the held-out set, whole. The training file is divided among the other splits by a hash of the question, so a question
stays in its split when others are added, and one that the test file has too is left out.
"""

import re
from pathlib import Path

from tasks.core.errors import FlywheelError
from tasks.core.ids import seed_of
from tasks.domains import Domain, Item, Message, Split, Verdict
from tasks.domains._jsonl import json_lines, text_of
from tasks.domains._numbers import Unread, stated

SOLVE = "Reason step by step, one step a line. End with a line '#### ' and the final number alone."
LINE = 'a line is {"question": "…", "answer": "… #### 18"}'
SHARES = {"seeds": range(10), "validation": range(10, 20), "gold": range(20, 25), "train": range(25, 100)}
"""Percentiles of the question's hash that make up each split of the training file."""


class Math(Domain):
    r"""Word problems whose final answer is checked by value: `18`, `$18.00`, `36/2` and `\boxed{18}` are one answer."""

    train: Path
    """JSONL file, gzipped or not, for the splits seeds, train, validation and gold."""
    test: Path
    """JSONL file, gzipped or not, for the held-out split."""

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        """Up to `count` problems of a split in an order drawn by `seed`. Raises FlywheelError for a broken file."""
        rows = read(self.test)
        if split != "heldout":
            rows = {k: r for k, r in read(self.train).items() if k not in rows and seed_of(k) % 100 in SHARES[split]}
        drawn = sorted(rows, key=lambda key: seed_of(seed, key))[:count]
        return [gold(*rows[k]) if split == "gold" else Item(rows[k][0], reference=final(rows[k][1])) for k in drawn]

    def solve(self, problem: str) -> list[Message]:
        """Solver: reason in steps, close with `#### ` and the number."""
        return [{"role": "user", "content": f"{problem}\n\n{SOLVE}"}]

    def answer(self, response: str) -> str | None:
        """The final answer as an exact fraction in lowest terms (`72`, `-3/4`), or as math-verify reads its LaTeX; None where
        none is stated, or where its LaTeX takes more than 2 s to compute (on this machine: a faster one may read it).
        """
        return final(response)

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        """Whether the response's final answer equals that of `reference`; where either has none it is an error. A response that
        announces no answer is wrong where its last number is another, however that is stated.
        """
        gold = final(reference or "")
        if gold is None:
            return Verdict(None, error="no reference answer")
        try:
            return Verdict(gold == stated(response))
        except Unread as unread:
            wrong = unread.number not in (None, gold)
            return Verdict(False) if wrong else Verdict(None, error=str(unread))


def final(text: str) -> str | None:
    """The final answer of a text, as `stated`; None where none can be read."""
    try:
        return stated(text)
    except Unread:
        return None


def read(path: Path) -> dict[str, tuple[str, str]]:
    """Question and worked answer of every line of a file, by the question in lower case with single spaces."""
    rows: dict[str, tuple[str, str]] = {}
    for where, line in json_lines(path, LINE):
        question, answer = (text_of(line, name, where, LINE) for name in ("question", "answer"))
        if "####" not in answer or final(answer) is None:
            raise FlywheelError(f"{where}: no final number at the end of {answer[-60:]!r}; {LINE}")
        rows.setdefault(" ".join(question.casefold().split()), (question, answer))
    return rows


def gold(question: str, answer: str) -> Item:
    """A solution whose correctness is known: as written, or, for half of the questions, with the last step's result
    replaced throughout its end, which is wrong by construction since the result was the final answer.
    """
    solution, _, result = answer.rpartition("####")
    result, lines = result.strip(), re.sub(r"<<.*?>>", "", solution).strip().splitlines()
    steps = [n for n, line in enumerate(lines, 1) if re.search(rf"=\s*\$?{re.escape(result)}\b", line)]
    slip = str(int(result) + 1 + seed_of("slip", question) % 3) if result.isdecimal() and steps else result
    if slip == result or seed_of("gold", question) % 2:
        return Item(question, None, final(answer), "\n".join([*lines, f"#### {result}"]))
    at = steps[-1]
    lines[at - 1 :] = [re.sub(rf"\b{result}\b", slip, line) for line in lines[at - 1 :]]
    return Item(question, None, final(answer), "\n".join([*lines, f"#### {slip}"]), at)
