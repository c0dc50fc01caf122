r"""The number that a text states as its answer: what the last `\boxed{…}` holds, else what the last `####` or "answer is"
announces, else the last number.

A percent sign and a currency are units, as in GSM8K: `50%` and `$50` are `50`. A number must be stated as it is: `18-20`,
`18+x`, `\ge 18`, `~18` and `not 18` are no answers (`_statements`). Plain numbers and fractions are read exactly, since
math-verify takes `1 1/2` for 1 and decimals for floats; other LaTeX is computed by math-verify, in a process of its own.
"""

import re
from fractions import Fraction

from tasks.core.verdicts import MAX_DIGITS
from tasks.domains._algebra import Overrun, algebraic
from tasks.domains._statements import (
    AFTER,
    DENIED,
    OPERATED,
    RELATION,
    SECOND,
    UNSOLVED,
    attributed,
    denied,
    disguised,
    doubted_after,
    doubted_before,
    sentence,
)

LONGEST_LATEX = 120
"""Characters of LaTeX that math-verify is given; final answers are shorter."""
NONE = "no final answer in the response"

# Mark-up

ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")
"""GSM8K's calculator: `<<6*3=18>>18`."""
TAGS = re.compile(r"</?[a-z]{1,12}>", re.IGNORECASE)
WORDS = re.compile(r"(?:(?<=[0-9])~)?\\(?:text|mathrm|textbf|mathbf|textit)\s*\{([^{}]*)\}")
EMPHASIS = re.compile(r"(?<![\w*)])(\*{1,3}|_{1,3})(?![\s*_])([^*_\n]+)(?<!\s)\1(?![\w*])")
CURRENCY = re.compile(r"(?<![0-9])[$€£¥₹]|[$€£¥₹](?![0-9])|USD|EUR|GBP")
FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
SPACES = re.compile(r"\\(?:left|right|quad)(?![A-Za-z])|\\[,;:! ()\[\]]|\\?%|(?<!\w)`|`(?!\w)")
DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})")
SQUARED = re.compile(r"\b([A-Za-z]{2,}|[mMsS])\s*\^\s*(?:[23]|\{\s*[23]\s*\})")
"""A unit such as `cm^2`."""
PER = re.compile(r"(?<=[0-9])\s?/\s?(?=(?:second|minute|min|hour|hr|day|week|month|year|person|mile|pound|kg)s?\b)")
"""A rate's stroke: `$18/hour`."""
BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")

# Where the answer is

ANNOUNCED = re.compile(
    r"(?:(?m:^)\W{0,4}|(?<=[.!]\s)|(?<=[.!]\s\s))####(?!#)|(?<![\w-])answer(?: is\b|\s*:|\s*=)", re.IGNORECASE
)
SKIPPED = re.compile(r"[\s:*_]*(?:####[\s:*_]*)?")
PRELUDE = re.compile(
    r"(?:[\s:,(\[\"'“‘«]|\b(?:the|a|an|is|are|be|that|it|its|he|she|they|we|you|has|have|had|will|there|exactly|just|simply"
    r"|therefore|thus|so|then|equals?|equal|to|given|by|now|total|of|in|altogether|indeed|clearly|final|answer|value|sum)\b)*",
    re.IGNORECASE,
)
"""What may stand between "answer is" and its number."""

# Numbers

SIGN, INTEGER, POWER = (
    r"(?:(?<![0-9])[-+])?",
    r"[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+",
    r"(?:[eE][+-]?[0-9]{1,2}(?!\w))?",
)
NUMBER = re.compile(rf"{SIGN}(?:(?:[0-9]+ +)?[0-9]+ ?/ ?[0-9]+|(?:{INTEGER})(?:\.[0-9]+)?{POWER}|\.[0-9]+)")
OPENING = re.compile(r"(?:^|[\s(\[\"'“‘«:=])$")
"""What may stand right before a number."""
TAKEN = re.compile(r"(?:[0-9)\]}]|\b[A-Za-z])\s*$")
"""What stands before a sign that adds or takes away."""
ENDING = re.compile(
    r"(?:(?:[kcm]?m|k?g|mg|lbs?|oz|h|hrs?|mins?|s|secs?|m?l|L|ft|in|mi|mph|kph|[ap]m|cents?|[CF])\b)?"
    r"(?=$|\s|[.,;:)\]\"'”’»—](?![0-9.(]))"
)
"""What may stand right after a number: a unit, and an end."""
APPENDED = re.compile(
    r"\s*(?:[,;:/(—]\s*[-+$]?[.0-9(]|[0-9…]|\.[.0-9]|(?![amglhscpLCFI]\b)[A-Za-z]\b(?!['’])|[^\W\d_a-zA-Z\u00c0-\u024f\u2e80-\uffef])"
)
"""What makes a number another one, or the first of several: `18 20`, `18, 20`, `18 (3)`, `18 x`."""
FOREIGN = re.compile(r"[^\W\d_a-zA-Z\u00aa-\u024f\u1e00-\u1eff]")
"""Letters of languages in which `not` is another word."""

# LaTeX

LATEX = re.compile(
    r"(?:\\(?:[dt]?frac|sqrt|cdot|times|div|pi|ln|sin|cos|tan)(?![A-Za-z])|[-+*/^(){}\[\]\s.0-9]|e(?![A-Za-z]))+"
)
"""What computes a number: no relations, sets, variables or signs such as ±."""
BROKEN = re.compile(
    r"^\s*[*/^]|[-+*/^]\s*[-+*/^]|[-+*/^]\s*$|\\(?:cdot|times|div)\s*(?:$|[)}\]])|^\s*\\(?:cdot|times|div)|\{\s*\}|\(\s*\)|\[\s*\]"
    r"|[0-9.]\s+[0-9.]|[0-9}]\s*\\[dt]?frac|\.\s*\.|\.[0-9]+\."
)
"""What math-verify would mend on its own, or could read in two ways."""
UNITS = re.compile(r"(?<![\\A-Za-z])(?:\s*[A-Za-z]{2,}\b\.?)+\s*$")


class Unread(ValueError):
    """A text of which no final answer can be read; says why."""

    def __init__(self, why: str, number: str | None = None) -> None:
        super().__init__(why)
        self.number = number
        """Its last number, where nothing is announced: that is not stated as the answer, but no other one can be meant."""


def stated(text: str) -> str:
    """The final answer: a fraction in lowest terms (`72`, `-3/4`), or as sympy writes it (`sqrt(2)/2`).

    Raises:
        Unread: where there is none, several, or one that takes too long to compute.
    """
    text = _tidy(text)
    if "\\boxed" in text and (box := _last_box(text)):
        return _boxed(text, *box)
    *_, announced = [None, *ANNOUNCED.finditer(text)]
    return _announced(text, announced) if announced else _last(text)


def _tidy(text: str) -> str:
    """The text without mark-up, with blanks where numbers would grow together."""
    if "\\" in text or "{" in text:
        text = WORDS.sub(r" \1 ", text.replace("{,}", ",").replace("\\$", "$"))
        text = FRACTION.sub(r" \1/\2", DEGREES.sub(" ", text))
    if "^" in text:
        text = SQUARED.sub(r"\1", text)
    if "<" in text:
        text = TAGS.sub(" ", ANNOTATION.sub("", text))
    if "/" in text:
        text = PER.sub(" per ", text)
    if "*" in text or "_" in text:
        text = EMPHASIS.sub(r"\2", text)
    return SPACES.sub(" ", CURRENCY.sub("", text.replace("−", "-").replace("°", " ")))


def _last_box(text: str) -> tuple[int, int, int] | None:
    r"""Where the last outermost `\boxed{…}` begins, and where its content begins and ends."""
    opened: list[tuple[int, int] | None] = []
    last: tuple[int, int, int] | None = None
    for brace in BRACES.finditer(text):
        if brace[0].endswith("{") and brace[0] != "\\{":
            opened.append((brace.start(), brace.end()) if len(brace[0]) > 1 else None)
        elif brace[0] == "}" and opened and (box := opened.pop()):
            last = (*box, brace.start())
    return last


def _boxed(text: str, start: int, inner: int, end: int) -> str:
    before, after, question = sentence(text, start, end + 1)
    after = after.strip(" *_`.:)]")
    part = re.match(r"[-–+*/^<>=~≈±≤≥≠×÷\\]", after) or RELATION.search(before[-12:])
    several = re.search(r"\}[\s,;$]*$", before) or SECOND.match(after)
    if question or part or several or AFTER.search(after) or doubted_before(before) or not OPENING.search(before[-1:]):
        raise Unread(f"{NONE}: its box is not stated as the answer")
    return _value(text[inner:end], "only")


def _announced(text: str, marker: re.Match[str]) -> str:
    before = sentence(text, marker.start(), marker.end()).before
    start = SKIPPED.match(text, marker.end()).end()  # type: ignore[union-attr]
    span = sentence(text, start, start)
    if span.question or denied(before) or attributed(before):
        raise Unread(f"{NONE}: what it announces is not stated as the answer")
    return _value(span.after, "first")


def _last(text: str) -> str:
    *_, number = [None, *NUMBER.finditer(text)]
    if number is None:
        raise Unread(NONE)
    try:
        return _ending(text, number)
    except Unread as error:
        raise Unread(str(error), _exact(number[0])) from None


def _ending(text: str, number: re.Match[str]) -> str:
    before, after, question = sentence(text, number.start(), number.end())
    if question or FOREIGN.search(before):
        raise Unread(f"{NONE}: its last number is not stated as the answer")
    if before.strip() == "-" and not after.strip():
        before = "-"
    return _value(re.sub(r"^\s*[-*•]\s+", "", before) + number[0] + after, "last")


def _value(span: str, which: str) -> str:
    """The number of a span, after its last equals sign: the `only` one, the `first` or the `last`."""
    left, equals, right = span.strip().rstrip("*_ ").rpartition("=")
    if equals and (
        RELATION.search(left)
        or DENIED.search(left)
        or OPERATED.search(left)
        or UNSOLVED.search(left)
        or disguised(left)
    ):
        raise Unread(f"{NONE}: it is compared, not stated")
    right = right if which == "last" and not equals else re.sub(r"^\s*-\s+(?=[.0-9])", "-", right)
    if "\\" in right or "^" in right:
        return _computed(right)
    numbers = list(NUMBER.finditer(right))
    if not numbers or (which == "only" and len(numbers) > 1):
        raise Unread(f"{NONE}: there are several" if numbers else NONE)
    number = numbers[-1 if which == "last" else 0]
    before, after = right[: number.start()], right[number.end() :]
    led = which == "last" or (PRELUDE.fullmatch(before) and not SECOND.match(after))
    if not led or not _plain(before, number[0], after):
        raise Unread(f"{NONE}: {number[0][:20]} is not stated as it is")
    return _exact(number[0])


def _plain(before: str, number: str, after: str) -> bool:
    """Whether what stands around a number leaves it as it is."""
    whole = OPENING.search(before[-1:]) and ENDING.match(after) and not APPENDED.match(after)
    taken = number[0] in "+-" and TAKEN.search(before[-9:])
    return bool(whole and not taken and not doubted_before(before) and not doubted_after(after))


def _exact(number: str) -> str:
    """`1 1/2` → `3/2`, `1,450.50` → `2901/2`."""
    if len(number) > MAX_DIGITS:
        raise Unread(f"{NONE}: a number of more than {MAX_DIGITS} digits")
    number = re.sub(" ?/ ?", "/", number)
    whole, _, part = number.rpartition(" ") if "/" in number else ("", "", re.sub("[, ]", "", number))
    sign = "-" if whole.startswith("-") else ""
    try:
        return str(Fraction(whole or 0) + Fraction(sign + part))
    except ZeroDivisionError:
        raise Unread(f"{NONE}: {number[:20]} divides by zero") from None


def _computed(latex: str) -> str:
    latex = re.sub(r"(?<=[0-9])[, ](?=[0-9]{3}(?![0-9]))", "", latex).strip()
    if len(latex) > LONGEST_LATEX:
        raise Unread(f"{NONE}: LaTeX of more than {LONGEST_LATEX} characters")
    units = UNITS.search(latex)
    latex = latex[: units.start()] if units and not AFTER.search(units[0]) else latex
    if not LATEX.fullmatch(latex) or BROKEN.search(latex):
        raise Unread(f"{NONE}: {latex[:40]} is not a number")
    try:
        value = algebraic(latex)
    except Overrun as error:
        raise Unread(f"the final answer {latex[:40]} {error}") from None
    if value is None:
        raise Unread(f"{NONE}: {latex[:40]} is not a number")
    return value
