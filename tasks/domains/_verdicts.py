"""How a judge's text is read, and how a text that is judged is kept from speaking for the judge.

Only the closing line counts, the last one that is not empty, and it must be the marker and nothing else: `Verdict: wrong`
or `Score: 4`, with emphasis (`**Score:** 4/5`) and a full stop where a model adds them. So neither what the judge says on
the way (`a score of 5 would need sources`) nor what it quotes is its verdict.
"""

import re
from dataclasses import dataclass, field

EMPHASIS = r"[\s*_`]*"
VERDICT = re.compile(
    rf"#*{EMPHASIS}verdict{EMPHASIS}:{EMPHASIS}(correct|wrong){EMPHASIS}(?:\.{EMPHASIS})?", re.IGNORECASE
)
SCORE = re.compile(
    rf"#*{EMPHASIS}score{EMPHASIS}:{EMPHASIS}(-?[0-9.]*[0-9])(?:\s*/\s*([0-9]+))?{EMPHASIS}(?:\.{EMPHASIS})?",
    re.IGNORECASE,
)
WRONG_STEP = re.compile(rf"^\W*step\s+([0-9]{{1,4}}){EMPHASIS}:{EMPHASIS}wrong\b", re.IGNORECASE | re.MULTILINE)

MARKER = re.compile(rf"((?:verdict|score){EMPHASIS}):(?={EMPHASIS}(?:correct|wrong|-?[0-9]))", re.IGNORECASE)
TAG = re.compile(r"<(?=\|\w+\|>|/?(?:instruction|response)>)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of a response: passed, failed, or could not say (`passed` None and `error` why)."""

    passed: bool | None
    wrong_step: int | None = None
    """Number (from 1) of the first wrong step, where the check can locate it."""
    error: str | None = None
    score: float | None = field(default=None)
    """A grade in [0, 1] where the check gives one; else 1.0 for passed and 0.0 for failed."""


def closing_line(text: str) -> str:
    """The last line that is not empty, without the space around it."""
    return text.strip().rpartition("\n")[2].strip()


def read_verdict(text: str) -> Verdict:
    """A text that closes with `Verdict: correct` or `Verdict: wrong`. The first line `Step k: wrong` locates what is wrong."""
    marker = VERDICT.fullmatch(closing_line(text))
    if not marker:
        return Verdict(None, error="the closing line is not 'Verdict: correct' or 'Verdict: wrong'")
    if marker[1].lower() == "correct":
        return Verdict(True)
    step = WRONG_STEP.search(text)
    return Verdict(False, int(step[1]) if step else None)


def read_score(text: str, best: int) -> Verdict:
    """A text that closes with `Score: n`, n whole points from 0 to `best` or `n/best`: a grade, neither pass nor fail."""
    marker = SCORE.fullmatch(closing_line(text))
    if not marker:
        return Verdict(None, error="the closing line is not 'Score: n'")
    points, out_of = marker.groups()
    if points not in map(str, range(best + 1)) or out_of not in (None, str(best)):
        return Verdict(
            None, error=f"score {points[:20]}{'/' + out_of[:20] if out_of else ''} is not one of 0 to {best}"
        )
    return Verdict(None, score=int(points) / best)


def shield(text: str) -> str:
    """A text that is to be judged, with whatever `read_verdict` and `read_score` would read made unreadable for them, and
    the tags of a judge's prompt or a chat template blunted: a judge that quotes it quotes no verdict. Other texts stay as
    they are.
    """
    return TAG.sub("‹", MARKER.sub(r"\1∶", text))
