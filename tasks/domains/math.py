r"""Word problems in free text with one number as the answer, as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168).

A file holds one JSON object a line, `{"question": …, "answer": …}`, whose answer ends in `#### 18`. The test file is
the held-out set, whole. The training file is divided among the other splits by a hash of the question, so a question
stays in its split when others are added, and one that the test file has too is left out.
"""

import re
import threading
from fractions import Fraction
from pathlib import Path
from typing import Literal

from tasks.core.errors import FlywheelError
from tasks.core.ids import seed_of
from tasks.domains import Domain, Item, Message, Split, Verdict
from tasks.domains._jsonl import json_lines, text_of

SOLVE = "Reason step by step, one step a line. End with a line '#### ' and the final number alone."
LINE = 'a line is {"question": "…", "answer": "… #### 18"}'
SHARES = {"seeds": range(10), "validation": range(10, 20), "gold": range(20, 25), "train": range(25, 100)}
"""Percentiles of the question's hash that make up each split of the training file."""

BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
ANNOUNCED = re.compile(r"(?:####|\banswer(?: is\b|\s*:|\s*=))[\s:*]*(\S[^\n]*)", re.IGNORECASE)
FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
NOISE = re.compile(
    r"\\(?:text|mathrm)\s*\{[^{}]*\}|\\(?:left|right)\b|\\[,;:! $()\[\]]|\\?%|\{,\}|[$€£¥₹*`~]|USD|EUR|GBP"
)
SIGN, INTEGER, POWER = r"(?:(?<!\d)-)?", r"\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+", r"(?:[eE][+-]?\d\d?)?(?!\w)"
NUMBER = re.compile(rf"{SIGN}(?:(?:\d+ +)?\d+/\d+|(?:{INTEGER})(?:\.\d+)?(?:{POWER})?|\.\d+)", re.ASCII)
HEDGED = re.compile(r"\d\W+(?:or|and)\W+\d", re.IGNORECASE)
EXPLOSIVE = re.compile(r"\^[^^]*\^|\^\W*\d{3}|!|\*\*|\d{12}|\\(?:binom|sum|prod|int|lim)|.{121}", re.DOTALL)
"""Towers of powers and the like, which would keep the computer algebra busy for ever, where no time-out ends it."""


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
        """The final answer as an exact fraction in lowest terms (`72`, `-3/4`), or as math-verify reads its LaTeX."""
        return final(response)

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        """Whether the response's final answer equals that of `reference`; where either has none it is an error."""
        gold, answer = final(reference or ""), final(response)
        if gold is None or answer is None:
            return Verdict(None, error="no reference answer" if gold is None else "no final answer in the response")
        return Verdict(gold == answer)


def final(text: str) -> str | None:
    r"""What the last `\boxed{…}` holds, else what the last `####` or "answer is" announces, else the last number.

    A percent sign and a currency are units, as in GSM8K: `50%` and `$50` are `50`. Several answers are none.
    """
    if boxed := BOXED.findall(text):
        return value(boxed[-1].rpartition("=")[2], "only")
    if announced := ANNOUNCED.findall(text):
        sentence = re.split(r"[.!?](?:\s|$)", announced[-1])[0]
        return value(sentence.rpartition("=")[2], "first")
    return value(text, "last")


def value(span: str, which: Literal["only", "first", "last"]) -> str | None:
    """The number of a span in canonical form. Numbers are read exactly, since math-verify takes `1 1/2` for 1 and
    decimals for floats; LaTeX beyond plain fractions is left to math-verify.
    """
    tidy = NOISE.sub("", FRACTION.sub(r" \1/\2", span.replace("−", "-"))).strip().rstrip(".")
    if "\\" in tidy or "^" in tidy:
        return symbolic(tidy)
    numbers = NUMBER.findall(re.sub(r"^-\s+", "-", tidy))
    if not numbers or (which == "only" and len(numbers) > 1) or (which == "first" and HEDGED.search(tidy)):
        return None
    return exact(numbers[-1 if which == "last" else 0])


def exact(number: str) -> str | None:
    """`1 1/2` → `3/2`, `1,450.50` → `2901/2`; None for a division by zero or thousands of digits."""
    whole, _, part = number.rpartition(" ") if "/" in number else ("", "", re.sub("[, ]", "", number))
    sign = "-" if whole.startswith("-") else ""
    try:
        return str(Fraction(whole or 0) + Fraction(sign + part))
    except (ZeroDivisionError, ValueError):  # the latter from thousands of digits
        return None


def symbolic(latex: str) -> str | None:
    r"""The number that math-verify reads in LaTeX such as `2^{3}` or `3\sqrt{2}`; None where it reads none."""
    if EXPLOSIVE.search(latex):
        return None
    from math_verify import parse
    from sympy import Expr, nsimplify, simplify

    limit = 5 if threading.current_thread() is threading.main_thread() else None  # its time-out is a signal
    parsed = parse(f"\\boxed{{{latex}}}", parsing_timeout=limit)  # type: ignore[arg-type]
    readable = parsed and isinstance(parsed[0], Expr) and parsed[0].is_number and parsed[0].is_finite
    return str(nsimplify(simplify(parsed[0]), rational=True)) if readable else None


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
