"""Verdict forms: how a judge is asked to close its text, how that line is read, and how a text that is judged is kept from
speaking for the judge.

    form = Score(0, 5)
    form.instruction          'End with a line "Score: n", n a whole number from 0 to 5.'      for the prompt
    form.regex                what an engine that can holds the judge to
    form.read(text)           a Verdict, or one with an error

Only the closing line counts, the last one that is not empty, and it must be the marker and its value alone, in ASCII:
`Verdict: wrong` or `Score: 4`, with emphasis (`**Score:** 4/5`) and a full stop where a model adds them. So neither what the
judge says on the way (`a score of 5 would need sources`) nor what it quotes is its verdict.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal

EMPHASIS = r"[\s*_`]*"
FLAGS = re.IGNORECASE | re.ASCII
"""ASCII: else `ſ` would be read as `s`, and `K`, the unit, as `k`."""
MAX_DIGITS = 4300
"""Digits of the longest number that is read. Python refuses longer ones with an exception, unless its environment says otherwise."""
WRONG_STEP = re.compile(rf"^[^\w\n]*step\s+([0-9]{{1,4}}){EMPHASIS}:{EMPHASIS}wrong\b", FLAGS | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of a response: passed, failed, graded, or an error."""

    passed: bool | None
    """None where it only grades or chooses, and with an error."""
    wrong_step: int | None = None
    """Number (from 1) of the first wrong step, where the check can locate it."""
    error: str | None = None
    """Why there is no verdict."""
    score: float | None = field(default=None)
    """A grade in [0, 1] where the check gives one; else 1.0 for passed and 0.0 for failed."""
    choice: str | None = None
    """The option that was chosen."""
    steps: tuple[float, ...] = ()
    """The grade of each step, in [0, 1]."""
    count: int | None = None


class Form:
    """A closing line: a marker, a colon and a value."""

    marker: str
    value: ClassVar[str]
    """Regular expression of the value as engines are held to it, without groups."""
    read_value: ClassVar[str]
    """Regular expression of what is read as a value, right or wrong; more generous, so that errors can name it."""

    @property
    def closing(self) -> str:
        """The closing line in words."""
        raise NotImplementedError

    @property
    def instruction(self) -> str:
        """The sentence of the prompt that asks for it."""
        return f"End with a line {self.closing}."

    @property
    def regex(self) -> str:
        """Any text that closes with it, as a regular expression for engines."""
        return rf"((.|\n)*\n)?{self.marker}: {self.value}"

    def read(self, text: str) -> Verdict:
        """The verdict of a text; one with an error where the closing line is not of this form."""
        line = _closing_pattern(self.marker, self.read_value).fullmatch(closing_line(text))
        return self.verdict(line[1], text) if line else Verdict(None, error=f"the closing line is not {self.closing}")

    def verdict(self, value: str, text: str) -> Verdict:
        """The verdict that a value of the closing line stands for."""
        raise NotImplementedError


@cache
def _closing_pattern(marker: str, value: str) -> re.Pattern[str]:
    return re.compile(rf"#*{EMPHASIS}{marker}{EMPHASIS}:{EMPHASIS}({value}){EMPHASIS}(?:\.{EMPHASIS})?", FLAGS)


@dataclass(frozen=True)
class Pass(Form):
    """`Verdict: correct` or `Verdict: wrong`. The first line `Step k: wrong` locates what is wrong."""

    marker: ClassVar[str] = "Verdict"
    value: ClassVar[str] = "(correct|wrong)"
    read_value: ClassVar[str] = "correct|wrong"

    @property
    def closing(self) -> str:
        """The closing line in words."""
        return "'Verdict: correct' or 'Verdict: wrong'"

    def verdict(self, value: str, text: str) -> Verdict:
        """Passed or failed."""
        if value.lower() == "correct":
            return Verdict(True)
        step = WRONG_STEP.search(text)
        return Verdict(False, int(step[1]) if step else None)


@dataclass(frozen=True)
class Score(Form):
    """`Score: n`, whole points on a scale, or `n/high`: a grade in [0, 1], neither pass nor fail."""

    low: int = 0
    high: int = 5
    marker: ClassVar[str] = "Score"
    read_value: ClassVar[str] = r"-?[0-9.]*[0-9](?:\s*/\s*[0-9]+)?"

    @property
    def value(self) -> str:  # type: ignore[override]
        """The points, each as it is written."""
        return f"({'|'.join(map(str, range(self.low, self.high + 1)))})"

    @property
    def closing(self) -> str:
        """The closing line in words."""
        return f"'Score: n', n a whole number from {self.low} to {self.high}"

    def verdict(self, value: str, text: str) -> Verdict:
        """The place of the points on the scale. Another scale than the one that was asked for is an error."""
        points, _, scale = (part.strip() for part in value.partition("/"))
        grade = on_scale(points, self.low, self.high)
        if grade is None or scale not in ("", str(self.high)):
            return Verdict(None, error=f"score {value[:20]} is not one of {self.low} to {self.high}")
        return Verdict(None, score=grade)


@dataclass(frozen=True)
class Choice(Form):
    """`Choice: B`, one of several options."""

    options: tuple[str, ...]
    """Words of ASCII letters and digits, with blanks or underscores between."""
    marker: ClassVar[str] = "Choice"
    read_value: ClassVar[str] = r"[^\W_]+(?:[_ ]+[^\W_]+)*"

    @property
    def value(self) -> str:  # type: ignore[override]
        """One of the options."""
        return f"({'|'.join(map(re.escape, self.options))})"

    @property
    def closing(self) -> str:
        """The closing line in words."""
        return " or ".join(f"'Choice: {option}'" for option in self.options)

    def verdict(self, value: str, text: str) -> Verdict:
        """The option."""
        chosen = next((o for o in self.options if o.casefold() == value.casefold()), None)
        if chosen is None:
            return Verdict(None, error=f"choice {value[:20]} is not one of {', '.join(self.options)}")
        return Verdict(None, choice=chosen)


@dataclass(frozen=True)
class Steps(Form):
    """`Steps: 1 0 1`, a grade for each of several steps or answers in their order, in whole points on a scale."""

    number: int | None = None
    """How many there must be; None takes any number."""
    low: int = 0
    high: int = 1
    marker: Literal["Steps", "Scores"] = "Steps"  # type: ignore[assignment]
    read_value: ClassVar[str] = r"[0-9]+(?:[\s,;]+[0-9]+)*"

    @property
    def value(self) -> str:  # type: ignore[override]
        """Points with blanks between them."""
        points = f"({'|'.join(map(str, range(self.low, self.high + 1)))})"
        rest = "*" if self.number is None else f"{{{self.number - 1}}}"
        return f"{points}( {points}){rest}"

    @property
    def closing(self) -> str:
        """The closing line in words."""
        meaning = "1 if it is right and 0 if it is wrong" if (self.low, self.high) == (0, 1) else "its points"
        return f"'{self.marker}: ' and for each of them, in their order, {meaning}, with blanks between"

    def verdict(self, value: str, text: str) -> Verdict:
        """The grades; the score is the lowest of them, the first one of 0 the first wrong step."""
        points = re.split(r"[\s,;]+", value)
        grades = [g for p in points if (g := on_scale(p, self.low, self.high)) is not None]
        if len(grades) < len(points):
            return Verdict(None, error=f"{value[:40]} has other points than {self.low} to {self.high}")
        if self.number not in (None, len(grades)):
            return Verdict(None, error=f"{len(grades)} grades for {self.number}")
        wrong = next((k for k, grade in enumerate(grades, 1) if grade == 0), None)
        return Verdict(None, wrong, score=min(grades), steps=tuple(grades))


@dataclass(frozen=True)
class Count(Form):
    """`Count: 3`, how often something occurs."""

    marker: ClassVar[str] = "Count"
    value: ClassVar[str] = "[0-9]{1,3}"
    read_value: ClassVar[str] = "[0-9]+"

    @property
    def closing(self) -> str:
        """The closing line in words."""
        return "'Count: n', n a whole number"

    def verdict(self, value: str, text: str) -> Verdict:
        """The number."""
        if len(value) > 3:
            return Verdict(None, error=f"count {value[:20]} is not below 1000")
        return Verdict(None, count=int(value))


def on_scale(points: str, low: int, high: int) -> float | None:
    """The place in [0, 1] of whole points on a scale, written as the scale writes them; None for others."""
    return (int(points) - low) / (high - low) if points in map(str, range(low, high + 1)) else None


def whole_number(digits: str) -> int | None:
    """The whole number, not negative, that a model wrote; None for other characters than ASCII digits, and for more of them
    than `MAX_DIGITS`.
    """
    return int(digits) if 0 < len(digits) <= MAX_DIGITS and digits.isascii() and digits.isdecimal() else None


def closing_line(text: str) -> str:
    """The last line that is not empty, without the space around it."""
    return text.strip().rpartition("\n")[2].strip()


VALUES = {
    "verdict": "correct|wrong", "score": "-?[0-9]", "scores": "[0-9]", "steps": "[0-9]", "count": "[0-9]", "choice": r"\w",
    r"step\s+[0-9]{1,4}": "wrong", r"tool\s+result": "",
}  # fmt: skip
"""Markers of all forms, of the line that locates what is wrong, and of what a tool said; each with how its value begins."""
MARKER = re.compile("|".join(rf"(?:{m}{EMPHASIS}):(?={EMPHASIS}(?:{v}))" for m, v in VALUES.items()), FLAGS)
NAMES = (
    "s|bos|eos|pad|unk|mask|cls|sep|sys|2mass|think|instruction|response|first|second|image_soft_token|"
    r"tool_\w{1,20}|im_\w{1,20}|fim_\w{1,20}|(?:unused|special_|extra_id_)[0-9]{1,4}|\w{0,20}_of_\w{1,20}"
)
CAPITALS = (
    r"INST|CLS|SEP|PAD|MASK|UNK|BOS|EOS|\w{0,20}TOOL\w{0,20}|SYSTEM_PROMPT|THINK|ARGS|CALL_ID|PREFIX|MIDDLE|SUFFIX|"
    r"IMG|IMG_\w{1,20}|AUDIO|BEGIN_AUDIO|TRANSCRIBE|@BOS@"
)
TAG = re.compile(
    rf"<(?=[|｜][^|｜\s<>]{{1,40}}[|｜]>|/?(?i:{NAMES})>)|\[(?=/?(?:{CAPITALS})\]|(?i:/?INST|multimodal)\])"
)
"""How tags of prompts and special tokens of tokenizers begin (Llama, Qwen, Mistral, Gemma, DeepSeek, Phi): `<|im_end|>`,
`<｜User｜>`, `</s>`, `<end_of_turn>`, `[INST]`. Repeats are bounded: a text of one of these beginnings alone is read in no time.
"""
BLUNT = {"<": "‹", "[": "〔"}


def shield(text: str) -> str:
    """A text that is to be judged, with whatever a form would read made unreadable for it, and the tags of a judge's prompt
    or a chat template blunted: a judge that quotes it quotes no verdict. Other texts stay as they are.

    What only becomes a marker or tag where a tokenizer normalises (NFKC: `Ｓｃｏｒｅ：５`) or drops what cannot be seen
    (zero-width letters) is taken for one, and the text is shown normalised.
    """
    plain = _normalised(text)
    blunt = _blunted(plain)
    return _blunted(text) if blunt == plain else blunt


def _blunted(text: str) -> str:
    return TAG.sub(lambda tag: BLUNT[tag[0]], MARKER.sub(lambda marker: f"{marker[0][:-1]}∶", text))


def _normalised(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")


def listed(texts: Sequence[str], head: str) -> str:
    """Texts under numbered headings, each shielded."""
    return "\n\n".join(f"{head} {n}:\n{shield(text)}" for n, text in enumerate(texts, 1))
